package spm

import (
	"context"
	"errors"

	"github.com/google/uuid"
)

// DomainInfo is what a domain's metadata says, or of one that has vanished the pool's.
func (h *Host) DomainInfo(ctx context.Context, domain uuid.UUID) (DomainInfo, error) {
	all, _ := h.look(ctx)
	f, err := h.find(ctx, domain)
	if info, gone := h.gone(all)[domain]; gone && CodeOf(err) == CodeUnknownDomain {
		return info, nil
	}
	if err != nil {
		return DomainInfo{}, err
	}
	info := DomainInfo{
		ID: f.id, Type: f.site.kind(), Class: f.meta[keyClass], Name: f.is.name, Role: f.meta[keyRole], Version: domainVersion,
		Pool: f.is.pool, State: h.stateOf(f, all), Master: f.is.version, Where: f.site.name(), VGUUID: f.meta[keyVGUUID], Lver: f.is.epoch,
	}
	if g, ok := f.site.(*groupSite); ok {
		info.Where = g.label
	}
	if f.is.master && h.standing(f, f.is.pool, all) != standsMaster { // it was, and does not know
		info.Role, info.Master, info.Lver = roleRegular, 0, 0
	}
	return info, nil
}

// stateOf is a domain's state in the pool that it claims. Whose master is not
// connected is taken at its word.
func (h *Host) stateOf(f found, all []found) DomainState {
	stands := h.standing(f, f.is.pool, all)
	if stands == standsClaiming && h.believed(all, f.is.pool) == nil {
		return DomainAttached
	}
	return h.answering(f.id, stands.state())
}

// Domains are the domains of the pool, or with uuid.Nil all that are connected, and what
// the connected pool lists beside them.
func (h *Host) Domains(ctx context.Context, pool uuid.UUID) (map[uuid.UUID]DomainState, error) {
	if pool != uuid.Nil {
		p, err := h.allowed(pool, verbAsk)
		if err != nil {
			return nil, err
		}
		return h.memberStates(ctx, p), nil
	}
	all, _ := h.look(ctx)
	states := map[uuid.UUID]DomainState{}
	for _, f := range all {
		if f.there() {
			states[f.id] = h.stateOf(f, all)
		}
	}
	for id, info := range h.gone(all) {
		states[id] = info.State
	}
	return states, nil
}

// DomainStats is how a domain is used. Of one that is not active only the size is
// known, and what is free; of one that has vanished what its manager has granted, if it
// has one, and nothing is free.
func (h *Host) DomainStats(ctx context.Context, domain uuid.UUID) (DomainStats, error) {
	if m := h.active(domain); m != nil {
		s := m.stats()
		if s.State = DomainActive; m.store.there() != nil {
			s.State, s.Free, s.TimeToFull = DomainUnknown, 0, 0
		}
		return s, nil
	}
	all, _ := h.look(ctx)
	f, err := h.find(ctx, domain)
	if info, gone := h.gone(all)[domain]; gone && info.State == DomainUnknown && CodeOf(err) == CodeUnknownDomain {
		return DomainStats{Level: LevelOK, State: DomainUnknown}, nil
	}
	if err != nil {
		return DomainStats{}, err
	}
	s := DomainStats{Level: LevelOK, State: h.stateOf(f, all)}
	switch p := f.site.(type) {
	case *dirSite:
		free, err := h.o.HostFree(p.path)
		total, terr := statfsTotal(p.path)
		if err = errors.Join(err, terr); err != nil {
			return s, internal(err, "read the free space of %s", p.name())
		}
		s.Capacity, s.Free = total, free
		if f.is.capacity > 0 {
			s.Capacity, s.Free = f.is.capacity, min(free, f.is.capacity)
		}
	case *groupSite:
		g, err := p.get(ctx)
		if err == nil {
			err = g.Read(ctx)
		}
		if err != nil {
			return s, internal(err, "read %s", p.name())
		}
		s.Free = g.State().Free
		s.Capacity = s.Free
		for _, l := range g.State().Volumes {
			if _, ours := l.volume(); ours {
				s.Capacity += l.Size
				s.Volumes++
			}
		}
		s.Granted = s.Capacity - s.Free
	}
	return s, nil
}

// sumStats is how a pool is used whose domains are used so.
func sumStats(all []DomainStats) DomainStats {
	sum := DomainStats{Level: LevelOK}
	worst := 0
	for _, s := range all {
		sum.Capacity += s.Capacity
		sum.Granted += s.Granted
		sum.Free += s.Free
		sum.Reserve += s.Reserve
		sum.Virtual += s.Virtual
		sum.Used += s.Used
		sum.Growth += s.Growth
		sum.Volumes += s.Volumes
		sum.Waiting += s.Waiting
		if n := levelRank(s.Level); n > worst {
			worst, sum.Level = n, s.Level
		}
	}
	if sum.Capacity > 0 {
		sum.Ratio = float64(sum.Virtual) / float64(sum.Capacity)
	}
	if sum.Growth > 0 {
		sum.TimeToFull = float64(sum.Free) / sum.Growth
	}
	return sum
}

func levelRank(level string) int {
	switch level {
	case LevelWarn:
		return 1
	case LevelCritical:
		return 2
	}
	return 0
}
