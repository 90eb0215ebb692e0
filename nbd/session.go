package nbd

import (
	"context"
	"errors"
	"fmt"
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

	ctx     context.Context // of every request; cancelled when the connection is dead
	cancel  context.CancelCauseFunc
	budget  *budget
	out     outbox
	payload transfer       // of a write that is being received
	wg      sync.WaitGroup // goroutines and writes that run may not leave behind; only the reader, and they, add
	answer  func()         // answerNow, made once
	dead    atomic.Bool    // the connection has ended or will at once
	done    chan struct{}  // closed when no request is left

	reader // the reader's own

	mu       sync.Mutex // guards what follows
	stream   stream     // changes once, when the reader begins
	idle     sync.Cond  // working became 0, or the session died
	working  int        // batches and requests that were accepted before draining
	draining bool
	held     map[*request]struct{}
	over     int   // of them, those over the limit
	reason   error // why the session ended, the first one
}

var (
	// errDisconnect: the client said goodbye.
	errDisconnect = errors.New("the client disconnected")
	// errSlow: the client did not send or read in time.
	errSlow = errors.New("the client is too slow")
)

func newSession(srv *Server, e *export, conn net.Conn, log *slog.Logger, t terms) *session {
	s := &session{
		srv: srv, export: e, conn: conn, log: log, terms: t, stream: streamOver(conn, &srv.buffers),
		done: make(chan struct{}), held: map[*request]struct{}{},
	}
	s.budget = newBudget(srv.inFlight, srv.connectionBytes, func() { srv.crowded(s) })
	s.idle.L = &s.mu
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.out = outbox{
		to: s.stream, pool: &srv.buffers, done: s.release, allowed: srv.transferTime,
		late: func() { s.kill(errSlow) }, broken: s.brokenBy, later: s.goLater,
	}
	s.out.changed.L = &s.out.mu
	s.answer = s.answerNow
	return s
}

func (s *session) brokenBy(err error) { s.kill(fmt.Errorf("writing a reply: %w", err)) }

// goLater runs f in a goroutine that run waits for.
func (s *session) goLater(f func()) {
	s.wg.Go(func() {
		var err error
		defer func() {
			if err != nil {
				s.kill(err)
			}
		}()
		defer recoverTo(&err, s.srv, s.log)
		f()
	})
}

// run serves requests until the connection ends, waits for those in progress,
// and returns why it ended. What was received before is the first that it reads.
func (s *session) run(before []byte) error {
	st := s.openStream()
	s.in = newInbox(st, &s.srv.buffers, before)
	err := s.readRequests()
	if errors.Is(err, errDisconnect) {
		s.disconnect(err)
	}
	s.kill(err)
	s.wg.Wait()
	s.publish()
	st.free()
	s.in.free()
	s.export.leave(s)
	close(s.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
}

// openStream takes the connection over from the handshake.
func (s *session) openStream() stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.dead.Load() {
		s.stream = openStream(s.conn, s.stream, &s.srv.taken)
		s.out.to = s.stream
	}
	return s.stream
}

func (s *session) hungUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stream.hungUp()
}

// closeStream ends everything that waits in the stream.
func (s *session) closeStream() {
	s.mu.Lock()
	st := s.stream
	s.mu.Unlock()
	_ = st.Close()
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
	s.out.close()
	s.closeStream()
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
	st := s.stream
	s.mu.Unlock()
	s.out.finish()
	if st.CloseWrite() == nil {
		time.AfterFunc(lingerMax, s.closeStream)
		return
	}
	s.closeStream() // not st, which may have been taken over meanwhile
}

// disconnect waits for the requests that are in progress after DISC. If the
// client does not wait, its held requests are cancelled.
func (s *session) disconnect(reason error) {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		s.in.drain()
		s.kill(reason)
	}()
	s.waitIdle()
	s.out.finish()
	s.kill(reason)
	<-gone
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
