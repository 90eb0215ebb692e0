//go:build linux

package fusefs

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"tidemark/internal/block"
)

// A request is one request of the kernel in progress. It is the context that
// the Device gets, and the Hold that the Device tells when the request waits for
// space. It is used again for later requests, so that a request allocates
// nothing; a Device does not keep the context of a call that has returned.
//
// The context ends when the request waits for space and its caller is killed or
// the connection to the kernel is gone, and when the mount is closed. It has no
// deadline (rule 21): a write that a page cache above has accepted must not fail
// for lack of space.
type request struct {
	pool *requests
	ctx  context.Context // the request itself, as block.WithHold makes it

	done      chan struct{} // closed by cancel
	cancelled atomic.Bool

	unique      uint64        // of this use: the kernel's name for it; guarded by requests.mu
	thread      uint32        // of this use: the caller's, 0 if it is not visible from here
	interrupted chan struct{} // closed when the caller has got a signal
	signalled   bool          // interrupted is closed; guarded by requests.mu

	mu      sync.Mutex     // guards what follows; a leaf
	holds   int            // Begin less End
	over    chan struct{}  // tells watch to end; nil without one
	watcher sync.WaitGroup // watch
}

func newRequest(pool *requests) *request {
	r := &request{pool: pool, done: make(chan struct{}), interrupted: make(chan struct{})}
	r.ctx = block.WithHold(r, r)
	return r
}

// Deadline is described at context.Context. There is none.
func (r *request) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done is described at context.Context.
func (r *request) Done() <-chan struct{} { return r.done }

// Err is described at context.Context.
func (r *request) Err() error {
	if r.cancelled.Load() {
		return context.Canceled
	}
	return nil
}

// Value is described at context.Context. There is none.
func (r *request) Value(any) any { return nil }

// cancel ends the context.
func (r *request) cancel() {
	if r.cancelled.CompareAndSwap(false, true) {
		close(r.done)
	}
}

// Begin is described at block.Hold. It is refused once the mount is being closed.
func (r *request) Begin() error {
	if r.pool.closing() {
		return errClosing
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holds++; r.holds == 1 {
		r.over = make(chan struct{})
		r.watcher.Go(r.watch)
	}
	return nil
}

// End is described at block.Hold.
func (r *request) End() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holds--; r.holds == 0 {
		close(r.over)
		r.watcher.Wait() // it must not cancel the next use
	}
}

// watch cancels the request if nobody is left who waits for it. A signal alone
// is no reason: a write to a file does not fail because of one, and the kernel
// does not tell whether it is one that kills.
func (r *request) watch() {
	select {
	case <-r.over:
		return
	case <-r.interrupted:
	}
	tick := time.NewTicker(signalPoll)
	defer tick.Stop()
	for !r.pool.abandoned(r.thread) {
		select {
		case <-r.over:
			return
		case <-tick.C:
		}
	}
	r.cancel()
}

// requests are the requests of a mount, in progress or waiting to be used again.
// Once it is stopped it hands out none, and when the last one is back nothing of
// the mount touches a Device any more.
type requests struct {
	// abandoned reports whether nobody waits for a request of that thread.
	abandoned func(thread uint32) bool

	mu    sync.Mutex // guards what follows; a leaf
	state requestState
	gone  bool // the connection has ended: nobody waits for anything
	all   map[*request]struct{}
	free  []*request    // those of all that are not in progress
	idle  chan struct{} // closed when it is stopped and none is in progress
}

// requestState only grows.
type requestState int

const (
	serving  requestState = iota
	draining              // none may wait for space
	stopped               // there are no more
)

func newRequests(abandoned func(thread uint32) bool) *requests {
	return &requests{abandoned: abandoned, all: map[*request]struct{}{}, idle: make(chan struct{})}
}

// begin returns a request, or nil when the mount is stopped.
func (q *requests) begin(unique uint64, thread uint32) *request {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.state == stopped {
		return nil
	}
	var r *request
	if n := len(q.free); n > 0 {
		r, q.free = q.free[n-1], q.free[:n-1]
	} else {
		r = newRequest(q)
		q.all[r] = struct{}{}
	}
	r.unique, r.thread = unique, thread
	if q.gone {
		r.signalLocked()
	}
	return r
}

// signalLocked notes that the caller has got a signal.
func (r *request) signalLocked() {
	if !r.signalled {
		r.signalled = true
		close(r.interrupted)
	}
}

// interrupt reports false if no such request is in progress.
func (q *requests) interrupt(unique uint64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for r := range q.all { // it is rare
		if r.unique == unique {
			r.signalLocked()
			return true
		}
	}
	return false
}

// abort tells all requests that the connection has ended.
func (q *requests) abort() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gone = true
	for r := range q.all {
		if r.unique != 0 {
			r.signalLocked()
		}
	}
}

// end gives a request back.
func (q *requests) end(r *request) {
	q.mu.Lock()
	defer q.mu.Unlock()
	r.unique = 0 // which the kernel gives to none
	if r.signalled || r.cancelled.Load() {
		delete(q.all, r)
	} else {
		q.free = append(q.free, r)
	}
	q.checkIdleLocked()
}

func (q *requests) closing() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.state != serving
}

// drain ends the requests that wait for space, and lets no other begin to.
func (q *requests) drain() { q.advance(draining) }

// stop refuses all requests from now on, and waits for those in progress.
func (q *requests) stop() {
	q.advance(stopped)
	<-q.idle
}

func (q *requests) advance(to requestState) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if to <= q.state {
		return
	}
	q.state = to
	for _, r := range q.free {
		delete(q.all, r)
	}
	q.free = nil
	for r := range q.all {
		r.cancel()
	}
	q.checkIdleLocked()
}

func (q *requests) checkIdleLocked() {
	if q.state == stopped && len(q.all) == len(q.free) {
		select {
		case <-q.idle:
		default:
			close(q.idle)
		}
	}
}
