package spm

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// epochsPerMaster is how far the epochs of two masters are apart of which the second one
// does not know that of the first: who is served from before does not listen to a manager
// of a lower epoch than the last that has answered. No master sees so many managers, and
// the epoch of a pool has 31 bits in XML-RPC.
const epochsPerMaster = 10_000

// ReconstructMaster says anew what a pool is whose master is lost, of which this host is
// not the manager: who manages a pool moves the role ([Host.DeactivateDomain]). The tasks
// are lost with the master. A domain that is not there is listed as attached. See the
// package comment for the order.
func (h *Host) ReconstructMaster(ctx context.Context, r ReconstructMaster) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	all, _ := h.look(ctx)
	ours, manages := h.ours(r.Pool)
	if err := mayReconstruct(r, ours, manages, saidBy(all, r.Pool), h.masterVersion(r.Pool)); err != nil {
		return err
	}
	next := reconstructed(r, ours)
	master, err := h.find(ctx, r.Master)
	if err != nil {
		return err
	}
	if master.is.pool == uuid.Nil { // it was not of the pool that is lost
		return domainIsNone.refusal("domain " + r.Master.String())
	}
	for _, d := range slices.SortedFunc(maps.Keys(next.members), func(a, b uuid.UUID) int { return strings.Compare(a.String(), b.String()) }) {
		f, err := h.find(ctx, d)
		if err != nil {
			next.members[d] = DomainAttached
			continue
		}
		stands := standingOf(f.is.pool, r.Pool, "", false)
		if rule := domainTable[stands][verbJoin]; rule.act == refused {
			return rule.refusal("domain " + d.String())
		}
		if stands == standsAlone && d != r.Master {
			if err := h.claim(ctx, f, r.Pool); err != nil {
				return err
			}
		}
	}
	if err := h.crown(ctx, master, next, nil); err != nil {
		return err
	}
	if ours != nil {
		h.learn(h.pool, next)
	}
	h.tellFormer(ctx, next)
	h.o.Log.Warn("the master of a pool is reconstructed", "pool", r.Pool, "master", r.Master, "version", r.MasterVersion, "domains", len(next.members))
	return nil
}

// masterVersion is the highest version of a pool's master that this host has seen.
func (h *Host) masterVersion(pool uuid.UUID) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.masters[pool]
}

// mayReconstruct decides whether a pool may be said anew. The other arguments are as those
// of believe, and the highest version of a master that this host has seen; 0: none.
func mayReconstruct(r ReconstructMaster, ours *poolMeta, manages bool, read *poolMeta, seen int64) error {
	what := "reconstruct the master of pool " + r.Pool.String()
	if err := checkLabel(r.Name); err != nil {
		return errorf(CodeInvalid, "%s: %v", what, err)
	}
	_, listed := r.Domains[r.Master]
	switch {
	case r.Pool == uuid.Nil || r.Master == uuid.Nil:
		return errorf(CodeInvalid, "%s: expected the UUIDs of the pool and of its master", what)
	case !listed:
		return errorf(CodeInvalid, "%s: its master %s is not among its domains", what, r.Master)
	case len(r.Domains) > poolDomainsMax:
		return errorf(CodeInvalid, "%s: %d domains, expected at most %d", what, len(r.Domains), poolDomainsMax)
	case manages:
		return errorf(CodeActive, "%s: this host manages it: deactivate its master %s, and name the next one; or stop the SPM first", what, ours.master)
	case read != nil && believe(ours, manages, read) == read:
		return errorf(CodeWrongState, "%s: domain %s is there, which is its master, of version %d: connect the pool to that one; if it cannot be used, disconnect its server first",
			what, read.master, read.version)
	case r.MasterVersion < 2:
		return errorf(CodeWrongVersion, "%s: the lost one had version 1 or more: the next one needs a higher one than that, not %d", what, r.MasterVersion)
	case ours != nil && r.MasterVersion <= ours.version:
		return errorf(CodeWrongVersion, "%s: the lost one, %s, has version %d: the next one needs a higher one than that, not %d", what, ours.master, ours.version, r.MasterVersion)
	case r.MasterVersion <= seen:
		return errorf(CodeWrongVersion, "%s: this host has seen one of version %d: the next one needs a higher one than that, not %d", what, seen, r.MasterVersion)
	}
	return nil
}

// reconstructed is what the pool is then, if all its domains are there.
func reconstructed(r ReconstructMaster, ours *poolMeta) poolMeta {
	p := poolMeta{id: r.Pool, name: r.Name, master: r.Master, version: r.MasterVersion, host: noHost,
		epoch: r.MasterVersion * epochsPerMaster, members: maps.Clone(r.Domains)}
	p.members[r.Master] = DomainActive
	if ours != nil {
		p.name, p.epoch = cmp.Or(r.Name, ours.name), max(ours.epoch, p.epoch)
	}
	return p
}
