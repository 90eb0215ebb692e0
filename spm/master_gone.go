package spm

import (
	"context"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// The master may vanish as any other domain. Nothing of the pool can be written then: no
// task begins, no domain comes or goes. What the pool is knows who manages it, so that the
// role of the master can be given to another domain that is active, as if the master were
// there ([Host.DeactivateDomain]); its tasks are those that the manager knows. Who does not
// manage the pool says what it is anew ([Host.ReconstructMaster]).
//
// The former master knows nothing of it. When it is back it says that it is the master, of
// an older version, and is not believed: it is told when it is connected, when its pool's
// SPM starts, and when it is activated or detached.

// believe decides who says what a pool is: ours is what this host knows of the pool that it
// is connected to, and read is what the domain says that claims to be the master with the
// highest version of all that are connected; nil: there is none. Who manages the pool knows,
// and of others the higher version counts.
func believe(ours *poolMeta, manages bool, read *poolMeta) *poolMeta {
	if ours != nil && (manages || read == nil || read.version < ours.version) {
		return ours
	}
	return read
}

// believed is what a pool is; nil: nobody knows. all is what is connected.
func (h *Host) believed(all []found, pool uuid.UUID) *poolMeta {
	ours, manages := h.ours(pool)
	return believe(ours, manages, saidBy(all, pool))
}

// saidBy is what the domain says that claims to be the master of a pool.
func saidBy(all []found, pool uuid.UUID) *poolMeta {
	f, ok := masterOf(all, pool)
	if !ok {
		return nil
	}
	meta, err := f.meta.pool()
	if err != nil { // its list is damaged
		meta = poolMeta{id: pool, master: f.id, version: f.is.version}
	}
	return &meta
}

// ours is what this host knows of a pool, nil if it is not connected to it, and whether it
// manages it.
func (h *Host) ours(pool uuid.UUID) (meta *poolMeta, manages bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pool == nil || h.pool.meta.id != pool {
		return nil, false
	}
	known := h.pool.meta.clone()
	return &known, h.pool.role == roleSPM
}

// heirs are the domains that may be the next master: those that are active and there.
func (h *Host) heirs(p *connectedPool) (all []string) {
	h.mu.Lock()
	managers := make([]*Manager, 0, len(p.managers))
	for d, m := range p.managers {
		if d != p.meta.master {
			managers = append(managers, m)
		}
	}
	h.mu.Unlock()
	for _, m := range managers {
		if m.store.there() == nil {
			all = append(all, m.ident.domain.String())
		}
	}
	slices.Sort(all)
	return all
}

// mayLead is of the pool's master, which may have vanished.
func (h *Host) mayLead(p *connectedPool, master found, to uuid.UUID, version int64) error {
	heirs := h.heirs(p)
	if master.site == nil && len(heirs) == 0 {
		return goneMaster(p.meta.id, p.meta.master, nil, true)
	}
	return mayLead(p.meta, heirs, to, version)
}

// mayLead decides whether the role of the master may move to a domain. heirs are those
// that may get it.
func mayLead(p poolMeta, heirs []string, to uuid.UUID, version int64) error {
	switch {
	case len(heirs) == 0:
		return errorf(CodeIsMaster, "domain %s is the master of pool %s, which has no other active domain to become it: activate one, or destroy the pool",
			p.master, p.id)
	case !slices.Contains(heirs, to.String()):
		return errorf(CodeIsMaster, "domain %s is the master of pool %s: name an active domain that is to be the next one: %s, not %s",
			p.master, p.id, strings.Join(heirs, ", "), to)
	case version != 0 && version <= p.version:
		return errorf(CodeWrongVersion, "the master of pool %s has version %d: the next one needs a higher one than that, not %d", p.id, p.version, version)
	}
	return nil
}

// masterGone says, of a pool that this host manages, that its master has vanished, and what
// to do; nil: it is there.
func (h *Host) masterGone() *Error {
	h.mu.Lock()
	p := h.pool
	var m *Manager
	if p != nil {
		m = p.managers[p.meta.master]
	}
	h.mu.Unlock()
	if m == nil {
		return nil
	}
	err := m.store.there()
	if err == nil {
		return nil
	}
	gone := goneMaster(m.ident.pool, m.ident.domain, h.heirs(p), true)
	gone.Message, gone.err = gone.Message+" ("+err.Error()+")", err
	return gone
}

// goneMaster says what to do about a master that is not there.
func goneMaster(pool, master uuid.UUID, heirs []string, manages bool) *Error {
	advice := "disconnect the pool and make another of its domains the master, with a higher version (reconstructMaster, or tidemark pool reconstruct)"
	switch {
	case manages && len(heirs) > 0:
		advice = "deactivate it, and name the active domain that becomes the next one: " + strings.Join(heirs, ", ")
	case manages:
		advice = "no other domain is active that could become the next one: stop the SPM, " + advice
	}
	return errorf(CodeUnknownDomain, "domain %s, the master of pool %s, is not there: bring back what it lies in and connect its server, or %s", master, pool, advice)
}

// findMaster finds the master of the connected pool.
func (h *Host) findMaster(ctx context.Context, p *connectedPool) (found, error) {
	f, err := h.find(ctx, p.meta.master)
	if CodeOf(err) != CodeUnknownDomain {
		return f, err
	}
	_, manages := h.ours(p.meta.id)
	gone := goneMaster(p.meta.id, p.meta.master, h.heirs(p), manages)
	gone.err = err
	return f, gone
}

// supersededMaster refuses what the former master of a pool says of it.
func supersededMaster(says poolMeta, master uuid.UUID, version int64) error {
	return errorf(CodeWrongMaster, "pool %s: domain %s says that it is its master, of version %d, which was before domain %s of version %d: connect the server of that one, "+
		"or make another of its domains the master, with a higher version (reconstructMaster, or tidemark pool reconstruct)", says.id, says.master, says.version, master, version)
}
