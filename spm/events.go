package spm

import (
	"context"
	"time"
)

// eventsKept is how many events a manager remembers.
const eventsKept = 256

// events are what has happened to the pool since the manager started, the last of
// it. It is guarded by Manager.mu.
type events struct {
	last int64 // the number of the newest; they begin with 1
	kept []Event
	more chan struct{} // closed and replaced when there is one more; nil: nobody watches
}

// noteLocked remembers an event, and wakes who watches.
func (m *Manager) noteLocked(e Event) {
	m.events.last++
	e.Number, e.Time = m.events.last, m.o.Now().UTC()
	if len(m.events.kept) == eventsKept {
		m.events.kept = append(m.events.kept[:0], m.events.kept[1:]...)
	}
	m.events.kept = append(m.events.kept, e)
	if m.events.more != nil {
		close(m.events.more)
		m.events.more = nil
	}
}

// noteWaitLocked notes that the wait at a place has begun or is over.
func (m *Manager) noteWaitLocked(kind string, p *place, granted bool) {
	m.noteLocked(Event{
		Kind: kind, Name: p.v.name(), VolumeUUID: p.v.id.String(), Bytes: max(p.need-p.v.size, 0),
		Since: p.since.UTC(), Granted: granted,
	})
}

// WatchPool returns the events after one, or waits for the next.
func (m *Manager) WatchPool(ctx context.Context, r PoolWatchRequest) (PoolWatchReply, error) {
	if err := m.check(r.Header); err != nil {
		return PoolWatchReply{}, err
	}
	if r.WaitMS < 0 {
		return PoolWatchReply{}, errorf(CodeInvalid, "watch: wait_ms is %d, expected a number that is not negative", r.WaitMS)
	}
	over := time.NewTimer(time.Duration(r.WaitMS) * time.Millisecond)
	defer over.Stop()
	for {
		reply, more := m.eventsAfter(r.After)
		reply.Header = m.header(r.Header)
		if len(reply.Events) > 0 || r.WaitMS == 0 {
			return reply, nil
		}
		select {
		case <-more:
		case <-over.C:
			return reply, nil
		case <-ctx.Done():
			return reply, context.Cause(ctx)
		case <-m.ctx.Done():
			return reply, m.stopping()
		}
	}
}

// eventsAfter returns the events after the one of that number. A number that has
// not been given yet is of a manager before this one: then it is all of them.
func (m *Manager) eventsAfter(number int64) (r PoolWatchReply, more <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if number > m.events.last {
		number = 0
	}
	r = PoolWatchReply{Events: []Event{}, Last: m.events.last, Tight: m.tight}
	for _, e := range m.events.kept {
		if e.Number > number {
			r.Events = append(r.Events, e)
		}
	}
	if m.events.more == nil {
		m.events.more = make(chan struct{})
	}
	return r, m.events.more
}
