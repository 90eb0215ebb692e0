package spm

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// moveMaster lets another active domain be the master, of a higher version, and the
// present one attached, without a manager that is known. The tasks move with the role: none
// may be going on. It may have moved although there was an error.
func (h *Host) moveMaster(ctx context.Context, p *connectedPool, to uuid.UUID, version int64) (moved bool, err error) {
	if err := h.idle(p); err != nil {
		return false, err
	}
	old, tasks := p.meta.master, h.disengage(p)
	if err := h.crownNext(ctx, p, old, to, version, tasks); err != nil {
		return false, errors.Join(err, h.engage(ctx, p, knownTasks{p.kept, tasks}, p.done))
	}
	if err := p.done(); err != nil {
		h.o.Log.Warn("the tasks of the former master cannot be closed", "domain", old, "error", err)
	}
	h.tellFormer(ctx, p.meta)
	h.mu.Lock() // no task begins in what goes out of use: its locks are others from now on
	delete(p.managers, old)
	h.mu.Unlock()
	return true, h.openTasks(ctx, p)
}

// tellFormer tells who was the master of the pool, and still says so, that it is not any
// more. Until it is told, the version says who is the master.
func (h *Host) tellFormer(ctx context.Context, p poolMeta) {
	all, _ := h.look(ctx)
	for _, f := range all {
		if !f.there() || !f.is.master || f.is.pool != p.id || f.id == p.master {
			continue
		}
		log := h.o.Log.With("pool", p.id, "domain", f.id, "version", f.is.version)
		if f.is.version > p.version {
			log.Error("another domain says that it is the master, of a higher version", "master", p.master, "its version", p.version)
		} else if err := h.claim(ctx, f, p.id); err != nil {
			log.Warn("the former master still says that it is", "error", err)
		} else {
			log.Info("the former master knows that it is not any more")
		}
	}
}

func (h *Host) crownNext(ctx context.Context, p *connectedPool, old, to uuid.UUID, version int64, tasks []task.Record) error {
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

// quiesce makes sure that nobody uses a domain, and that nobody begins to. It waits for
// what goes on, but not for long, and not for a task that is blocked: that may be so for
// ever, and everybody else would wait as well, who wants to change the pool.
func (h *Host) quiesce(ctx context.Context, p *connectedPool, m *Manager) (release func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	lock := domainLock(m.ident.domain)
	lock.Exclusive = true
	users := p.engine.Users(lock.Name)
	if i := slices.IndexFunc(users, func(i task.Info) bool { return i.Blocked != nil }); i >= 0 {
		return nil, usedBy(m.ident.domain, users[i:])
	}
	patient, stop := context.WithTimeoutCause(ctx, h.o.LockPatience, errLockPatience)
	defer stop()
	unlock, err := p.engine.Locks().Acquire(patient, []task.Lock{lock})
	if errors.Is(err, errLockPatience) {
		return nil, usedBy(m.ident.domain, p.engine.Users(lock.Name))
	}
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

// usedBy refuses to take a domain out of use that tasks use, and names the first of them.
func usedBy(domain uuid.UUID, users []task.Info) error {
	if len(users) == 0 { // a request that is no task, or a task that has just ended
		return errorf(CodeUnfinished, "domain %s: an image of it is about to be served, torn down or removed: repeat the request", domain)
	}
	i := users[0]
	if i.Blocked != nil {
		return errorf(CodeUnfinished, "domain %s is used by task %s (%s), which is blocked: %s; mend that and revert the task, which goes on then, or stop the SPM",
			domain, i.ID, i.Kind, i.Blocked.Message)
	}
	return errorf(CodeUnfinished, "domain %s is used by task %s (%s), which has not ended: wait for it, or stop it", domain, i.ID, i.Kind)
}
