package spm

import (
	"context"
	"slices"

	"github.com/google/uuid"
)

// A domain of the pool may vanish: what it lies in is unmounted, moved away, or has
// failed. Then the pool's metadata, which are the master's, are all that is known of it,
// and by them it is deactivated and detached. It keeps its claim, so that when it is
// back it is attached again, or detached, as any other that claims the pool. Of the master
// see master_gone.go.
//
// Only what is in it fails meanwhile: nothing is made there or served, and what the pool
// has and what is free is told of the others.

// stoodBefore is where a domain that is not found stands by the list of the pool.
func (p poolMeta) stoodBefore(domain uuid.UUID) (standing, bool) {
	listed, ok := p.members[domain]
	if !ok {
		return 0, false
	}
	return standingOf(p.id, p.id, listed, domain == p.master), true
}

// reads reports whether a domain answers to its manager although no place was found
// that has it: then it has not vanished.
func (h *Host) reads(domain uuid.UUID) bool {
	m := h.active(domain)
	return m != nil && m.store.there() == nil
}

// answering is the state of a domain whose place was found: Unknown where that is what is
// remembered of a group, and the domain, which is active, does not answer any more.
func (h *Host) answering(domain uuid.UUID, s DomainState) DomainState {
	if m := h.active(domain); s == DomainActive && m != nil && m.store.there() != nil {
		return DomainUnknown
	}
	return s
}

// there fails if the domain has vanished.
func (m *Manager) there() error {
	err := m.store.there()
	if err == nil {
		return nil
	}
	return &Error{Code: CodeUnknownDomain, err: err, Message: "domain " + m.ident.domain.String() + " is not there (" + err.Error() +
		"): bring back what it lies in, or deactivate it"}
}

// memberStates are the states of the domains of the connected pool: what its master
// lists, and Unknown where that says Active and the domain has vanished.
func (h *Host) memberStates(ctx context.Context, p *connectedPool) map[uuid.UUID]DomainState {
	all, _ := h.look(ctx)
	gone := h.gone(all)
	h.mu.Lock()
	states := p.meta.clone().members
	h.mu.Unlock()
	for d := range states {
		if info, ok := gone[d]; ok && !h.reads(d) {
			states[d] = info.State
		}
		states[d] = h.answering(d, states[d])
	}
	return states
}

// abandon takes a domain out of use that has vanished. If it is the master, the role moves
// first.
func (h *Host) abandon(ctx context.Context, p *connectedPool, m *Manager, newMaster uuid.UUID, version int64) error {
	domain := m.ident.domain
	var left bool
	var err error
	if domain == p.meta.master {
		left, err = h.moveMaster(ctx, p, newMaster, version)
	} else if err = h.idle(p); err == nil {
		err = h.list(ctx, p, domain, DomainAttached)
		left = err == nil
	}
	if !left {
		return err
	}
	h.mu.Lock()
	delete(p.managers, domain)
	h.mu.Unlock()
	h.o.Log.Warn("a domain that has vanished is deactivated", "pool", p.meta.id, "domain", domain, "close", m.Close())
	return err
}

// gone are the domains of the connected pool that are not among those that were found.
func (h *Host) gone(all []found) map[uuid.UUID]DomainInfo {
	h.mu.Lock()
	defer h.mu.Unlock()
	lost := map[uuid.UUID]DomainInfo{}
	if h.pool == nil {
		return lost
	}
	for d, listed := range h.pool.meta.members {
		if slices.ContainsFunc(all, func(f found) bool { return f.id == d }) {
			continue
		}
		info := DomainInfo{ID: d, Class: "Data", Role: roleRegular, Version: domainVersion, Pool: h.pool.meta.id, State: listed}
		if listed == DomainActive {
			info.State = DomainUnknown
		}
		if d == h.pool.meta.master {
			info.Role, info.Master, info.Lver = roleMaster, h.pool.meta.version, h.pool.meta.epoch
		}
		if m := h.pool.managers[d]; m != nil {
			info.Name, info.Type = m.ident.name, DomainType(m.store.kind())
		}
		lost[d] = info
	}
	return lost
}
