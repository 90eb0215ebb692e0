package spm

import (
	"log/slog"
	"time"

	"github.com/google/uuid"
)

// Where a pool warns, and how far below it must come until it stops: otherwise
// each volume that comes and goes there would be an event.
const (
	warnAt     = 0.85
	criticalAt = 0.95
	hysteresis = 0.02
)

// The levels of a domain: how much of it is granted. An [EventLevel] says that it has
// reached one.
const (
	LevelOK       = "ok"
	LevelWarn     = "warn"
	LevelCritical = "critical"
)

// levelOf is the level of a pool of which the part used is granted, and which had
// level now.
func levelOf(now string, used, warn, critical float64) string {
	if now == LevelCritical {
		critical -= hysteresis
	}
	if now == LevelCritical || now == LevelWarn {
		warn -= hysteresis
	}
	switch {
	case used >= critical:
		return LevelCritical
	case used >= warn:
		return LevelWarn
	}
	return LevelOK
}

// reserveMax and reservePart are the largest reserve, in bytes, and the part of the
// capacity that it is otherwise. A pool that is smaller than reservePools has none:
// a part of it would be the space of a whole disk.
const (
	reserveMax   = 1 << 30
	reservePart  = 64
	reservePools = 8 * chunkSize
)

// reserveSize is what a pool keeps for merging and removing; unit is what its
// grants are multiples of.
func reserveSize(configured, capacity, unit int64) int64 {
	switch {
	case configured < 0:
		return 0
	case configured > 0:
		return configured
	case capacity < reservePools:
		return 0
	}
	return min(max(2*unit, capacity/reservePart), reserveMax)
}

// reserveOfLocked is the pool's.
func (m *Manager) reserveOfLocked() int64 { return reserveSize(m.o.Reserve, m.capacity, m.unit()) }

// How far back a meter looks, and how far its samples are apart at least.
const (
	meterWindow = time.Hour
	meterStep   = 10 * time.Second
)

// A meter tells how fast a number grows.
type meter struct{ samples []sample }

type sample struct {
	at    time.Time
	value int64
}

// add is told the number at a time. What is older than the window is dropped, but
// for the sample at its begin.
func (g *meter) add(at time.Time, value int64) {
	n := len(g.samples)
	if n > 1 && at.Sub(g.samples[n-2].at) < meterStep {
		g.samples[n-1] = sample{at, value}
		return
	}
	g.samples = append(g.samples, sample{at, value})
	for len(g.samples) > 2 && at.Sub(g.samples[1].at) >= meterWindow {
		g.samples = g.samples[1:]
	}
}

// rate is how much the number has grown in a second, over the window at most, as of
// now.
func (g *meter) rate(now time.Time) float64 {
	if len(g.samples) == 0 {
		return 0
	}
	first, last := g.samples[0], g.samples[len(g.samples)-1]
	for _, s := range g.samples {
		if now.Sub(s.at) >= meterWindow {
			first = s
		}
	}
	span := min(now.Sub(first.at), meterWindow)
	if span < time.Second {
		return 0
	}
	return float64(last.value-first.value) / span.Seconds()
}

// timeToFull is in how many seconds free bytes are gone at that growth; 0: never.
func timeToFull(free int64, growth float64) float64 {
	if growth <= 0 {
		return 0
	}
	return float64(max(free, 0)) / growth
}

// measureLocked looks at the watermarks and at the growth, whenever what is granted
// has changed.
func (m *Manager) measureLocked() {
	m.meter.add(m.o.Now(), m.granted)
	if m.capacity <= 0 {
		return
	}
	level := levelOf(m.level, float64(m.granted)/float64(m.capacity), m.o.WarnAt, m.o.CriticalAt)
	before := m.level
	if m.level = level; level == before || before == "" && level == LevelOK {
		return
	}
	free := max(m.capacity-m.granted, 0)
	severity := slog.LevelInfo
	if level == LevelCritical {
		severity = slog.LevelWarn
	}
	m.o.Log.Log(m.ctx, severity, "space of the pool", "level", level, "was", before, "capacity", m.capacity, "granted", m.granted, "free", free)
	m.noteLocked(Event{Kind: EventLevel, Level: level, Bytes: free})
}

// refuseLocked is the error of a request for bytes that the domain has not, which says what
// to do, and tells who watches. The volume may be one that will not be made.
func (m *Manager) refuseLocked(id uuid.UUID, name string, bytes int64, format string, args ...any) error {
	m.noteLocked(Event{Kind: EventNoSpace, Name: name, VolumeUUID: id.String(), Bytes: bytes})
	more := "move an image to another domain" // the capacity of a domain stays
	switch {
	case m.store.kind() == typeGroup:
		more = "extend the volume group"
	case m.o.Capacity > 0:
		more = "raise the capacity"
	}
	return errorf(CodePoolFull, format+": remove a volume or %s", append(args, more)...)
}

// fullness is the part that is granted of what can be: 1 if nothing more can.
func fullness(granted, free int64) float64 {
	if free <= 0 {
		return 1
	}
	return float64(granted) / float64(granted+free)
}

// worse is the higher of two levels.
func worse(a, b string) string {
	if levelRank(b) > levelRank(a) {
		return b
	}
	return a
}

// stats is how the domain is used. What a volume's image uses is what the host has
// allocated for it, as far as nobody knows better. What is free the host's file system
// can carry, too: one that is full is critical, whatever has been granted.
func (m *Manager) stats() DomainStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	free := max(m.capacity-m.granted, 0)
	level := m.level
	if carried, err := m.store.carry(m.volumes); err == nil && carried < free {
		free = carried
		level = worse(level, levelOf("", fullness(m.granted, free), m.o.WarnAt, m.o.CriticalAt))
	}
	s := DomainStats{
		Capacity: m.capacity, Granted: m.granted, Free: free,
		Reserve: m.reserveOfLocked(), Level: level, Waiting: len(m.queue), Volumes: len(m.volumes),
		Growth: m.meter.rate(m.o.Now()),
	}
	for _, v := range m.volumes {
		if meta := v.meta(); v.damaged == nil && meta.VolType != Internal {
			s.Virtual += meta.Capacity
		}
		s.Used += m.usedLocked(v)
	}
	if m.capacity > 0 {
		s.Ratio = float64(s.Virtual) / float64(m.capacity)
	}
	s.TimeToFull = timeToFull(s.Free, s.Growth)
	return s
}

// usedLocked is how much of its volume an image uses, in bytes: its server knows it, but of a
// raw one, all of which it may write to.
func (m *Manager) usedLocked(v *volume) int64 {
	if v.used > 0 && v.meta().Format != Raw {
		return min(v.used, v.size)
	}
	var d Volume
	m.store.describe(v, &d)
	return min(d.Allocated, v.size)
}

// learnUsed is told by who serves a volume how much of it its image uses.
func (m *Manager) learnUsed(id uuid.UUID, used int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.volumes[id]; v != nil {
		v.used = used
	}
}
