package task

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// launchLocked lets a goroutine drive a task. It persists what has been decided
// once the task has its locks and a worker's place.
func (e *Engine) launchLocked(t *task) {
	if t.driven || e.closed {
		return
	}
	var ctx context.Context
	ctx, t.cancel = context.WithCancel(e.ctx)
	t.driven, t.rest = true, make(chan struct{})
	t.done, t.total, t.unsaved = 0, 0, nil
	if t.claim == nil {
		t.claim = e.o.Locks.enter(t.plan.Locks)
	}
	if t.stopped {
		t.cancel()
	}
	e.wg.Go(func() {
		defer e.rest(t)
		if e.obtain(ctx, t) {
			defer func() { <-e.slots }()
			e.drive(ctx, t)
		}
	})
}

// rest ends the driving of a task.
func (e *Engine) rest(t *task) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t.cancel()
	t.driven = false
	close(t.rest)
}

// obtain waits for a task's locks and for a worker's place. Without a place it has
// seen to a task that was stopped before it began.
func (e *Engine) obtain(ctx context.Context, t *task) bool {
	select {
	case <-t.claim.ready:
		select {
		case e.slots <- struct{}{}:
			return true
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	if e.ctx.Err() != nil {
		return false
	}
	if t.rec.State == Queued {
		e.drive(ctx, t) // it is stopped, and does not need any
		return false
	}
	select { // what has begun has to be undone, with its locks
	case <-t.claim.ready:
	case <-e.ctx.Done():
		return false
	}
	select {
	case e.slots <- struct{}{}:
		return true
	case <-e.ctx.Done():
	}
	return false
}

// drive takes a task from decision to decision until it has ended, is blocked, or
// the engine is closed.
func (e *Engine) drive(ctx context.Context, t *task) {
	if t.next.State == Queued {
		e.decide(t, begin, nil)
	}
	for {
		if err := e.persist(t); err != nil {
			return
		}
		if t.rec.State.Ended() || t.rec.Blocked != nil {
			return
		}
		if e.ctx.Err() != nil {
			return
		}
		err := e.act(ctx, t)
		switch {
		case e.ctx.Err() != nil:
			return
		case err == nil:
			e.decide(t, done, nil)
		case IsHopeless(err):
			e.decide(t, hopeless, err)
		default:
			e.decide(t, fault, err)
		}
	}
}

// decide determines what comes next. A stop that has been accepted comes first:
// nothing has moved since.
func (e *Engine) decide(t *task, ev event, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t.stopped {
		ev, err = stop, ErrStopped
	}
	t.stopped = false
	if bug := e.moveLocked(t, ev, err); bug != nil {
		panic(bug)
	}
}

// moveLocked makes the next record of what the table says; err is the cause of the
// event. A refusal changes nothing.
func (e *Engine) moveLocked(t *task, ev event, err error) error {
	p, o, refusal := t.shape().next(t.next.at(), ev)
	if refusal != nil {
		return refusal
	}
	if t.result != nil {
		t.next.Result, t.result = t.result, nil
	}
	t.next = t.next.moved(p)
	switch o {
	case back, fail, whole:
		t.next.Error = e.failure(err)
	case undo:
		t.next.Error = cmp.Or(t.next.Error, e.failure(err))
	case stall:
		t.next.Blocked = e.failure(err)
	case quit:
		t.next.GivenUp = true
	}
	switch {
	case !p.state.Ended():
		t.next.Ended = time.Time{}
	case t.next.Ended.IsZero():
		t.next.Ended = e.o.Now().UTC()
	}
	if p.state == Failed {
		t.next.Result = nil
	}
	t.done, t.total = 0, 0
	return nil
}

// failure is an error as it is persisted, or one that was.
func (e *Engine) failure(err error) *Failure {
	if f, was := err.(*Failure); was { //nolint:errorlint // what is wrapped says more
		return f
	}
	return failureOf(e.o.CodeOf(err), err)
}

// persist makes durable what has been decided. If that does not succeed the task
// is blocked until somebody launches it again.
func (e *Engine) persist(t *task) error {
	r := t.next
	err := e.attempts(r, func() error { return e.save(e.ctx, r) })
	if err != nil && e.ctx.Err() != nil {
		return err // as after a crash
	}
	if err == nil && r.State.Ended() {
		e.o.Locks.leave(t.claim)
	}
	e.mu.Lock()
	if err != nil {
		t.unsaved = e.failure(err)
	} else if t.rec = r; r.State.Ended() {
		t.claim = nil
	}
	info := t.infoLocked()
	e.mu.Unlock()
	if err != nil {
		e.o.Log.Error("a task is blocked: its record cannot be written", "task", r.ID, "kind", r.Kind, "err", err)
	} else {
		e.logged(info)
	}
	e.o.Notify(info)
	return err
}

// logged says in the log what a task is at, where that matters.
func (e *Engine) logged(i Info) {
	log := e.o.Log.With("task", i.ID, "kind", i.Kind, "step", i.StepName)
	switch {
	case i.Blocked != nil:
		log.Error("a task is blocked", "undo", i.Undo, "err", i.Blocked.Message)
	case i.State == Finished:
		log.Info("a task has finished", "after", i.Ended.Sub(i.Created))
	case i.State == Failed:
		log.Warn("a task has failed", "after", i.Ended.Sub(i.Created), "err", i.Record.Error.Message)
	}
}

// save is Store.Save with the moments that tests ask for.
func (e *Engine) save(ctx context.Context, r Record) error {
	point := fmt.Sprintf("%s:%s:%d", r.Kind, r.State, r.Step)
	if r.Undo {
		point = fmt.Sprintf("%s:%s-undo:%d", r.Kind, r.State, r.Step)
	}
	e.o.At(point + ":before")
	if err := e.store.Save(ctx, r); err != nil {
		return err
	}
	e.o.At(point + ":after")
	return nil
}

// act does or undoes the step that has begun.
func (e *Engine) act(ctx context.Context, t *task) error {
	r := t.rec
	s := t.plan.Steps[r.Step]
	run := &Run{
		Reached:  r.Reached,
		id:       r.ID,
		progress: func(done, total int64) { e.progress(t, done, total) },
		result:   func(v any) error { return e.result(t, v) },
	}
	if !r.Undo && r.State == Running && r.Step < t.plan.Commit {
		if err := ctx.Err(); err != nil { // it was stopped in the meantime
			return err
		}
		return s.Do(ctx, run)
	}
	f, what := s.Do, ""
	switch {
	case r.Undo && r.Step >= t.plan.Commit:
		f, what = s.GiveUp, "give up "
	case r.Undo:
		f, what = s.Undo, "undo "
	}
	if f == nil {
		return nil
	}
	err := e.attempts(r, func() error { return f(e.ctx, run) })
	if err != nil && r.Undo {
		return fmt.Errorf("%s%s: %w", what, s.Name, err)
	}
	return err
}

// longestPause is between two attempts.
const longestPause = 2 * time.Second

// attempts repeats f for a task until it has succeeded, Options.Attempts times at
// most, or for Options.Patience if its error is a passing one.
func (e *Engine) attempts(r Record, f func() error) error {
	began, pause := time.Now(), e.o.Pause
	for i := 1; ; i++ {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		err := f()
		if err == nil || IsHopeless(err) || e.ctx.Err() != nil {
			return err
		}
		if i >= e.o.Attempts && (!e.o.Passing(err) || time.Since(began) >= e.o.Patience) {
			return err
		}
		e.o.Log.Warn("a step of a task is tried again", "task", r.ID, "kind", r.Kind, "step", r.Step, "attempt", i, "err", err)
		select {
		case <-time.After(pause):
		case <-e.ctx.Done():
		}
		pause = min(2*pause, longestPause)
	}
}

// notifyEvery is how often Notify is told of progress at most.
const notifyEvery = 250 * time.Millisecond

// progress notes how far a step is.
func (e *Engine) progress(t *task, done, total int64) {
	now := e.o.Now()
	e.mu.Lock()
	changed := t.done != done || t.total != total
	t.done, t.total = done, total
	tell := changed && now.Sub(t.told) >= notifyEvery
	if tell {
		t.told = now
	}
	info := t.infoLocked()
	e.mu.Unlock()
	if tell {
		e.o.Notify(info)
	}
}

// result notes what the task answers.
func (e *Engine) result(t *task, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("result of a task: %w", err)
	}
	if len(p) > resultMax {
		return fmt.Errorf("result of a task: %d bytes, at most %d are possible", len(p), resultMax)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	t.result = p
	return nil
}
