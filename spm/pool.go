package spm

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// A connectedPool is the pool that the host is of. It is guarded by Host.mu, and
// changed only by who has Host.changing as well, who may read it without.
type connectedPool struct {
	meta     poolMeta // as it is on the master
	role     role
	managers map[uuid.UUID]*Manager // of the active domains, while there is the role
	engine   *task.Engine           // of the tasks, while there is the role
	kept     task.Store             // where they are kept
	done     func() error           // closes what that lies in
	start    *spmStart              // that goes on, or was the last
}

// CreatePool makes a pool of domains that are of none. See the package comment for
// the order.
func (h *Host) CreatePool(ctx context.Context, r CreatePool) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := checkCreatePool(r); err != nil {
		return err
	}
	all, _ := h.look(ctx)
	if f, ok := led(all, r.ID); ok {
		return errorf(CodeExists, "pool %s is there already, with master %s in %s", r.ID, f.id, f.site.name())
	}
	members := make([]found, len(r.Domains))
	for i, d := range r.Domains {
		if members[i], err = h.find(ctx, d); err != nil {
			return err
		}
		if rule := domainTable[h.standing(members[i], r.ID, all)][verbJoin]; rule.act == refused {
			return rule.refusal("domain " + d.String())
		}
	}
	p := poolMeta{id: r.ID, name: r.Name, master: r.Master, version: r.MasterVersion, host: noHost, members: map[uuid.UUID]DomainState{}}
	for _, f := range members {
		p.members[f.id] = DomainAttached
		if f.id == r.Master {
			p.members[f.id] = DomainActive
		} else if err := h.claim(ctx, f, r.ID); err != nil {
			return err
		}
	}
	if err := h.crown(ctx, members[slices.Index(r.Domains, r.Master)], p, nil); err != nil {
		return err
	}
	h.o.Log.Info("pool created", "pool", r.ID, "name", r.Name, "master", r.Master, "domains", len(members))
	return nil
}

func checkCreatePool(r CreatePool) error {
	what := "create pool " + r.ID.String()
	if err := checkLabel(r.Name); err != nil {
		return errorf(CodeInvalid, "%s: %v", what, err)
	}
	switch {
	case r.ID == uuid.Nil || r.Master == uuid.Nil:
		return errorf(CodeInvalid, "%s: expected the UUIDs of the pool and of its master", what)
	case !slices.Contains(r.Domains, r.Master):
		return errorf(CodeInvalid, "%s: its master %s is not among its domains", what, r.Master)
	case len(r.Domains) > poolDomainsMax:
		return errorf(CodeInvalid, "%s: %d domains, expected at most %d", what, len(r.Domains), poolDomainsMax)
	case r.MasterVersion < 1:
		return errorf(CodeInvalid, "%s: the version of its master is %d, expected 1 or more", what, r.MasterVersion)
	}
	for i, d := range r.Domains {
		if slices.Contains(r.Domains[:i], d) {
			return errorf(CodeInvalid, "%s: domain %s is named twice", what, d)
		}
	}
	return nil
}

// claim lets a domain claim a pool, or uuid.Nil.
func (h *Host) claim(ctx context.Context, f found, pool uuid.UUID) error {
	return h.editDomain(ctx, f, func(m domainMeta) error {
		m.follow(pool)
		return nil
	})
}

// crown makes a domain the master of a pool. The tasks of an older one go, and those
// of the pool come.
func (h *Host) crown(ctx context.Context, f found, p poolMeta, tasks []task.Record) error {
	return h.withStore(ctx, f, func(s store, edit editor) error {
		if err := replaceTasks(ctx, s, tasks); err != nil {
			return internal(err, "tasks of %s", at(f.id, f))
		}
		return edit(ctx, func(m domainMeta) error {
			m.lead(p)
			return nil
		})
	})
}

