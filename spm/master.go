package spm

import (
	"context"
	"errors"
	"strings"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// moveMaster lets another active domain be the master, of a higher version, and the
// present one attached. The tasks move with the role: none may be going on. It may
// have moved although there was an error.
func (h *Host) moveMaster(ctx context.Context, p *connectedPool, old found, to uuid.UUID, version int64) (moved bool, err error) {
	if err := h.idle(p); err != nil {
		return false, err
	}
	if err := h.closeTasks(p); err != nil {
		return false, errors.Join(internal(err, "close the tasks of pool %s", p.meta.id), h.openTasks(ctx, p))
	}
	if err := h.crownNext(ctx, p, old.id, to, version); err != nil {
		return false, errors.Join(err, h.openTasks(ctx, p))
	}
	if err := h.claim(ctx, old, p.meta.id); err != nil { // the next SPM does it: the version says who is the master
		h.o.Log.Warn("the former master still says that it is", "domain", old.id, "error", err)
	}
	return true, h.openTasks(ctx, p)
}

func (h *Host) crownNext(ctx context.Context, p *connectedPool, old, to uuid.UUID, version int64) error {
	tasks, err := h.tasksOf(ctx, old)
	if err != nil {
		return internal(err, "the tasks of pool %s", p.meta.id)
	}
	f, err := h.find(ctx, to)
	if err != nil {
		return err
	}
	next := p.meta.clone()
	next.master, next.members[old] = to, DomainAttached
	if next.version = version; version == 0 {
		next.version = p.meta.version + 1
	}
	if err := h.crown(ctx, f, next, tasks); err != nil {
		return err
	}
	h.learn(p, next)
	h.o.Log.Info("the master of the pool has moved", "pool", next.id, "from", old, "to", to, "version", next.version)
	return nil
}

// tasksOf are those that a master keeps.
func (h *Host) tasksOf(ctx context.Context, master uuid.UUID) ([]task.Record, error) {
	kept, done, err := h.active(master).store.tasks(ctx)
	if err != nil {
		return nil, err
	}
	all, err := kept.Load(ctx)
	return all, errors.Join(err, done())
}

// quiesce makes sure that nobody uses a domain, and that nobody begins to.
func (h *Host) quiesce(ctx context.Context, p *connectedPool, m *Manager) (release func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	lock := domainLock(m.ident.domain)
	lock.Exclusive = true
	unlock, err := p.engine.Locks().Acquire(ctx, []task.Lock{lock})
	if err != nil {
		return nil, err
	}
	unhold, err := holdAll(ctx, m.store, m.ident.domain)
	if err != nil {
		unlock()
		if served := h.ops.servedOf(ctx, m); CodeOf(err) == CodeInUse && len(served) > 0 {
			return nil, errorf(CodeInUse, "domain %s is in use: tear down what is served of it: %s", m.ident.domain, strings.Join(served, ", "))
		}
		return nil, err
	}
	return func() { unhold(); unlock() }, nil
}
