package spm

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// How many events are kept: of waiting for space, and of all kinds.
const (
	waitsKept  = 256
	eventsKept = 1024
)

// A journal is what has happened since the process started, the last of it.
type journal struct {
	waits eventLog // for Pool.watch: what has to do with waiting for space
	all   eventLog
}

func newJournal() *journal {
	return &journal{waits: eventLog{keep: waitsKept}, all: eventLog{keep: eventsKept}}
}

func (j *journal) add(e Event) {
	j.all.add(e)
	switch e.Kind {
	case EventWaits, EventWaitsNoMore, EventTight, EventTightNoMore:
		j.waits.add(e)
	}
}

// An eventLog is a numbered stream of events, the last of it.
type eventLog struct {
	keep int

	mu   sync.Mutex
	last int64 // the number of the newest; they begin with 1
	kept []Event
	more chan struct{} // closed and replaced when there is one more; nil: nobody watches
}

// add remembers an event, and wakes who watches.
func (l *eventLog) add(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	e.Number = l.last
	if len(l.kept) == l.keep {
		l.kept = append(l.kept[:0], l.kept[1:]...)
	}
	l.kept = append(l.kept, e)
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
}

// after returns the events after the one of that number, and the number of the
// newest. A number that has not been given yet is of a process before this one:
// then it is all of them.
func (l *eventLog) after(number int64) (found []Event, last int64, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if number > l.last {
		number = 0
	}
	i, _ := slices.BinarySearchFunc(l.kept, number+1, func(e Event, n int64) int { return int(e.Number - n) })
	if l.more == nil {
		l.more = make(chan struct{})
	}
	return slices.Clone(l.kept[i:]), l.last, l.more
}

// wait is after, and waits while there is none, until over is closed or ctx or
// stopped end. Then there is none.
func (l *eventLog) wait(ctx context.Context, number int64, over <-chan time.Time, stopped <-chan struct{}) ([]Event, int64, error) {
	for {
		found, last, more := l.after(number)
		if len(found) > 0 {
			return found, last, nil
		}
		select {
		case <-more:
		case <-over:
			return []Event{}, last, nil
		case <-ctx.Done():
			return []Event{}, last, context.Cause(ctx)
		case <-stopped:
			return []Event{}, last, errStopped
		}
	}
}

// noteLocked remembers an event of the domain.
func (m *Manager) noteLocked(e Event) {
	e.Time, e.DomainUUID = m.o.Now().UTC(), m.ident.domain.String()
	m.o.journal.add(e)
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
	reply, err := m.o.journal.watch(ctx, r, m.ctx.Done())
	if errors.Is(err, errStopped) {
		err = m.stopping()
	}
	reply.Header, reply.Tight = m.header(r.Header), m.isTight()
	return reply, err
}

var errStopped = errors.New("nobody waits for events any more")

// watch answers Pool.watch, but for who answers.
func (j *journal) watch(ctx context.Context, r PoolWatchRequest, stopped <-chan struct{}) (reply PoolWatchReply, err error) {
	if r.WaitMS < 0 {
		return reply, errorf(CodeInvalid, "watch: wait_ms is %d, expected a number that is not negative", r.WaitMS)
	}
	over := time.NewTimer(time.Duration(r.WaitMS) * time.Millisecond)
	defer over.Stop()
	reply.Events, reply.Last, err = j.waits.wait(ctx, r.After, over.C, stopped)
	return reply, err
}

func (m *Manager) isTight() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tight
}
