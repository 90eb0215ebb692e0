package nbd

import (
	"errors"
	"sync/atomic"
	"time"
)

// This file is about the bytes that all connections share (Options.MaxInFlightBytes).
// Many who ask and do not read what they get, or begin to send and do not go on, can
// have all of them for as long as WriteTimeout. Whoever does read and send does not
// wait for that: while one of those waits, those who do not give way.

// errCrowding: somebody else needed what the connection kept.
var errCrowding = errors.New("the client is slow, and others wait for the memory that its requests take")

// A transfer is what has to go to the client, or come from it, at present.
type transfer struct{ due atomic.Int64 } // since clockStart, in ns; 0: nothing

// clockStart makes times that fit an atomic integer, of the monotonic clock.
var clockStart = time.Now()

// begin notes a transfer of n bytes.
func (t *transfer) begin(n int) {
	t.due.Store(int64(time.Since(clockStart) + crowdedGrace + time.Duration(n)*time.Second/crowdedRate))
}

func (t *transfer) end() { t.due.Store(0) }

// lateIn reports whether it takes longer than it may while others wait, if it goes on
// for d.
func (t *transfer) lateIn(d time.Duration) bool {
	due := t.due.Load()
	return due != 0 && int64(time.Since(clockStart)+d) > due
}

// lateIn reports the same of what a client reads and sends.
func (s *session) lateIn(d time.Duration) bool {
	return s.out.transfer.lateIn(d) || s.payload.lateIn(d)
}

// crowded is called while a session waits for what all share. Unless it is on the way
// to be late itself, those who are, and have something of it, are ended.
func (srv *Server) crowded(waits *session) {
	if waits.lateIn(crowdedGrace * 9 / 10) {
		return
	}
	for _, s := range srv.sessions() {
		if s != waits && s.lateIn(0) && s.budget.shares() {
			s.kill(errCrowding)
		}
	}
}

func (srv *Server) sessions() (all []*session) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for c := range srv.conns {
		if c.session != nil {
			all = append(all, c.session)
		}
	}
	return all
}
