package nbd

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

// The reader of a session: it takes requests in, batch by batch. It alone uses
// what is declared here.
type reader struct {
	in      *inbox
	replies replies // of this batch, not yet offered to the outbox

	admitted bool // this batch counts in session.working
	started  bool // something was given to the off-load, or begun, since the last yield
	begun    int  // writes since then
	counted  bool // the request at the start of the inbox is in the counters
	bytesIn  uint64
	bytesOut uint64
	requests [len(commandRules) + 1]uint64 // the last one: unknown
}

// readRequests returns why there is nothing more to read.
func (s *session) readRequests() (err error) {
	defer func() {
		if errors.Is(err, errPanic) { // whoever the Device left behind may still use them
			s.in.lose()
			s.replies = replies{}
		}
	}()
	defer recoverTo(&err, s.srv, s.log)
	for {
		large, need, err := s.readBatch()
		if err == nil && need == 0 {
			err = s.acceptLarge(large)
		} else if err == nil {
			err = s.wait(need)
		}
		if err != nil {
			return err
		}
	}
}

// yield lets what was given to the off-load go first. It comes before waiting for
// the client: a thread that waits in the kernel keeps its processor for a while.
func (s *session) yield() {
	if s.started {
		s.started, s.begun = false, 0
		runtime.Gosched()
	}
}

// wait waits for more of the next request.
func (s *session) wait(need int) error {
	s.yield()
	if err := s.in.fill(need); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	return nil
}

// readBatch takes in the requests that have arrived. What comes next is either a
// large write, of which it has taken the header, or needs so many bytes, of which
// the inbox has a part.
func (s *session) readBatch() (large requestHeader, need int, err error) {
	if head := requestHeaderBytes(s.terms.extended); len(s.in.unread()) < head {
		return large, head, nil
	}
	s.beginBatch()
	large, need, err = s.takeIn()
	s.endBatch() // not after a panic: the connection ends
	return large, need, err
}

func (s *session) takeIn() (large requestHeader, need int, err error) {
	extended := s.terms.extended
	head := requestHeaderBytes(extended)
	for {
		b := s.in.unread()
		if len(b) < head {
			return large, head, nil
		}
		h, err := parseRequest(b, extended)
		switch {
		case err != nil:
			return large, 0, err
		case s.dead.Load():
			return large, 0, errGone
		case h.cmd == cmdDisc:
			return large, 0, errDisconnect
		}
		s.count(h.cmd)
		n := h.payload()
		switch {
		case n > discardBytesMax:
			return large, 0, fmt.Errorf("a payload of %d bytes, expected at most %d", n, payloadBytesMax)
		case n > inlineBytesMax:
			s.skip(head)
			return h, 0, nil
		}
		end := head + int(n)
		if len(b) < end {
			return large, end, nil
		}
		s.skip(end)
		if err := s.accept(h, b[head:end]); err != nil {
			return large, 0, err
		}
	}
}

// skip leaves a request, or its header, behind.
func (s *session) skip(n int) {
	s.in.skip(n)
	s.counted = false
}

// beginBatch makes the batch something that a drain waits for, unless the drain
// came first. A request that is still arriving delays nobody.
func (s *session) beginBatch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.admitted = !s.draining
	if s.admitted {
		s.working++
	}
}

// endBatch lets go of everything before the reader waits.
func (s *session) endBatch() {
	s.offer()
	if s.admitted {
		s.finished()
	}
}

// offer lets the replies go that there are. Who has one is in the counters.
func (s *session) offer() {
	s.publish()
	if s.replies.buf != nil {
		s.out.offer(s.replies)
		s.replies = replies{}
	}
}

// count counts a request once, however often its beginning is looked at.
func (s *session) count(c command) {
	if !s.counted {
		s.counted = true
		s.requests[min(int(c), len(s.requests)-1)]++
	}
}

// publish adds the reader's own counts to those of the server, which all
// connections share.
func (s *session) publish() {
	c := &s.srv.counters
	for i, n := range s.requests {
		if n > 0 {
			c.requests[i].Add(n)
			s.requests[i] = 0
		}
	}
	c.bytesIn.Add(s.bytesIn)
	c.bytesOut.Add(s.bytesOut)
	s.bytesIn, s.bytesOut = 0, 0
}

// accept takes in a request that has arrived completely. It returns an error if
// the connection cannot go on.
func (s *session) accept(h requestHeader, payload []byte) error {
	a, failure := decideFiltered(h, payload, s.terms)
	if failure == nil && !s.admitted {
		failure = &Error{ESHUTDOWN, ErrShutdown.Error()}
	}
	if failure == nil {
		s.bytesIn += uint64(len(payload))
	}
	if !s.out.full.Load() {
		done := false
		if failure == nil {
			done, failure = s.inline(h, a, payload)
		}
		if done || failure != nil && s.refuse(h, failure) {
			return nil
		}
	}
	rq, err := s.newRequest(h, a, failure)
	if err != nil {
		return err
	}
	if failure == nil && h.cmd == cmdWrite && len(payload) > 0 {
		rq.buf = s.srv.buffers.get(len(payload))
		copy(rq.buf.data, payload)
	}
	s.handOver(rq)
	return nil
}

// acceptLarge takes in a write whose payload is above inlineBytesMax: it has its
// place in the budget before the payload is received.
func (s *session) acceptLarge(h requestHeader) error {
	a, failure := decideFiltered(h, nil, s.terms)
	rq, err := s.newRequest(h, a, failure)
	if err != nil {
		return err
	}
	if err := s.receivePayload(rq); err != nil {
		s.release(rq)
		return fmt.Errorf("reading the payload of a write: %w", err)
	}
	s.handOver(rq)
	return nil
}

// receivePayload takes the payload from the stream, and drops it if the request
// has failed already.
func (s *session) receivePayload(rq *request) error {
	n := rq.header.payload()
	if rq.failure != nil {
		return s.in.discard(uint32(n))
	}
	rq.buf = s.srv.buffers.get(int(n))
	if n > ownBytes {
		late := time.AfterFunc(s.srv.transferTime(int(n)), func() { s.kill(errSlow) })
		defer late.Stop()
	}
	s.payload.begin(int(n))
	defer s.payload.end()
	got, err := s.in.readFull(rq.buf.data)
	s.bytesIn += uint64(got)
	return err
}

// newRequest makes a request for the off-load and waits for its place in the
// budget.
func (s *session) newRequest(h requestHeader, a action, failure *Error) (*request, error) {
	n := 0
	if failure == nil {
		n = cost(h, a)
	}
	if !s.budget.tryAcquire(n) {
		s.offer() // what frees the budget may need the client to go on
		if !s.budget.acquire(n) {
			return nil, errGone
		}
	}
	rq := s.srv.takeRequest()
	rq.s, rq.header, rq.action, rq.failure, rq.cost, rq.received = s, h, a, failure, n, time.Now()
	return rq, nil
}

// handOver gives a request to the Device, if it begins it at once, or to the off-load.
func (s *session) handOver(rq *request) {
	s.admit(rq)
	s.publish() // before its reply
	if !s.begin(rq) {
		s.offload(rq)
	}
}

// admit makes a request one that a drain waits for, unless the drain came first.
func (s *session) admit(rq *request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		rq.failure = &Error{ESHUTDOWN, ErrShutdown.Error()}
		return
	}
	rq.working = true
	s.working++
}
