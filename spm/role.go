package spm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// An spmStart is the task of becoming the SPM. It is not persisted: where tasks are
// persisted is known when it has ended. Host.mu guards it.
type spmStart struct {
	id, pool       uuid.UUID
	created, ended time.Time
	step           string
	err            error
}

// startsKept is how many starts are remembered that nobody clears.
const startsKept = 16

// StartSPM begins to manage the pool, in the background, as the task that it returns.
func (h *Host) StartSPM(ctx context.Context, pool uuid.UUID) (uuid.UUID, error) {
	if s := h.startInProgress(pool); s != nil {
		return s.id, nil
	}
	done, err := h.begin(ctx)
	if err != nil {
		return uuid.Nil, err
	}
	p, err := h.allowed(pool, verbStart)
	if err != nil {
		done()
		return uuid.Nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := &spmStart{id: uuid.New(), pool: pool, created: h.o.Now()}
	h.keepStartLocked(s)
	if p.role == roleSPM {
		s.ended = s.created
		done()
		return s.id, nil
	}
	p.role, p.start = roleContend, s
	h.starting.Add(1)
	go func() {
		defer h.starting.Done()
		defer done()
		_ = h.becomeSPM(h.ctx, p, s) // the task says what became of it
	}()
	return s.id, nil
}

// startInProgress is the start that goes on: who asks for another joins it.
func (h *Host) startInProgress(pool uuid.UUID) *spmStart {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pool != nil && h.pool.meta.id == pool && h.pool.role == roleContend && h.pool.start != nil && h.pool.start.ended.IsZero() {
		return h.pool.start
	}
	return nil
}

// keepStartLocked remembers a start, and forgets the oldest of those that have ended.
func (h *Host) keepStartLocked(s *spmStart) {
	h.starts[s.id] = s
	if len(h.starts) <= startsKept {
		return
	}
	var oldest *spmStart
	for _, o := range h.starts {
		if !o.ended.IsZero() && (oldest == nil || o.created.Before(oldest.created)) {
			oldest = o
		}
	}
	if oldest != nil {
		delete(h.starts, oldest.id)
	}
}

// becomeSPM does what the task does, and says so.
func (h *Host) becomeSPM(ctx context.Context, p *connectedPool, s *spmStart) error {
	err := h.startSPM(ctx, p, func(step string) {
		h.mu.Lock()
		s.step = step
		h.mu.Unlock()
	})
	if err != nil {
		err = errors.Join(err, h.dropRole(p))
		h.o.Log.Error("the pool is not managed", "pool", s.pool, "error", err)
	}
	h.remember() // before anybody is told
	h.mu.Lock()
	s.ended, s.err = h.o.Now(), err
	state := task.Finished
	if err != nil {
		state = task.Failed
	}
	h.mu.Unlock()
	h.o.journal.add(Event{Time: h.o.Now().UTC(), Kind: EventTask, TaskUUID: s.id.String(), State: string(state)})
	return err
}

// startSPM takes the role; see the package comment for the order. After an error the
// caller drops what it has of it.
func (h *Host) startSPM(ctx context.Context, p *connectedPool, step func(string)) error {
	step("lease")
	_, f, err := h.readPool(ctx, p)
	if err != nil {
		return err
	}
	s, err := f.site.open(ctx, f.id, h.o.Options, h.o.Leases)
	if err != nil {
		return err
	}
	step("epoch")
	m, meta, err := h.raiseEpoch(ctx, s, p.meta.id)
	if err != nil {
		return err
	}
	h.mu.Lock()
	p.meta, p.managers = meta, map[uuid.UUID]*Manager{}
	h.mu.Unlock()
	h.take(p, m)
	step("domains")
	h.openMembers(ctx, p)
	step("tasks")
	if err := h.openTasks(ctx, p); err != nil {
		return err
	}
	h.mu.Lock()
	p.role = roleSPM
	h.mu.Unlock()
	h.o.Log.Info("the pool is managed", "pool", meta.id, "epoch", meta.epoch, "domains", len(p.managers))
	return nil
}

// raiseEpoch reads the master again, now that its lease is ours, raises the epoch and
// makes its manager. It closes s when it fails.
func (h *Host) raiseEpoch(ctx context.Context, s store, pool uuid.UUID) (*Manager, poolMeta, error) {
	keys, err := s.readDomain(ctx)
	if err != nil {
		return nil, poolMeta{}, errors.Join(err, s.close())
	}
	is, err := keys.state(s.kind())
	if err == nil && (is.pool != pool || !is.master) {
		err = errorf(CodeWrongMaster, "the domain in %s is not the master of pool %s any more: connect the pool again", s.name(), pool)
	}
	if err == nil {
		err = raiseCapacity(keys, &is, h.o.Capacity)
	}
	if err != nil {
		return nil, poolMeta{}, errors.Join(err, s.close())
	}
	meta, err := keys.pool()
	if err == nil {
		meta.epoch++
		meta.host = localHostID
		keys.lead(meta)
		err = s.writeDomain(ctx, keys)
	}
	if err != nil {
		return nil, meta, errors.Join(fmt.Errorf("raise the epoch of pool %s: %w", pool, err), s.close())
	}
	is.epoch = meta.epoch
	m, err := activate(s, keys, is, h.o.Options)
	return m, meta, err
}

// openDomain makes the manager of a domain that is not the master.
func (h *Host) openDomain(ctx context.Context, f found, pool poolMeta) (*Manager, error) {
	s, err := f.site.open(ctx, f.id, h.o.Options, h.o.Leases)
	if err != nil {
		return nil, err
	}
	keys, err := s.readDomain(ctx)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	is, err := keys.state(s.kind())
	if err == nil && is.pool != pool.id {
		err = errorf(CodeNotInPool, "%s does not claim pool %s", at(f.id, f), pool.id)
	}
	if err == nil && is.master { // what the move of the master has left
		keys.follow(pool.id)
		if err = s.writeDomain(ctx, keys); err == nil {
			is, err = keys.state(s.kind())
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	is.epoch = pool.epoch
	return activate(s, keys, is, h.o.Options)
}

// openMembers opens the other active domains, as far as that is possible, and ends
// what the move of a master has left.
func (h *Host) openMembers(ctx context.Context, p *connectedPool) {
	all, _ := h.look(ctx)
	for d, state := range p.meta.members {
		i := slices.IndexFunc(all, func(f found) bool { return f.there() && f.id == d })
		switch {
		case d == p.meta.master:
		case i < 0 && state == DomainActive:
			_, err := h.find(ctx, d)
			h.o.Log.Error("an active domain cannot be opened", "pool", p.meta.id, "domain", d, "error", err)
		case i < 0 || state != DomainActive:
		default:
			m, err := h.openDomain(ctx, all[i], p.meta)
			if err != nil {
				h.o.Log.Error("an active domain cannot be opened", "pool", p.meta.id, "domain", d, "error", err)
				continue
			}
			h.take(p, m)
		}
	}
	h.tellFormer(ctx, p.meta)
}

// StopSPM gives the role back. It is refused while tasks run.
func (h *Host) StopSPM(ctx context.Context, pool uuid.UUID) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	p, err := h.allowed(pool, verbStop)
	if err != nil || p.role != roleSPM {
		return err
	}
	if err := h.idle(p); err != nil {
		return err
	}
	h.mu.Lock()
	p.role = roleContend
	h.mu.Unlock()
	next := p.meta.clone()
	next.host = noHost
	if gone := h.masterGone(); gone != nil { // it says what it would if this host had died
		h.o.Log.Warn("the master still says that this host manages the pool", "pool", pool, "error", gone)
	} else if err = h.active(p.meta.master).edit(ctx, func(m domainMeta) error {
		m.lead(next)
		return nil
	}); err == nil {
		h.learn(p, next)
	}
	err = errors.Join(err, h.dropRole(p))
	h.remember()
	h.o.Log.Info("the pool is not managed any more", "pool", pool)
	return err
}

// dropRole closes what a manager of the pool has open. What is on disk stays.
func (h *Host) dropRole(p *connectedPool) error {
	err := h.closeTasks(p)
	h.mu.Lock()
	managers := p.managers
	p.managers, p.role = nil, roleFree
	h.mu.Unlock()
	for _, m := range managers {
		err = errors.Join(err, m.Close())
	}
	return err
}

// guard drops the role if the lease of a domain is lost.
func (h *Host) guard(p *connectedPool, m *Manager, lost <-chan struct{}) {
	select {
	case <-lost:
	case <-m.ctx.Done():
		return
	}
	h.o.Log.Error("the lease of a domain is lost: the pool is not managed any more", "domain", m.ident.domain)
	m.cancel() // what waits for h.changing must not let it go on
	done, err := h.begin(h.ctx)
	if err != nil {
		return
	}
	defer done()
	if h.active(m.ident.domain) != m {
		return
	}
	if err := h.dropRole(p); err != nil {
		h.o.Log.Error("close the pool", "error", err)
	}
}

// SPMStatus says who manages the pool.
func (h *Host) SPMStatus(ctx context.Context, pool uuid.UUID) (RoleStatus, error) {
	p, err := h.allowed(pool, verbAsk)
	if err != nil {
		return RoleStatus{}, err
	}
	h.mu.Lock()
	s := RoleStatus{Role: p.role.String(), ID: localHostID, Epoch: p.meta.epoch}
	free := p.role == roleFree
	h.mu.Unlock()
	if !free {
		return s, nil
	}
	meta, _, err := h.readPool(ctx, p)
	if err != nil {
		return RoleStatus{}, err
	}
	if s.ID, s.Epoch = meta.host, meta.epoch; s.ID == localHostID { // it died, or stopped without a word
		s.ID = noHost
	}
	return s, nil
}
