package spm

import (
	"cmp"
	"slices"
	"time"
)

// A place is a volume's in the queue of a full pool. Requests for the same
// volume share it. It outlives the request that took it for a moment, so that a
// client whose long poll ended may come back to it.
type place struct {
	v        *volume
	need     int64 // of the request that looked last, bytes
	since    time.Time
	arrived  int64       // how many places had been taken before
	requests int         // that wait in it now
	expiry   *time.Timer // runs while none does
}

// placeOfLocked returns v's place and whether others are before it. A volume
// without a place is behind everybody of its priority, and before those of a lower
// one.
func (m *Manager) placeOfLocked(v *volume) (p *place, behind bool) {
	i := slices.IndexFunc(m.queue, func(p *place) bool { return p.v == v })
	if i < 0 {
		return nil, len(m.queue) > 0 && m.queue[0].v.meta().Priority >= v.meta().Priority
	}
	return m.queue[i], i > 0
}

// byTurn is the order in which places are served: the higher priority first, and
// among equals who came first.
func byTurn(a, b *place) int {
	return cmp.Or(cmp.Compare(b.v.meta().Priority, a.v.meta().Priority), cmp.Compare(a.arrived, b.arrived))
}

// sortQueueLocked is called when a place has been taken, or a priority has changed.
func (m *Manager) sortQueueLocked() { slices.SortFunc(m.queue, byTurn) }

// enterLocked takes a place for a request of v, or joins the one v has.
func (m *Manager) enterLocked(v *volume, need int64) *place {
	p, _ := m.placeOfLocked(v)
	if p == nil {
		p = &place{v: v, since: m.o.Now(), arrived: m.arrivals}
		m.arrivals++
		m.queue = append(m.queue, p)
		m.sortQueueLocked()
		m.o.Log.Warn("pool is full: a volume waits for space", "volume", v.name(), "uuid", v.id,
			"need", need, "size", v.size, "missing", need-v.size, "capacity", m.capacity, "granted", m.granted,
			"waiting", len(m.queue))
		p.need = need
		m.noteWaitLocked(EventWaits, p, false)
		m.judgeLocked()
	}
	if p.expiry != nil {
		p.expiry.Stop()
		p.expiry = nil
	}
	p.need = need
	p.requests++
	return p
}

// leave says how a request left its place.
type leave uint8

const (
	served    leave = iota // it has its answer
	abandoned              // its client has gone
	timedOut               // its wait is over, its client may come back
)

// leaveLocked ends a request's stay. The last one to go ends the place, at once
// or after the grace.
func (m *Manager) leaveLocked(p *place, how leave) {
	p.requests--
	switch {
	case p.requests > 0:
	case how == timedOut:
		p.expiry = time.AfterFunc(m.o.Grace, func() { m.expire(p) })
	default:
		m.dropLocked(p, how == served)
	}
}

// expire ends a place that nobody came back to.
func (m *Manager) expire(p *place) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.requests == 0 && p.expiry != nil {
		m.dropLocked(p, false)
	}
}

// dropLocked ends a place and lets the next one look.
func (m *Manager) dropLocked(p *place, granted bool) {
	i := slices.Index(m.queue, p)
	if i < 0 {
		return
	}
	m.queue = slices.Delete(m.queue, i, i+1)
	m.o.Log.Warn("a volume does not wait for space any more", "volume", p.v.name(), "uuid", p.v.id,
		"need", p.need, "size", p.v.size, "after", m.o.Now().Sub(p.since), "granted", granted, "waiting", len(m.queue))
	m.noteWaitLocked(EventWaitsNoMore, p, granted)
	m.judgeLocked()
	m.wakeLocked()
}

// waitingLocked describes the queue.
func (m *Manager) waitingLocked() []Waiting {
	out := make([]Waiting, 0, len(m.queue))
	for _, p := range m.queue {
		out = append(out, p.waiting())
	}
	return out
}

func (p *place) waiting() Waiting {
	return Waiting{
		Name: p.v.name(), VolumeUUID: p.v.id.String(),
		Bytes: max(p.need-p.v.size, 0), Since: p.since.UTC(),
	}
}
