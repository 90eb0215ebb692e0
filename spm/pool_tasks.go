package spm

import (
	"context"
	"errors"
	"slices"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// openTasks makes the engine of the pool's tasks, and lets it recover them.
func (h *Host) openTasks(ctx context.Context, p *connectedPool) error {
	kept, done, err := h.active(p.meta.master).store.tasks(ctx)
	if err != nil {
		return internal(err, "the tasks of pool %s", p.meta.id)
	}
	return h.engage(ctx, p, kept, done)
}

// engage is openTasks with a store that is open.
func (h *Host) engage(ctx context.Context, p *connectedPool, kept task.Store, done func() error) error {
	e := task.New(context.WithoutCancel(ctx), kept, h.ops.kinds(), task.Options{
		CodeOf: codeOfTask,
		// A server that has been told to end gives its guests up to ten seconds.
		Passing: func(err error) bool { return CodeOf(err) == CodeInUse },
		Notify:  h.noteTask, At: h.o.At, Log: h.o.Log, Now: h.o.Now,
	})
	_, err := e.Recover(ctx)
	h.mu.Lock() // and from here on the locks of tasks that have begun are known
	p.engine, p.kept, p.done = e, kept, done
	h.mu.Unlock()
	if err != nil {
		return internal(err, "recover the tasks of pool %s", p.meta.id)
	}
	return nil
}

// closeTasks is the reverse; what is not finished is recovered the next time.
func (h *Host) closeTasks(p *connectedPool) error {
	if p.engine == nil {
		return nil
	}
	_ = h.disengage(p)
	return p.done()
}

// disengage lets nothing become of the tasks any more, and returns them; where they are
// kept stays open.
func (h *Host) disengage(p *connectedPool) []task.Record {
	e := p.engine
	e.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	p.engine = nil
	return e.Records()
}

// knownTasks are those in a store that are known, so that it need not be read: its place
// may have vanished.
type knownTasks struct {
	task.Store
	known []task.Record
}

func (k knownTasks) Load(context.Context) ([]task.Record, error) { return k.known, nil }

// noteTask tells who watches of a task's states; its progress is asked for.
func (h *Host) noteTask(i task.Info) {
	h.mu.Lock()
	known := h.told[i.ID] == i.State
	h.told[i.ID] = i.State
	if i.State == task.Cleared {
		delete(h.told, i.ID)
	}
	h.mu.Unlock()
	if !known {
		h.o.journal.add(Event{Time: h.o.Now().UTC(), Kind: EventTask, Name: i.Kind, TaskUUID: i.ID.String(), State: string(i.State)})
	}
}

// idle refuses while a task goes on. One that has ended does not, although its goroutine
// may not have come to its own end: whoever was told so may rely on it. Nor does one that
// is blocked, and what waits for its turn beside such a one, for they may do so for ever;
// the next SPM has them as they are.
func (h *Host) idle(p *connectedPool) error {
	if p.engine == nil {
		return nil
	}
	if busy := inTheWay(p.engine.All()); len(busy) > 0 {
		return errorf(CodeUnfinished, "pool %s has %d tasks that have not ended, such as %s: wait for them, or stop them", p.meta.id, len(busy), busy[0])
	}
	return nil
}

// inTheWay are the tasks that go on.
func inTheWay(all []task.Info) (busy []uuid.UUID) {
	blocked := slices.ContainsFunc(all, func(i task.Info) bool { return i.Blocked != nil })
	for _, i := range all {
		waits := blocked && i.State == task.Queued
		if i.Active && !i.State.Ended() && i.Blocked == nil && !waits {
			busy = append(busy, i.ID)
		}
	}
	return busy
}

// resumeTasks sets going again what is blocked: what it lacked may be there now.
func (h *Host) resumeTasks(ctx context.Context, p *connectedPool) {
	for _, i := range p.engine.All() {
		if i.Blocked == nil {
			continue
		}
		if err := p.engine.Revert(ctx, i.ID); err != nil {
			h.o.Log.Warn("a task stays blocked", "task", i.ID, "error", err)
		}
	}
}

// replaceTasks lets a store hold these tasks and no others.
func replaceTasks(ctx context.Context, s store, tasks []task.Record) error {
	kept, done, err := s.tasks(ctx)
	if err != nil {
		return err
	}
	old, err := kept.Load(ctx)
	for _, r := range old {
		if err == nil {
			err = kept.Delete(ctx, r.ID)
		}
	}
	for _, r := range tasks {
		if err == nil {
			err = kept.Save(ctx, r)
		}
	}
	return errors.Join(err, done())
}
