package task

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"slices"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// Info is a task as its record says, and what this process knows beside it.
type Info struct {
	Record
	StepName string // that has begun
	Steps    int    // of the plan; 0: unknown
	// Done of Total is how far the step is, in a unit of its own; 0 of 0: unknown.
	Done, Total int64
	Stoppable   bool   // Stop would be accepted
	Active      bool   // something becomes of it without anybody's doing
	Foreign     string // why it is left alone
}

// infoLocked describes a task. What is not durable is not told.
func (t *task) infoLocked() Info {
	i := Info{Record: t.rec, Steps: len(t.plan.Steps), Done: t.done, Total: t.total, Active: t.driven, Foreign: t.foreign}
	if t.foreign != "" {
		return i
	}
	if t.unsaved != nil {
		i.State, i.Blocked = Recovering, t.unsaved
	}
	if i.State != Queued && i.Step < len(t.plan.Steps) {
		i.StepName = t.plan.Steps[i.Step].Name
	}
	_, o, _ := t.shape().next(t.next.at(), t.stopEvent())
	i.Stoppable = o == back || o == fail
	return i
}

// stopEvent is what a client's Stop is to a task.
func (t *task) stopEvent() event {
	if t.next.Blocked != nil {
		return abandon
	}
	return stop
}

// Failure is why a task has failed, is rolled back, or does not go on; nil: it does.
func (i Info) Failure() *Failure { return cmp.Or(i.Blocked, i.Record.Error) }

// Info describes a task. The error wraps fs.ErrNotExist if there is none.
func (e *Engine) Info(id uuid.UUID) (Info, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t, err := e.findLocked(id)
	if err != nil {
		return Info{}, err
	}
	return t.infoLocked(), nil
}

// All describes all tasks, the oldest first.
func (e *Engine) All() []Info {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]Info, 0, len(e.tasks))
	for _, t := range e.tasks {
		if !t.hidden {
			all = append(all, t.infoLocked())
		}
	}
	slices.SortFunc(all, func(a, b Info) int {
		return cmp.Or(a.Created.Compare(b.Created), slices.Compare(a.ID[:], b.ID[:]))
	})
	return all
}

// Records are the tasks as they are persisted, the oldest first: what another store needs
// to go on with them. Nothing may become of them meanwhile.
func (e *Engine) Records() []Record {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]Record, 0, len(e.tasks))
	for _, t := range e.tasks {
		if !t.hidden {
			all = append(all, t.rec)
		}
	}
	slices.SortFunc(all, func(a, b Record) int {
		return cmp.Or(a.Created.Compare(b.Created), slices.Compare(a.ID[:], b.ID[:]))
	})
	return all
}

// Users describes the tasks that have a resource, or wait for it, and have not ended, the
// oldest first.
func (e *Engine) Users(resource string) []Info {
	return slices.DeleteFunc(e.All(), func(i Info) bool { return !e.uses(i.ID, resource) })
}

func (e *Engine) uses(id uuid.UUID, resource string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tasks[id]
	return t != nil && t.claim != nil && slices.ContainsFunc(t.claim.locks, func(l Lock) bool { return l.Name == resource })
}

// unknown is the error about a task that is not there.
type unknown struct{}

func (unknown) Error() string { return "there is none of that UUID, or it has been cleared" }

// Is says that it is [ErrUnknown], and as a file that does not exist.
func (unknown) Is(target error) bool { return target == ErrUnknown || target == fs.ErrNotExist }

func (e *Engine) findLocked(id uuid.UUID) (*task, error) {
	t := e.tasks[id]
	if t == nil || t.hidden {
		return nil, at(id, unknown{})
	}
	return t, nil
}

