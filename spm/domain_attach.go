package spm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
)

// judgeDomain finds a domain and says what becomes of a verb, in a pool that this
// host manages. One that has vanished is not found, and may leave the pool all the same.
func (h *Host) judgeDomain(ctx context.Context, pool, domain uuid.UUID, v domainVerb) (*connectedPool, found, standing, error) {
	p, err := h.allowed(pool, verbChange)
	if err != nil {
		return nil, found{}, 0, err
	}
	all, _ := h.look(ctx)
	f, err := h.find(ctx, domain)
	stands, gone := p.meta.stoodBefore(domain)
	switch {
	case err == nil:
		stands = h.standing(f, pool, all)
	case !gone || CodeOf(err) != CodeUnknownDomain || v != verbDeactivate && v != verbDetach || h.reads(domain):
		return nil, f, 0, err
	}
	rule := domainTable[stands][v]
	if rule.act == refused {
		return nil, f, stands, rule.refusal("domain " + domain.String())
	}
	if moves := stands == standsMaster && v == verbDeactivate; rule.act == proceed && !moves { // it is the master that is written
		if _, err := h.findMaster(ctx, p); err != nil {
			return nil, f, stands, err
		}
	}
	return p, f, stands, nil
}

// list says what a domain is in the pool, on the master, and then in memory.
func (h *Host) list(ctx context.Context, p *connectedPool, domain uuid.UUID, as DomainState) error {
	master, err := h.findMaster(ctx, p)
	if err != nil {
		return err
	}
	next := p.meta.clone()
	next.members[domain] = as
	if err := h.editPool(ctx, master, next); err != nil {
		return err
	}
	h.learn(p, next)
	return nil
}

// AttachDomain makes a domain one of the pool's. See the package comment for the
// order, here and below.
func (h *Host) AttachDomain(ctx context.Context, pool, domain uuid.UUID) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	p, f, stands, err := h.judgeDomain(ctx, pool, domain, verbAttach)
	if err != nil || domainTable[stands][verbAttach].act == already {
		return err
	}
	if len(p.meta.members) >= poolDomainsMax {
		return errorf(CodeInvalid, "attach domain %s: pool %s has %d domains, and more cannot be listed", domain, pool, len(p.meta.members))
	}
	if err := h.claim(ctx, f, pool); err != nil {
		return err
	}
	if err := h.list(ctx, p, domain, DomainAttached); err != nil {
		return err
	}
	h.o.Log.Info("domain attached", "pool", pool, "domain", domain)
	return nil
}

// DetachDomain takes a domain out of a pool. It also takes the claim away from one
// whose pool is gone: of whose master nothing is connected.
func (h *Host) DetachDomain(ctx context.Context, pool, domain uuid.UUID) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	if orphan, ok := h.orphan(ctx, pool, domain); ok {
		h.o.Log.Warn("domain is detached from a pool whose master is not connected", "pool", pool, "domain", domain)
		return h.claim(ctx, orphan, uuid.Nil)
	}
	p, f, stands, err := h.judgeDomain(ctx, pool, domain, verbDetach)
	if err != nil {
		return err
	}
	if stands == standsClaiming {
		return h.claim(ctx, f, uuid.Nil)
	}
	master, err := h.findMaster(ctx, p)
	if err != nil {
		return err
	}
	next := p.meta.clone()
	err = h.expel(ctx, &next, master, domain)
	h.learn(p, next)
	if err == nil {
		h.o.Log.Info("domain detached", "pool", pool, "domain", domain)
	}
	return err
}

// orphan is a domain that claims a pool which is not connected, and whose master is
// in no place that is.
func (h *Host) orphan(ctx context.Context, pool, domain uuid.UUID) (found, bool) {
	if _, err := h.allowed(pool, verbAsk); err == nil {
		return found{}, false
	}
	all, _ := h.look(ctx)
	if _, known := led(all, pool); known {
		return found{}, false
	}
	i := slices.IndexFunc(all, func(f found) bool { return f.there() && f.id == domain && f.is.pool == pool })
	if i < 0 {
		return found{}, false
	}
	return all[i], true
}

// ActivateDomain brings a domain of the pool into use.
func (h *Host) ActivateDomain(ctx context.Context, pool, domain uuid.UUID) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	p, f, _, err := h.judgeDomain(ctx, pool, domain, verbActivate)
	if err != nil {
		return err
	}
	if h.active(domain) == nil {
		m, err := h.openDomain(ctx, f, p.meta)
		if err != nil {
			return err
		}
		if err := h.list(ctx, p, domain, DomainActive); err != nil {
			return fmt.Errorf("%w; %w", err, m.Close())
		}
		h.take(p, m)
	}
	h.o.Log.Info("domain activated", "pool", pool, "domain", domain)
	h.resumeTasks(ctx, p)
	return nil
}

// take makes a manager the pool's. Whatever is served of its domain asks for space here.
func (h *Host) take(p *connectedPool, m *Manager) {
	h.mu.Lock()
	p.managers[m.ident.domain] = m
	h.mu.Unlock()
	go h.ops.adopt(m)
	if lost := m.store.lost(); lost != nil {
		go h.guard(p, m, lost)
	}
}

// DeactivateDomain takes a domain of the pool out of use. Nobody may have a volume of
// it open. The role of the master moves first, to an active domain. Of a domain that has
// vanished nobody knows who has what open; it only may have no task that runs.
func (h *Host) DeactivateDomain(ctx context.Context, pool, domain, newMaster uuid.UUID, version int64) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	p, f, stands, err := h.judgeDomain(ctx, pool, domain, verbDeactivate)
	if err != nil || domainTable[stands][verbDeactivate].act == already {
		return err
	}
	if stands == standsMaster {
		if err := h.mayLead(p, f, newMaster, version); err != nil {
			return err
		}
	}
	m := h.active(domain)
	if m == nil { // it could not be opened
		return h.list(ctx, p, domain, DomainAttached)
	}
	if f.site == nil {
		return h.abandon(ctx, p, m, newMaster, version)
	}
	release, err := h.quiesce(ctx, p, m)
	if err != nil {
		return err
	}
	defer release()
	var inactive bool
	if stands == standsMaster {
		inactive, err = h.moveMaster(ctx, p, newMaster, version)
	} else {
		err = h.list(ctx, p, domain, DomainAttached)
		inactive = err == nil
	}
	if !inactive {
		return err
	}
	h.mu.Lock()
	delete(p.managers, domain)
	h.mu.Unlock()
	h.o.Log.Info("domain deactivated", "pool", pool, "domain", domain)
	return errors.Join(err, m.Close())
}
