// Package task runs long operations that survive the death of their process.
//
// A [Kind] describes a sort of operation: its steps, how each is undone, what it
// locks. An [Engine] runs tasks of those kinds and writes down, before a step
// begins, that it begins; a [Store] keeps that. Whoever opens the store next
// finishes what it finds there, or rolls it back. The package knows no storage:
// what a step does, what a lock's name means and which code an error has is the
// business of its user. One engine has a store for itself: somebody else sees to
// that, as the manager's lock of a domain does.
//
// # Write order
//
// What is durable when, for a plan of n steps of which c can be undone:
//
//	T1 Save queued                  then Start returns
//	T2 all locks are taken, then Save running, step 0; then Do of step 0
//	T3 Save running, step i         then Do of step i, for each i up to n-1
//	T4 Save finished                then Wait returns, the locks are released
//
// and of a rollback that begins at step i:
//
//	B1 Save aborting, step i        then Undo of step i
//	B2 Save aborting, step i-1      then Undo of that, and so on down to 0
//	B3 Save failed                  then Wait returns, the locks are released
//
// T3 of step c is the commit point; where c is n it is T4, where c is 0 it is T2. A task
// that is given up at step i, behind that:
//
//	G1 Save aborting, step i        then GiveUp of step i
//	G2 Save failed, given up        then Wait returns, the locks are released
//
// # What a crash leaves
//
//	before T1   nothing; Start has not returned
//	behind T1   a queued task that has touched nothing; it is run
//	behind T2, T3, step < c    the steps before it as done, that one at any point
//	                           between not begun and done; they are undone
//	behind T3, step >= c       the same, and everything before c done; that step
//	                           and the rest are done, as often as it takes
//	behind T4                  a finished task
//	behind B1, B2              the steps above undone, that one at any point; it
//	                           and the rest are undone
//	behind B3                  a failed task, and nothing of it but its record
//	behind G1                  everything before step i done, that one at any point; it
//	                           is given up
//	behind G2                  a failed task; what it has done is as GiveUp left it
//
// A Save that was in progress has happened or has not. Both are in the list: the
// step that it announces has not begun. So a step must bear to be repeated, and
// Undo must bear that Do has not begun, has been done in part, or as a whole; and
// that a part of itself has been done. A step that cannot be undone once it has
// been done whole stands behind the commit point.
//
// Who finds a task writes down that it is recovering before it acts. So what was
// found, and perhaps is in the host's cache only, is durable before anything is
// built on it; a Store sees to it for what is not acted on, such as the end of a
// task, before Load returns.
//
// Closing an engine is like a crash to its tasks, but that the step in progress
// is cancelled and waited for.
//
// # What goes wrong
//
// A step that can be undone and fails is not repeated: the task is rolled back.
// One behind the commit point, and an Undo, is repeated with growing pauses.
// After Options.Attempts, or Options.Patience if what is in the way goes by itself,
// the task is recovering, Blocked says why, and it goes on holding its locks, for
// what they protect is half done; so it does while the store fails. The next
// process tries again, and so does [Engine.Revert]. So a task that may be refused
// finds that out in a step that can be undone.
//
// Where that was not found out, a step behind the commit point may fail for good, and a
// task that is recovering for ever keeps everybody from what it has locked. It is given
// up: at once if the step says so ([Hopeless]), or by [Engine.Stop] when it is blocked,
// by somebody who knows better. Then the step's GiveUp leaves what is half done in
// order, and the task has failed with the error of the step; nothing before that step is
// undone. There is no way from giving up to going on again, over a crash either. A lack
// of something that may come back, such as space, a disk or a server, is not hopeless.
//
// A task of an unknown kind, of a newer version, or with arguments that its kind
// does not understand any more is listed with the reason and left alone. It
// holds no locks, as nobody knows which.
//
// # The states
//
// [Engine] acts, and one table (state.go) decides: what the situation of a task
// and an event make of it.
//
// # Locks
//
// The resources that tasks lock are in [Locks]. A task gets them one by one in the
// order of their names, each first come, first served, so that no tasks wait for
// each other in a circle and nobody starves; who waits holds no place among the
// workers, and who has a place waits for no lock. The package's own:
//
//	Engine.mu     the tasks in memory; never held across the store, a step,
//	              a wait for a lock, or Notify
//	Locks.mu      the lock table
//	mu of a Store held across its I/O; never together with the others
//
// in this order. What a task persists is decided and saved by one goroutine at a
// time, its driver.
package task
