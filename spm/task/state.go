package task

import (
	"errors"
	"fmt"
)

// A position is how far a task is.
type position struct {
	state State
	step  int
	undo  bool
}

// A shape is what the decisions need to know of a plan.
type shape struct {
	steps, commit int
	revertible    bool
}

// An event is what happens to a task.
type event uint8

const (
	begin    event = iota // it has its resources
	done                  // Do or Undo of the step has succeeded
	fault                 // it has failed, after all attempts that it had
	hopeless              // it has failed, and would always do so
	stop                  // a client's Stop
	abandon               // the same, of a task that is blocked
	revert                // a client's Revert
	forget                // a client's Clear
	found                 // another process finds it
	eventsN               // how many there are
)

// A situation is what the decisions distinguish.
type situation uint8

const (
	queued       situation = iota
	runningFree            // at a step that can be undone
	runningBound           // behind the commit point
	rollingBack
	recoveringAhead
	recoveringBack
	givingUp // behind the commit point
	recoveringOut
	finished
	finishedWhole // and revertible
	failed
	cleared
	situationsN
)

// An outcome is what an event does in a situation.
type outcome uint8

const (
	none   outcome = iota // no cell of the table has it
	never                 // a bug of the engine
	stay                  // nothing: it is so already
	first                 // the first step begins
	ahead                 // the next step begins, or it has finished
	back                  // this step is undone, or given up
	whole                 // the last step is undone
	down                  // the step before is undone, or it has failed
	stall                 // it is blocked here
	undo                  // found: this step is undone, or given up
	redo                  // found: this step is repeated
	again                 // what is blocked is tried again
	fail                  // it has failed before it began
	quit                  // it has failed, and what it has done stays
	drop                  // it is forgotten
	bound                 // refused: it is behind its commit point
	ended                 // refused: it has ended
	going                 // refused: it has not ended
	final                 // refused: its kind cannot be undone as a whole
	absent                // refused: it is not there
)

// decisions is what becomes of a task.
var decisions = [situationsN][eventsN]outcome{
	queued:          {begin: first, done: never, fault: never, hopeless: never, stop: fail, abandon: never, revert: going, forget: going, found: stay},
	runningFree:     {begin: never, done: ahead, fault: back, hopeless: back, stop: back, abandon: never, revert: going, forget: going, found: undo},
	runningBound:    {begin: never, done: ahead, fault: stall, hopeless: back, stop: bound, abandon: never, revert: bound, forget: going, found: redo},
	rollingBack:     {begin: never, done: down, fault: stall, hopeless: stall, stop: stay, abandon: never, revert: stay, forget: going, found: undo},
	recoveringAhead: {begin: never, done: ahead, fault: stall, hopeless: back, stop: bound, abandon: back, revert: again, forget: going, found: redo},
	recoveringBack:  {begin: never, done: down, fault: stall, hopeless: stall, stop: stay, abandon: stay, revert: again, forget: going, found: undo},
	givingUp:        {begin: never, done: quit, fault: stall, hopeless: stall, stop: stay, abandon: never, revert: stay, forget: going, found: undo},
	recoveringOut:   {begin: never, done: quit, fault: stall, hopeless: stall, stop: stay, abandon: stay, revert: again, forget: going, found: undo},
	finished:        {begin: never, done: never, fault: never, hopeless: never, stop: ended, abandon: never, revert: final, forget: drop, found: stay},
	finishedWhole:   {begin: never, done: never, fault: never, hopeless: never, stop: ended, abandon: never, revert: whole, forget: drop, found: stay},
	failed:          {begin: never, done: never, fault: never, hopeless: never, stop: ended, abandon: never, revert: stay, forget: drop, found: stay},
	cleared:         {begin: never, done: never, fault: never, hopeless: never, stop: absent, abandon: never, revert: absent, forget: absent, found: never},
}

// ErrState is that of a request which a task's state does not allow.
var ErrState = errors.New("not possible in the task's state")

var refusals = map[outcome]string{
	bound:  "it is behind its commit point and can only go on",
	ended:  "it has ended",
	going:  "it has not ended: stop it, or wait",
	final:  "it cannot be undone as a whole",
	absent: "it has been cleared",
}

// at says what situation a position is.
func (s shape) at(p position) situation {
	switch {
	case p.state == Queued:
		return queued
	case p.state == Running && p.step < s.commit:
		return runningFree
	case p.state == Running:
		return runningBound
	case p.state == Aborting && p.step >= s.commit:
		return givingUp
	case p.state == Aborting:
		return rollingBack
	case p.state == Recovering && p.undo && p.step >= s.commit:
		return recoveringOut
	case p.state == Recovering && p.undo:
		return recoveringBack
	case p.state == Recovering:
		return recoveringAhead
	case p.state == Finished && s.revertible:
		return finishedWhole
	case p.state == Finished:
		return finished
	case p.state == Failed:
		return failed
	}
	return cleared
}

// next says what event e makes of a task. A refusal is an ErrState; the position
// is what it was then.
func (s shape) next(p position, e event) (position, outcome, error) {
	o := decisions[s.at(p)][e]
	switch o {
	case first:
		return s.begin(0, Running), o, nil
	case ahead:
		return s.begin(p.step+1, p.state), o, nil
	case back:
		return position{Aborting, p.step, true}, o, nil
	case whole:
		return s.unwind(s.steps-1, Aborting), o, nil
	case down:
		return s.unwind(p.step-1, p.state), o, nil
	case stall:
		return position{Recovering, p.step, p.undo}, o, nil
	case undo:
		return position{Recovering, p.step, true}, o, nil
	case redo:
		return position{Recovering, p.step, false}, o, nil
	case fail, quit:
		return position{state: Failed}, o, nil
	case drop:
		return position{state: Cleared, step: p.step}, o, nil
	case stay, again:
		return p, o, nil
	case never, none:
		return p, o, fmt.Errorf("task engine: event %d of a task that is %s at step %d: a bug", e, p.state, p.step)
	}
	return p, o, fmt.Errorf("%w, which is %s: %s", ErrState, p.state, refusals[o])
}

// begin is the position at which a step begins, or the end behind the last one.
func (s shape) begin(step int, state State) position {
	if step >= s.steps {
		return position{state: Finished, step: max(s.steps-1, 0)}
	}
	return position{state: state, step: step}
}

// unwind is the position at which a step is undone, or the end below the first.
func (s shape) unwind(step int, state State) position {
	if step < 0 {
		return position{state: Failed}
	}
	return position{state, step, true}
}

// Ended reports whether nothing more becomes of a task in this state, unless it is
// reverted.
func (s State) Ended() bool { return s == Finished || s == Failed || s == Cleared }

// known reports whether records have this state.
func (s State) known() bool {
	switch s {
	case Queued, Running, Aborting, Recovering, Finished, Failed:
		return true
	}
	return false
}
