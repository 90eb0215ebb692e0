package storagetest

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"tidemark/spm"
)

// CreatePool makes a pool of domains.
func (f *Fake) CreatePool(_ context.Context, r spm.CreatePool) error {
	defer f.lock()()
	if f.pools[r.ID] != nil {
		return fail(spm.CodeExists, "pool %s is there", r.ID)
	}
	if !slices.Contains(r.Domains, r.Master) || r.MasterVersion < 1 {
		return fail(spm.CodeInvalid, "the master %s of version %d is not one of the domains", r.Master, r.MasterVersion)
	}
	for _, id := range r.Domains {
		if d, err := f.find(uuid.Nil, id); err != nil {
			return err
		} else if d.Pool != uuid.Nil {
			return fail(spm.CodeAttached, "domain %s is of pool %s", id, d.Pool)
		}
	}
	for _, id := range r.Domains {
		f.domains[id].Pool, f.domains[id].State = r.ID, spm.DomainAttached
	}
	master := f.domains[r.Master]
	master.Role, master.State, master.Master = "Master", spm.DomainActive, r.MasterVersion
	f.pools[r.ID] = &pool{id: r.ID, master: r.Master, name: r.Name, version: r.MasterVersion}
	return nil
}

// ReconstructMaster makes another domain the master of a pool that is not managed.
func (f *Fake) ReconstructMaster(_ context.Context, r spm.ReconstructMaster) error {
	defer f.lock()()
	d, err := f.find(uuid.Nil, r.Master)
	if err != nil {
		return err
	}
	p := f.pools[r.Pool]
	switch _, listed := r.Domains[r.Master]; {
	case !listed:
		return fail(spm.CodeInvalid, "the master %s is not one of the domains", r.Master)
	case p == nil || d.Pool != r.Pool:
		return fail(spm.CodeAttached, "domain %s is of pool %s", r.Master, d.Pool)
	case p.spm:
		return fail(spm.CodeActive, "this host manages pool %s", r.Pool)
	case r.MasterVersion <= p.version:
		return fail(spm.CodeWrongVersion, "the master has version %d", p.version)
	}
	if old := f.domains[p.master]; old != nil {
		old.Role, old.Master = "Regular", 0
	}
	d.Role, d.State, d.Master = "Master", spm.DomainActive, r.MasterVersion
	p.master, p.version = r.Master, r.MasterVersion
	return nil
}

// attached returns a pool that is connected, and managed one that this host
// manages. The caller has the lock.
func (f *Fake) attached(id uuid.UUID) (*pool, error) {
	p := f.pools[id]
	if p == nil || f.pool != p {
		return nil, fail(spm.CodeNotConnected, "pool %s is not connected", id)
	}
	return p, nil
}

func (f *Fake) managed(id uuid.UUID) (*pool, error) {
	p, err := f.attached(id)
	if err == nil && !p.spm {
		err = fail(spm.CodeNotSPM, "this host does not manage pool %s", id)
	}
	return p, err
}

// DestroyPool detaches all domains, with or without the role.
func (f *Fake) DestroyPool(_ context.Context, id uuid.UUID) error {
	defer f.lock()()
	p, err := f.attached(id)
	if err == nil {
		err = f.allEnded()
	}
	if err != nil {
		return err
	}
	for _, d := range f.domains {
		switch err := d.idle(); {
		case d.Pool == id && d.ID == p.master && err != nil:
			return err
		case d.Pool == id && d.ID != p.master && d.State == spm.DomainActive:
			return fail(spm.CodeActive, "domain %s is active", d.ID)
		}
	}
	for _, d := range f.domains {
		if d.Pool == id {
			d.Pool, d.State, d.Role = uuid.Nil, spm.DomainUnattached, "Regular"
		}
	}
	delete(f.pools, id)
	f.pool = nil
	return nil
}

// ConnectPool connects one pool.
func (f *Fake) ConnectPool(_ context.Context, id, master uuid.UUID, version int64) error {
	defer f.lock()()
	p := f.pools[id]
	switch {
	case p == nil:
		return fail(spm.CodeUnknownPool, "there is no pool %s", id)
	case f.pool != nil && f.pool != p:
		return fail(spm.CodeOtherPool, "pool %s is connected", f.pool.id)
	case p.master != master:
		return fail(spm.CodeWrongMaster, "the master is %s", p.master)
	case p.version != version:
		return fail(spm.CodeWrongVersion, "the master's version is %d", p.version)
	}
	f.pool = p
	return nil
}

// DisconnectPool disconnects it.
func (f *Fake) DisconnectPool(_ context.Context, id uuid.UUID) error {
	defer f.lock()()
	p := f.pool
	if p == nil || p.id != id {
		return nil
	}
	if p.spm {
		return fail(spm.CodeActive, "this host manages pool %s", id)
	}
	f.pool = nil
	return nil
}

// PoolInfo is a connected pool.
func (f *Fake) PoolInfo(_ context.Context, id uuid.UUID) (spm.PoolInfo, error) {
	defer f.lock()()
	p, err := f.attached(id)
	if err != nil {
		return spm.PoolInfo{}, err
	}
	i := spm.PoolInfo{ID: id, Name: p.name, Master: p.master, MasterVersion: p.version, SPM: p.status(), Domains: f.states(id)}
	i.Stats = f.domains[p.master].stats()
	return i, nil
}

// Pools are the pools that are connected.
func (f *Fake) Pools(context.Context) ([]uuid.UUID, error) {
	defer f.lock()()
	if f.pool == nil {
		return nil, nil
	}
	return []uuid.UUID{f.pool.id}, nil
}

// StartSPM is a task that takes the role.
func (f *Fake) StartSPM(_ context.Context, id uuid.UUID) (uuid.UUID, error) {
	defer f.lock()()
	p, err := f.attached(id)
	if err != nil {
		return uuid.Nil, err
	}
	return f.begin(kindStart, id, func() {
		if !p.spm {
			p.spm, p.epoch = true, p.epoch+1
		}
	}), nil
}

// StopSPM gives it up.
func (f *Fake) StopSPM(_ context.Context, id uuid.UUID) error {
	defer f.lock()()
	p, err := f.attached(id)
	if err == nil {
		err = f.allEnded()
	}
	if err == nil {
		p.spm = false
	}
	return err
}

// allEnded refuses what cannot be while a task goes on. The caller has the lock.
func (f *Fake) allEnded() error {
	for _, t := range f.tasks {
		if t.Ended.IsZero() {
			return fail(spm.CodeUnfinished, "task %s has not ended", t.ID)
		}
	}
	return nil
}

// SPMStatus says who has it.
func (f *Fake) SPMStatus(_ context.Context, id uuid.UUID) (spm.RoleStatus, error) {
	defer f.lock()()
	p, err := f.attached(id)
	if err != nil {
		return spm.RoleStatus{}, err
	}
	return p.status(), nil
}

func (p *pool) status() spm.RoleStatus {
	if p.spm {
		return spm.RoleStatus{Role: "SPM", ID: 1, Epoch: p.epoch}
	}
	return spm.RoleStatus{Role: "Free", ID: -1, Epoch: p.epoch}
}
