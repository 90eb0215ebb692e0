package spm

import (
	"context"
)

// warnPart is the part of a pool's capacity below which headroom is recalled.
const warnPart = 16

// judgeLocked finds out whether the pool has become tight, or is no more: while a
// volume waits, or little is free, those that are idle give their headroom back.
func (m *Manager) judgeLocked() {
	m.measureLocked()
	warn := m.o.Warn
	if warn <= 0 {
		warn = m.capacity / warnPart
	}
	free := max(m.capacity-m.granted, 0)
	tight := len(m.queue) > 0 || free < warn
	if tight == m.tight {
		return
	}
	m.tight = tight
	if tight {
		m.o.Log.Warn("pool is tight: idle volumes give their headroom back", "free", free, "capacity", m.capacity, "waiting", len(m.queue))
		m.noteLocked(Event{Kind: EventTight, Bytes: free})
		return
	}
	m.o.Log.Info("pool is not tight any more", "free", free, "capacity", m.capacity)
	m.noteLocked(Event{Kind: EventTightNoMore, Bytes: free})
}

// ReduceVolume makes a volume shorter, because its holder gives space back that it
// does not use. See [VolumeReduceRequest]. One that is preallocated keeps its space.
func (m *Manager) ReduceVolume(ctx context.Context, r VolumeReduceRequest) (VolumeReply, error) {
	v, err := m.find(r.Header, r.VolumeRef)
	if err != nil {
		return VolumeReply{}, err
	}
	if err := m.whole(v); err != nil {
		return VolumeReply{}, err
	}
	if r.To < 0 || r.To > r.From {
		return VolumeReply{}, errorf(CodeInvalid, "reduce %s from %d to %d bytes: expected a smaller size", v.name(), r.From, r.To)
	}
	defer m.giving(v)()
	if err := m.take(ctx, v); err != nil {
		return VolumeReply{}, err
	}
	defer func() { <-v.sem }()
	if err := ctx.Err(); err != nil { // its holder has gone: nothing is to be given back for it
		return VolumeReply{}, err
	}
	if err := m.reducible(v, r); err != nil {
		return VolumeReply{}, err
	}
	if to := roundUp(max(r.To, 1), m.unit()); to < r.From && v.meta().Type != Preallocated {
		if err := m.reduce(v, r.From, to); err != nil {
			return VolumeReply{}, err
		}
	}
	return VolumeReply{Header: m.header(r.Header), Volume: m.describe(v)}, nil
}

// giving says, until the function that it returns is called, that a volume becomes shorter.
// Its holder may die meanwhile: the next one may not begin to write to what goes.
func (m *Manager) giving(v *volume) (done func()) {
	add := func(n int) {
		m.mu.Lock()
		defer m.mu.Unlock()
		v.giving += n
	}
	add(1)
	return func() { add(-1) }
}

// reducible compares: a request that is about another state of the volume than the
// present one is refused.
func (m *Manager) reducible(v *volume, r VolumeReduceRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case v.gone:
		return goneError(v)
	case v.meta().wireFormat() == FormatRaw:
		return errorf(CodeInvalid, "reduce %s: a raw volume is all data", v.name())
	case r.SPMEpoch != m.ident.epoch || r.Changes != v.changes || r.From != v.size: // and the store compares with what there is
		return errorf(CodeStale, "reduce %s: the request is about %d bytes after %d changes in epoch %d, and it has %d after %d in epoch %d: look it up again",
			v.name(), r.From, r.Changes, r.SPMEpoch, v.size, v.changes, m.ident.epoch)
	}
	return nil
}

// reduce sets. The caller has v.sem. What becomes of space that is given back is
// decided when it is known that it was.
func (m *Manager) reduce(v *volume, from, to int64) error {
	size, err := m.store.reduce(context.WithoutCancel(m.ctx), v, from, to)
	v.unsynced = err != nil
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.reserveLocked(v, max(m.store.length(v, from), size)) // the next request makes sure of it
		m.o.Log.Error("reduction failed", "volume", v.name(), "uuid", v.id, "from", from, "to", to, "error", err)
		return internal(err, "reduce %s to %d bytes", v.name(), to)
	}
	m.reserveLocked(v, size)
	m.wakeLocked()
	m.o.Log.Info("volume gave space back", "volume", v.name(), "uuid", v.id, "from", from, "to", size,
		"granted", m.granted, "capacity", m.capacity)
	return nil
}
