package nbd

import (
	"context"
	"fmt"
	"sync"
	"time"

	"tidemark/internal/block"
)

// request is one request from its header to its reply.
type request struct {
	s        *session
	header   requestHeader
	action   action
	failure  *Error // what decide said, or nil
	received time.Time
	buf      *buffer // payload of WRITE, data of READ
	cost     int     // bytes in the budget
	working  bool    // counted in session.working
	run      func()  // work, made once

	reply []byte                                // without data
	data  []byte                                // of READ, behind it
	head  [extChunkBytes + offsetHoleBytes]byte // memory for a short reply
	next  *request                              // in an outbox

	extents []block.Extent // memory for isHole

	space *spaceContext // of a request that may wait for space
	holds int           // guarded by session.mu: Begins without their End
	over  *time.Timer   // guarded by session.mu: ends one that is held over the limit
}

// context returns what the Device is given: for a request that may wait for
// space a context with the patience and the hold, otherwise the connection's.
func (rq *request) context() context.Context {
	if !mayWait(rq.header.cmd) {
		return rq.s.ctx
	}
	return block.WithHold(rq.space, rq)
}

// Begin is called by the Device when the request begins to wait for space. From
// then on it is in no budget.
func (rq *request) Begin() error {
	if err := rq.s.hold(rq); err != nil {
		return err
	}
	return nil
}

// End is called by the Device when the wait is over, whatever its end.
func (rq *request) End() { rq.s.unhold(rq) }

// hold counts rq as held, unless the connection is being drained. A held request
// is in no budget, so that others pass it. One that is over the limit stays in
// the budget and is ended soon: a pool that is only slow must not look full to
// a client with many writes on their way, and one that is full must not take all
// of QEMU's slots.
func (s *session) hold(rq *request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return fmt.Errorf("%w, and there is %w", ErrShutdown, block.ErrNoSpace)
	}
	if rq.holds == 0 {
		if err := s.beginHoldLocked(rq); err != nil {
			return err
		}
		s.held[rq] = struct{}{}
		s.srv.counters.held.Add(1)
		s.srv.counters.heldTotal.Add(1)
	}
	rq.holds++
	return nil
}

func (s *session) beginHoldLocked(rq *request) error {
	limit := s.srv.opts.MaxHeld
	full := fmt.Errorf("%w: as many requests as may wait for it do already, %d on this connection", block.ErrNoSpace, len(s.held))
	switch {
	case limit == 0:
		return full
	case len(s.held)-s.over < limit && s.srv.held.try(rq.cost):
		s.budget.release(rq.cost)
	default:
		s.over++
		rq.over = time.AfterFunc(s.srv.overGrace, func() { rq.space.end(full) })
	}
	return nil
}

func (s *session) unhold(rq *request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rq.holds--; rq.holds == 0 {
		s.endHoldLocked(rq)
	}
}

func (s *session) endHoldLocked(rq *request) {
	delete(s.held, rq)
	s.srv.counters.held.Add(-1)
	if rq.over != nil {
		rq.over.Stop()
		rq.over = nil
		s.over--
		return
	}
	s.srv.held.add(-rq.cost)
	s.budget.retake(rq.cost)
}

// spaceContext bounds the wait of a request for space: a deadline, and an
// explicit cancellation. Most requests never wait, so the timer and the
// channel are made when somebody asks for them first.
type spaceContext struct {
	parent   context.Context
	deadline time.Time // zero: none

	mu     sync.Mutex // guards what follows
	real   context.Context
	cancel context.CancelCauseFunc
	stop   context.CancelFunc // of the deadline
}

var _ context.Context = (*spaceContext)(nil)

// newSpaceContext makes the context of a request that was received at the
// given time; negative patience is unlimited.
func newSpaceContext(parent context.Context, received time.Time, patience time.Duration) *spaceContext {
	c := &spaceContext{parent: parent}
	if patience >= 0 {
		c.deadline = received.Add(patience)
	}
	return c
}

// Deadline is when the patience ends.
func (c *spaceContext) Deadline() (time.Time, bool) {
	if d, ok := c.parent.Deadline(); ok && (c.deadline.IsZero() || d.Before(c.deadline)) {
		return d, true
	}
	return c.deadline, !c.deadline.IsZero()
}

// Done starts the timer.
func (c *spaceContext) Done() <-chan struct{} { return c.materialize().Done() }

// Err is cheap as long as nothing has happened.
func (c *spaceContext) Err() error {
	if real := c.peek(); real != nil {
		return real.Err()
	}
	if c.parent.Err() == nil && (c.deadline.IsZero() || time.Now().Before(c.deadline)) {
		return nil
	}
	return c.materialize().Err() // from now on the answer is fixed
}

// Value also finds the cause of a cancellation, for context.Cause.
func (c *spaceContext) Value(key any) any {
	if real := c.peek(); real != nil {
		return real.Value(key)
	}
	return c.parent.Value(key)
}

func (c *spaceContext) peek() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.real
}

func (c *spaceContext) materialize() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.real != nil {
		return c.real
	}
	parent := c.parent
	if !c.deadline.IsZero() {
		parent, c.stop = context.WithDeadline(parent, c.deadline)
	}
	c.real, c.cancel = context.WithCancelCause(parent)
	return c.real
}

// end cancels the request because of cause.
func (c *spaceContext) end(cause error) {
	c.materialize()
	c.cancel(cause)
}

// free stops the timer, if there is one. The context is not used any more.
func (c *spaceContext) free() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.real == nil {
		return
	}
	c.cancel(nil)
	if c.stop != nil {
		c.stop()
	}
}