// settledLocked is findLocked for who wants to change something: a task that this
// process knows, not between its last record and the end of its goroutine. It gives
// the mutex up while it waits.
func (e *Engine) settledLocked(ctx context.Context, id uuid.UUID) (*task, error) {
	for {
		if e.closed || e.ctx.Err() != nil {
			return nil, fmt.Errorf("task engine: %w", block.ErrClosed)
		}
		t, err := e.findLocked(id)
		if err != nil {
			return nil, err
		}
		if t.foreign != "" {
			return nil, at(id, fmt.Errorf("%w: %s", ErrForeign, t.foreign))
		}
		if !t.settlesLocked() {
			return t, nil
		}
		rest := t.rest
		e.mu.Unlock()
		select {
		case <-rest:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		e.mu.Lock()
		if err != nil {
			return nil, at(id, err)
		}
	}
}

// settlesLocked reports whether a task's goroutine has nothing more to do.
func (t *task) settlesLocked() bool {
	return t.driven && (t.unsaved != nil || t.rec.Blocked != nil && t.next.Blocked != nil || t.rec.State.Ended() && t.next.State.Ended())
}

// Wait returns a task of which nothing more becomes by itself: it has ended, or is
// blocked or foreign. The error is ctx's, fs.ErrNotExist, or block.ErrClosed.
func (e *Engine) Wait(ctx context.Context, id uuid.UUID) (Info, error) {
	for {
		e.mu.Lock()
		t, err := e.findLocked(id)
		if err != nil {
			e.mu.Unlock()
			return Info{}, err
		}
		info, rest := t.infoLocked(), t.rest
		over := e.closed || e.ctx.Err() != nil
		e.mu.Unlock()
		if !info.Active {
			if over && !info.State.Ended() {
				return info, fmt.Errorf("task engine: %w", block.ErrClosed)
			}
			return info, nil
		}
		select {
		case <-rest:
		case <-ctx.Done():
			return info, context.Cause(ctx)
		}
	}
}

// Stop ends a task that is not behind its commit point: when it returns it is
// certain that the task will be rolled back. Of one that is rolled back already it
// is no error. One that is blocked behind its commit point is given up, and has failed
// when Stop returns. Otherwise the error is ErrState and says why.
func (e *Engine) Stop(ctx context.Context, id uuid.UUID) error {
	e.mu.Lock()
	t, err := e.settledLocked(ctx, id)
	if err != nil {
		e.mu.Unlock()
		return err
	}
	ev := t.stopEvent()
	_, o, err := t.shape().next(t.next.at(), ev)
	if err != nil || o == stay {
		e.mu.Unlock()
		return at(id, err)
	}
	waits := t.rec.State == Queued || ev == abandon // a crash would let it go on
	if ev == abandon {
		err = e.moveLocked(t, abandon, t.next.Blocked)
	} else {
		t.stopped = true
		t.cancel()
	}
	if err != nil {
		e.mu.Unlock()
		return at(id, err)
	}
	if !t.driven {
		e.launchLocked(t) // it was blocked
	}
	e.mu.Unlock()
	if !waits {
		return nil
	}
	info, err := e.Wait(ctx, id)
	if err == nil && info.Blocked != nil {
		err = info.Blocked
	}
	return at(id, err)
}

func at(id uuid.UUID, err error) error {
	if err != nil {
		return fmt.Errorf("task %s: %w", id, err)
	}
	return nil
}

// Revert sets going again what is blocked, in the direction that it had; a
// rollback is repeated, what is behind its commit point goes on. A finished task
// whose kind is Revertible is undone once it has its locks; until then a crash
// forgets that. Of a task that has failed, or is being rolled back, it is no error.
func (e *Engine) Revert(ctx context.Context, id uuid.UUID) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	t, err := e.settledLocked(ctx, id)
	switch {
	case err != nil:
		return err
	case t.unsaved != nil && t.next.Blocked == nil: // it goes on with what could not be saved
	case t.driven:
		_, _, err := t.shape().next(t.next.at(), revert)
		return at(id, err)
	default:
		if err := e.moveLocked(t, revert, ErrReverted); err != nil {
			return at(id, err)
		}
		if t.next.State == Failed && t.rec.State == Failed {
			return nil
		}
	}
	e.launchLocked(t)
	return nil
}

// Clear forgets a task that has ended; of another the error is ErrState.
func (e *Engine) Clear(ctx context.Context, id uuid.UUID) error {
	e.mu.Lock()
	t, err := e.settledLocked(ctx, id)
	if err == nil {
		err = at(id, t.forgettableLocked())
	}
	if err != nil {
		e.mu.Unlock()
		return err
	}
	delete(e.tasks, id)
	e.wg.Add(1)
	e.mu.Unlock()
	defer e.wg.Done()
	return at(id, e.drop(ctx, t))
}

// forgettableLocked returns an error unless the task has ended, durably.
func (t *task) forgettableLocked() error {
	if t.unsaved != nil {
		return fmt.Errorf("%w: what has become of it could not be written: %s", ErrState, t.unsaved.Message)
	}
	_, _, err := t.shape().next(t.next.at(), forget)
	return err
}

// drop lets the store forget a task that is not in memory any more. If that fails
// it is there again.
func (e *Engine) drop(ctx context.Context, t *task) error {
	r := t.rec.moved(position{state: Cleared, step: t.rec.Step})
	point := fmt.Sprintf("%s:%s:%d", r.Kind, r.State, r.Step)
	e.o.At(point + ":before")
	err := e.store.Delete(ctx, r.ID)
	e.mu.Lock()
	if err != nil {
		e.tasks[r.ID] = t
	}
	info := t.infoLocked()
	e.mu.Unlock()
	if err != nil {
		return err
	}
	e.o.At(point + ":after")
	info.Record = r
	e.o.Notify(info)
	return nil
}
