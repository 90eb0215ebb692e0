package nbd

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Server serves exports to clients. Its methods are safe for concurrent use.
type Server struct {
	opts     Options
	buffers  buffers
	counters counters
	inFlight *pool          // bytes of requests in progress
	held     *pool          // bytes of requests that wait for space
	requests sync.Pool      // of *request, for the off-load
	tls      *tls.Config    // of every connection; nil: none is encrypted
	taken    atomic.Int32   // sockets that keep a thread
	wg       sync.WaitGroup // connections

	connectionBytes int           // inFlightBytesMax, but in tests
	overGrace       time.Duration // overGrace, but in tests
	handshakeGrace  time.Duration // handshakeGrace, but in tests

	mu        sync.Mutex // guards what follows
	exports   []*export  // in the order of AddExport
	listeners map[net.Listener]struct{}
	conns     map[*connection]struct{}
	undecided list.List // of conns, those that have chosen no export, the oldest first
	nextID    uint64
	full      bool // at the limit; said so in the log
	stopping  bool
}

// NewServer returns a server without exports and listeners.
func NewServer(o Options) *Server {
	o = o.withDefaults()
	return &Server{
		opts:      o,
		inFlight:  newPool(o.MaxInFlightBytes),
		held:      newPool(o.MaxInFlightBytes),
		tls:       serverTLS(o.TLS),
		listeners: map[net.Listener]struct{}{},
		conns:     map[*connection]struct{}{},

		connectionBytes: inFlightBytesMax,
		overGrace:       overGrace,
		handshakeGrace:  handshakeGrace,
	}
}

// Serve accepts connections from l until Shutdown is called, then returns nil,
// or until l fails. It closes l. It may be called for several listeners.
func (srv *Server) Serve(l net.Listener) error {
	defer l.Close()
	if !srv.track(l) {
		return fmt.Errorf("nbd: serve %s: %w", l.Addr(), ErrShutdown)
	}
	defer srv.untrack(l)
	for delay := time.Duration(0); ; {
		c, err := l.Accept()
		if err == nil {
			delay = 0
			srv.start(c)
			continue
		}
		if srv.isStopping() {
			return nil
		}
		if !isTemporary(err) {
			return fmt.Errorf("nbd: accept on %s: %w", l.Addr(), err)
		}
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		srv.opts.Logger.Warn("nbd: accepting failed, trying again", "error", err, "in", delay)
		time.Sleep(delay)
	}
}

// isTemporary: the process has no descriptor left, or the client was faster.
func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

func (srv *Server) track(l net.Listener) bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.stopping {
		return false
	}
	srv.listeners[l] = struct{}{}
	return true
}

func (srv *Server) untrack(l net.Listener) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	delete(srv.listeners, l)
}

func (srv *Server) isStopping() bool {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return srv.stopping
}

// Shutdown stops the server as the package comment says, and returns when all
// connections have ended. When ctx ends first, they are closed and the error
// tells that requests may still be running in the Device. A stopped server
// cannot be used again.
func (srv *Server) Shutdown(ctx context.Context) error {
	srv.stop()
	ended := make(chan struct{})
	go func() {
		srv.wg.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
	}
	n := srv.closeAll()
	return fmt.Errorf("nbd: shutdown: %d connections still had requests in progress: %w", n, context.Cause(ctx))
}

func (srv *Server) stop() {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.stopping = true
	for l := range srv.listeners {
		_ = l.Close()
	}
	for c := range srv.conns {
		if c.session != nil {
			c.session.drain()
		} else {
			_ = c.SetDeadline(time.Now().Add(srv.handshakeGrace))
		}
	}
}

func (srv *Server) closeAll() int {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for c := range srv.conns {
		if c.session != nil {
			c.session.kill(ErrShutdown)
		}
		_ = c.Close()
	}
	return len(srv.conns)
}

// Stats returns the numbers as they are now.
func (srv *Server) Stats() Stats {
	srv.mu.Lock()
	open := len(srv.conns)
	srv.mu.Unlock()
	c := &srv.counters
	return Stats{
		Connections: open, ConnectionsTotal: c.connections.Load(), Refused: c.refused.Load(),
		Requests: c.requestStats(), BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(),
		Errors: c.failures.Load(), Panics: c.panics.Load(),
		HeldNow: int(c.held.Load()), HeldTotal: c.heldTotal.Load(),
	}
}
