package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// StartOptions are those of one task.
type StartOptions struct {
	ID uuid.UUID // uuid.Nil: a new one
}

// Start persists a task and returns its id; it runs in the background. Args become
// JSON. An error says that there is no such task: of Build, ErrTooMany,
// fs.ErrExist, or of the store.
func (e *Engine) Start(ctx context.Context, kind string, args any, o StartOptions) (uuid.UUID, error) {
	t, err := e.prepare(kind, args, o)
	if err != nil {
		return uuid.Nil, err
	}
	dropped, err := e.admit(t)
	if err != nil {
		return uuid.Nil, err
	}
	defer e.wg.Done()
	e.dropAll(ctx, dropped)
	id := t.next.ID
	if err := e.save(ctx, t.next); err != nil {
		// Nobody knows whether it is there: make sure that nobody finds it.
		err = errors.Join(err, e.store.Delete(context.WithoutCancel(ctx), id))
		e.mu.Lock()
		delete(e.tasks, id)
		e.mu.Unlock()
		return uuid.Nil, fmt.Errorf("start %s: %w", kind, err)
	}
	e.mu.Lock()
	t.rec = t.next
	info := t.infoLocked()
	e.mu.Unlock()
	e.o.Notify(info) // nobody else knows the task yet
	e.mu.Lock()
	t.hidden = false
	e.launchLocked(t)
	e.mu.Unlock()
	return id, nil
}

// prepare makes a new task.
func (e *Engine) prepare(kind string, args any, o StartOptions) (*task, error) {
	if err := e.usable(true); err != nil {
		return nil, err
	}
	k, known := e.kinds[kind]
	if !known {
		return nil, fmt.Errorf("start %s: there is no such kind of task", kind)
	}
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("arguments of %s: %w", kind, err)
	}
	if len(raw) > argsMax {
		return nil, fmt.Errorf("arguments of %s have %d bytes, at most %d are possible: do it in parts", kind, len(raw), argsMax)
	}
	plan, err := k.plan(raw)
	if err != nil {
		return nil, err
	}
	id := o.ID
	if id == uuid.Nil {
		id = uuid.New()
	}
	t := &task{plan: plan, hidden: true, rest: make(chan struct{})}
	t.next = Record{Version: recordVersion, ID: id, Kind: kind, Args: raw, State: Queued, Created: e.o.Now().UTC()}
	close(t.rest)
	return t, nil
}

// admit gives a task its place in memory, and returns the ended ones that it
// drops for that. Then the caller calls wg.Done.
func (e *Engine) admit(t *task) ([]*task, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("task engine: %w", block.ErrClosed)
	}
	if e.tasks[t.next.ID] != nil {
		return nil, fmt.Errorf("task %s: %w", t.next.ID, fs.ErrExist)
	}
	all := make([]*task, 0, len(e.tasks))
	for _, t := range e.tasks {
		all = append(all, t)
	}
	old := surplus(all, e.o.Max-1, e.o.Now().Add(-e.o.Keep))
	if len(all)-len(old) >= e.o.Max {
		return nil, fmt.Errorf("%w: %d have not ended, and no more are kept: wait for some, or stop them", ErrTooMany, len(all)-len(old))
	}
	for _, o := range old {
		delete(e.tasks, o.rec.ID)
	}
	e.tasks[t.next.ID] = t
	e.wg.Add(1)
	return old, nil
}

// surplus are the ended tasks that are dropped so that at most n are left: those
// that ended before old, and then the oldest.
func surplus(all []*task, n int, old time.Time) []*task {
	var gone []*task
	for _, t := range all {
		if t.rec.State.Ended() && !t.driven && t.foreign == "" && t.unsaved == nil {
			gone = append(gone, t)
		}
	}
	slices.SortFunc(gone, func(a, b *task) int { return a.rec.Ended.Compare(b.rec.Ended) })
	for i, t := range gone {
		if len(all)-i <= n && !t.rec.Ended.Before(old) {
			return gone[:i]
		}
	}
	return gone
}

// dropAll forgets tasks that are not in memory any more. One that the store keeps
// is there again.
func (e *Engine) dropAll(ctx context.Context, tasks []*task) {
	for _, t := range tasks {
		if err := e.drop(ctx, t); err != nil {
			e.o.Log.Warn("an old task could not be dropped", "task", t.rec.ID, "err", err)
		}
	}
}