// DestroyPool takes a pool apart, whose domains are of none then. No other domain
// than the master may be active. See the package comment for the order.
func (h *Host) DestroyPool(ctx context.Context, pool uuid.UUID) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	p, err := h.allowed(pool, verbDestroy)
	if err != nil {
		return err
	}
	if err := h.idle(p); err != nil {
		return err
	}
	meta, master, err := h.readPool(ctx, p)
	if err != nil {
		return err
	}
	for d, state := range meta.members {
		if d != meta.master && state == DomainActive {
			return errorf(CodeActive, "destroy pool %s: domain %s is active: deactivate it first", pool, d)
		}
	}
	release, err := h.holdMaster(ctx, p, master)
	if err != nil {
		return err
	}
	defer release()
	for _, d := range slices.Collect(maps.Keys(meta.members)) {
		if d == meta.master {
			continue
		}
		if err := h.expel(ctx, &meta, master, d); err != nil {
			return err
		}
		h.learn(p, meta)
	}
	all, _ := h.look(ctx)
	for _, f := range all { // those that claim the pool and are of none: nobody else will tell them
		if f.there() && f.is.pool == pool && f.id != meta.master {
			if err := h.claim(ctx, f, uuid.Nil); err != nil {
				return err
			}
		}
	}
	if err := h.claim(ctx, master, uuid.Nil); err != nil {
		return err
	}
	err = h.dropRole(p)
	h.mu.Lock()
	h.pool = nil
	h.mu.Unlock()
	h.o.Log.Info("pool destroyed", "pool", pool)
	h.remember()
	return err
}

// holdMaster makes sure that nobody uses the volumes of the master; those of another
// domain nobody uses once it is deactivated. Who is served would wait for space from a
// pool that is gone. Where nobody manages the pool it is a look only.
func (h *Host) holdMaster(ctx context.Context, p *connectedPool, master found) (release func(), err error) {
	if m := h.active(master.id); m != nil {
		return h.quiesce(ctx, p, m)
	}
	return func() {}, h.withStore(ctx, master, func(s store, _ editor) error {
		release, err := holdAll(ctx, s, master.id)
		if err == nil {
			release()
		}
		return err
	})
}

// expel takes a domain off the list of the master, and then takes its claim away. One
// that is not connected keeps that.
func (h *Host) expel(ctx context.Context, meta *poolMeta, master found, domain uuid.UUID) error {
	next := meta.clone()
	delete(next.members, domain)
	if err := h.editPool(ctx, master, next); err != nil {
		return err
	}
	*meta = next
	f, err := h.find(ctx, domain)
	if err != nil || f.is.pool != meta.id {
		h.o.Log.Warn("domain was detached, but could not be told so", "domain", domain, "error", err)
		return nil
	}
	return h.claim(ctx, f, uuid.Nil)
}

// ConnectPool makes the host one of a pool's, if its master is the one that is named,
// of that version. uuid.Nil and 0 are any.
func (h *Host) ConnectPool(ctx context.Context, pool, master uuid.UUID, version int64) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	if h.pool != nil && h.pool.meta.id != pool {
		return errorf(CodeOtherPool, "connect pool %s: this host is connected to pool %s: disconnect that first", pool, h.pool.meta.id)
	}
	meta, err := h.findPool(ctx, pool)
	if err != nil {
		return err
	}
	switch {
	case master != uuid.Nil && master != meta.master:
		return errorf(CodeWrongMaster, "connect pool %s: its master is %s (version %d), not %s", pool, meta.master, meta.version, master)
	case version != 0 && version != meta.version:
		return errorf(CodeWrongVersion, "connect pool %s: its master %s has version %d, not %d", pool, meta.master, meta.version, version)
	}
	h.mu.Lock()
	if h.pool == nil {
		h.pool = &connectedPool{role: roleFree}
		h.o.Log.Info("pool connected", "pool", pool, "master", meta.master, "version", meta.version)
	}
	h.pool.meta = meta
	h.mu.Unlock()
	h.remember()
	return nil
}

// DisconnectPool is the reverse of ConnectPool. A pool that is not connected is no
// error.
func (h *Host) DisconnectPool(ctx context.Context, pool uuid.UUID) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	if h.pool == nil || h.pool.meta.id != pool {
		return nil
	}
	if r := roleTable[h.pool.role][verbDisconnect]; r.act == refused {
		return r.refusal("pool " + pool.String())
	}
	h.mu.Lock()
	h.pool = nil
	h.mu.Unlock()
	h.o.Log.Info("pool disconnected", "pool", pool)
	h.remember()
	return nil
}

