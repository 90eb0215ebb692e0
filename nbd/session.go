package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// session is the transmission phase of one connection.
type session struct {
	srv    *Server
	export *export
	conn   net.Conn
	log    *slog.Logger
	terms  terms

	ctx    context.Context // of every request; cancelled when the connection is dead
	cancel context.CancelCauseFunc
	budget *budget
	wg     sync.WaitGroup // request goroutines; only the reader adds
	dead   atomic.Bool    // the connection has ended or will at once; nothing more is written
	done   chan struct{}  // closed when no request is left

	wmu sync.Mutex // guards writing to conn

	mu       sync.Mutex // guards what follows
	idle     sync.Cond  // working became 0, or the session died
	working  int        // requests that were accepted before draining
	draining bool
	held     map[*request]struct{}
	over     int   // of them, those over the limit
	reason   error // why the session ended, the first one
}

// errDisconnect: the client said goodbye.
var errDisconnect = errors.New("the client disconnected")

func newSession(srv *Server, e *export, conn net.Conn, log *slog.Logger, t terms) *session {
	s := &session{
		srv: srv, export: e, conn: conn, log: log, terms: t,
		budget: newBudget(srv.inFlight, srv.connectionBytes), done: make(chan struct{}), held: map[*request]struct{}{},
	}
	s.idle.L = &s.mu
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s
}

// run serves requests until the connection ends, waits for those in progress,
// and returns why it ended.
func (s *session) run(r io.Reader) error {
	err := s.readRequests(bufio.NewReaderSize(r, readerBytes))
	if errors.Is(err, errDisconnect) {
		s.disconnect(err)
	}
	s.kill(err)
	s.wg.Wait()
	s.export.leave(s)
	close(s.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
}

// kill makes the session dead: requests that wait are cancelled, nothing is
// read or written any more. It may be called by anyone, at any time.
func (s *session) kill(reason error) {
	s.mu.Lock()
	if s.reason == nil {
		s.reason = reason
	}
	s.dead.Store(true)
	s.idle.Broadcast()
	s.mu.Unlock()
	s.cancel(errGone)
	s.budget.close()
	_ = s.conn.Close()
}

// drain refuses new requests with ESHUTDOWN, cancels what is held, and closes
// the connection when the requests in progress have been answered. It does not
// wait for that. The second call does nothing.
func (s *session) drain() {
	if s.beginDrain() {
		go func() { // ends with the session at the latest
			s.waitIdle()
			s.hangUp()
		}()
	}
}

func (s *session) beginDrain() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining || s.dead.Load() {
		return false
	}
	s.draining = true
	for rq := range s.held {
		rq.space.end(ErrShutdown)
	}
	return true
}

func (s *session) waitIdle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.working > 0 && !s.dead.Load() {
		s.idle.Wait()
	}
}

// hangUp ends the connection so that the last replies arrive: nothing more is
// written, and the reader gets a moment to take what the client still sends.
func (s *session) hangUp() {
	s.mu.Lock()
	if s.reason == nil {
		s.reason = ErrShutdown
	}
	s.mu.Unlock()
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if w, ok := s.conn.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
		time.AfterFunc(lingerMax, func() { _ = s.conn.Close() })
		return
	}
	_ = s.conn.Close()
}

// disconnect waits for the requests that are in progress after DISC. If the
// client does not wait, its held requests are cancelled.
func (s *session) disconnect(reason error) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, s.conn)
		s.kill(reason)
	}()
	s.waitIdle()
	s.kill(reason)
	<-gone
}

// readRequests is the reader. It returns why there is nothing more to read.
func (s *session) readRequests(r *bufio.Reader) (err error) {
	defer recoverTo(&err, s.srv, s.log)
	var b [requestBytes]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return fmt.Errorf("reading a request: %w", err)
		}
		h, err := parseRequest(b[:])
		if err != nil {
			return err
		}
		if h.cmd == cmdDisc {
			return errDisconnect
		}
		if err := s.accept(r, h); err != nil {
			return err
		}
	}
}

// accept takes a request in: the decision, its place in the budget, its
// payload. It returns an error if the connection cannot go on.
func (s *session) accept(r *bufio.Reader, h requestHeader) error {
	s.srv.counters.request(h.cmd)
	rq := &request{s: s, header: h, received: time.Now()}
	if rq.action, rq.failure = decide(h, s.terms); rq.failure == nil {
		rq.cost = cost(h, rq.action)
	}
	if !s.budget.acquire(rq.cost) {
		return errGone
	}
	if err := s.readPayload(r, rq); err != nil {
		s.release(rq)
		return fmt.Errorf("reading the payload of a write: %w", err)
	}
	s.admit(rq)
	s.dispatch(rq)
	return nil
}

// admit makes a request that has been read completely one that a drain waits
// for, unless the drain came first. A request that is still arriving delays
// nobody.
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

// readPayload takes the payload from the stream, and drops it if the request
// has failed already.
func (s *session) readPayload(r *bufio.Reader, rq *request) error {
	n := rq.header.payload()
	if n == 0 {
		return nil
	}
	if rq.failure != nil {
		return discard(r, n)
	}
	rq.buf = s.srv.buffers.get(int(n))
	if n > ownBytes {
		if err := s.conn.SetReadDeadline(time.Now().Add(s.srv.transferTime(int(n)))); err != nil {
			return err
		}
		defer func() { _ = s.conn.SetReadDeadline(time.Time{}) }() // fails only with the connection
	}
	got, err := io.ReadFull(r, rq.buf.data)
	s.srv.counters.bytesIn.Add(uint64(got))
	return err
}

// discard drops n bytes, in pieces because an int may have 32 bits.
func discard(r *bufio.Reader, n uint32) error {
	for n > 0 {
		got, err := r.Discard(int(min(n, 1<<30)))
		if n -= uint32(got); err != nil {
			return err
		}
	}
	return nil
}

// dispatch has the request executed and answered.
func (s *session) dispatch(rq *request) {
	s.wg.Go(func() {
		defer s.release(rq)
		var err error
		defer func() {
			if errors.Is(err, errPanic) {
				rq.buf = nil // whoever the Device left behind may still use it
			}
			if err != nil {
				s.kill(err)
			}
		}()
		defer recoverTo(&err, s.srv, s.log)
		err = s.serve(rq)
	})
}

// release gives back everything that a request has, after its reply.
func (s *session) release(rq *request) {
	if rq.space != nil {
		rq.space.free()
	}
	s.srv.buffers.put(rq.buf)
	s.mu.Lock()
	if rq.holds > 0 { // a Device that panicked, or forgot
		rq.holds = 0
		s.endHoldLocked(rq)
	}
	s.mu.Unlock()
	s.budget.release(rq.cost)
	s.finished(rq)
}

func (s *session) finished(rq *request) {
	if !rq.working {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.working--; s.working == 0 {
		s.idle.Broadcast()
	}
}

var errPanic = errors.New("panic")

// recoverTo turns a panic into an error, which ends this connection only. It
// must be deferred itself.
func recoverTo(err *error, srv *Server, log *slog.Logger) {
	if p := recover(); p != nil {
		srv.counters.panics.Add(1)
		log.Error("nbd: panic; only this connection ends", "panic", p, "stack", string(debug.Stack()))
		*err = fmt.Errorf("%w: %v", errPanic, p)
	}
}