// allowed returns the connected pool if a verb is.
func (h *Host) allowed(pool uuid.UUID, v poolVerb) (*connectedPool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	as := roleStranger
	if h.pool != nil && h.pool.meta.id == pool {
		as = h.pool.role
	}
	if r := roleTable[as][v]; r.act == refused {
		return nil, r.refusal("pool " + pool.String())
	}
	return h.pool, nil
}

// Pools are those that are connected: one at most.
func (h *Host) Pools(context.Context) ([]uuid.UUID, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pool == nil {
		return nil, nil
	}
	return []uuid.UUID{h.pool.meta.id}, nil
}

// masterOf is the master of a pool among domains: of two that say so, the one with
// the higher version.
func masterOf(all []found, pool uuid.UUID) (best found, ok bool) {
	for _, f := range all {
		if f.there() && f.is.pool == pool && f.is.master && (!ok || f.is.version > best.is.version) {
			best, ok = f, true
		}
	}
	return best, ok
}

// findPool reads a pool from its master. Of one that this host manages it knows what it is.
func (h *Host) findPool(ctx context.Context, pool uuid.UUID) (poolMeta, error) {
	all, errs := h.look(ctx)
	ours, manages := h.ours(pool)
	if manages {
		return *ours, nil
	}
	f, ok := masterOf(all, pool)
	if !ok {
		text := ""
		if len(errs) > 0 {
			text = "; what could not be read: " + errors.Join(errs...).Error()
		}
		return poolMeta{}, errorf(CodeUnknownPool, "pool %s: its master is in no place that is connected: connect its server first, "+
			"or make another of its domains the master, with a higher version (reconstructMaster, or tidemark pool reconstruct)%s", pool, text)
	}
	meta, err := f.meta.pool()
	if err == nil && ours != nil && meta.version < ours.version {
		return meta, supersededMaster(meta, ours.master, ours.version)
	}
	return meta, err
}

// readPool reads what the master says of the connected pool now.
func (h *Host) readPool(ctx context.Context, p *connectedPool) (poolMeta, found, error) {
	f, err := h.findMaster(ctx, p)
	if err != nil {
		return poolMeta{}, f, err
	}
	meta, err := f.meta.pool()
	all, _ := h.look(ctx)
	if newer, ok := masterOf(all, p.meta.id); err == nil && (!ok || newer.id != f.id) {
		err = errorf(CodeWrongMaster, "%s is not the master of pool %s any more: connect the pool again", at(f.id, f), p.meta.id)
	}
	return meta, f, err
}

// editPool writes what the master says of its pool.
func (h *Host) editPool(ctx context.Context, master found, p poolMeta) error {
	return h.editDomain(ctx, master, func(m domainMeta) error {
		m.lead(p)
		return nil
	})
}

// learn keeps what has been written; that the role of the master has moved outlives the host.
func (h *Host) learn(p *connectedPool, meta poolMeta) {
	h.mu.Lock()
	moved := p.meta.version != meta.version
	p.meta = meta
	h.mu.Unlock()
	if moved {
		h.remember()
	}
}

// PoolInfo is a pool's state.
func (h *Host) PoolInfo(ctx context.Context, pool uuid.UUID) (PoolInfo, error) {
	p, err := h.allowed(pool, verbAsk)
	if err != nil {
		return PoolInfo{}, err
	}
	status, err := h.SPMStatus(ctx, pool)
	if err != nil {
		return PoolInfo{}, err
	}
	h.mu.Lock()
	meta := p.meta.clone()
	managers := maps.Clone(p.managers)
	h.mu.Unlock()
	info := PoolInfo{ID: meta.id, Name: meta.name, Master: meta.master, MasterVersion: meta.version, SPM: status, Domains: h.memberStates(ctx, p)}
	var all []DomainStats
	for _, m := range managers {
		if m.store.there() == nil {
			all = append(all, m.stats())
		}
	}
	info.Stats = sumStats(all)
	return info, nil
}
