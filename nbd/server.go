package nbd

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Options of a Server. The zero value works.
type Options struct {
	// Logger gets one message for each change of state, none for requests.
	// Nil discards.
	Logger *slog.Logger
	// MaxConnections that are open at a time; 0 is 100. One above it takes the
	// place of the oldest that has not chosen an export yet, and is closed at once
	// if all have. With 1, exports do not promise multi-conn.
	MaxConnections int
	// HandshakeTimeout for everything up to transmission; 0 is 10 s.
	HandshakeTimeout time.Duration
	// WriteTimeout is how long a client may leave a reply unread, or take to send
	// the rest of a payload of more than 1 MiB, plus a second for every MiB; 0 is
	// 30 s.
	WriteTimeout time.Duration
	// Patience is how long a write may wait for space, counted from when it was
	// received, until it is answered ENOSPC; 0 is 20 s, negative is unlimited.
	// The clock is Go's monotonic one, which stands still while the host sleeps.
	Patience time.Duration
	// MaxInFlightBytes bounds the memory for requests in progress of all
	// connections together, beyond 1 MiB that each of them has for itself; 0 is
	// 1 GiB, and less than 32 MiB is taken as that. A connection that would exceed
	// it is not read from until there is room. Writes that wait for space may have
	// as much again; one that would exceed it is treated as one above MaxHeld.
	MaxInFlightBytes int64
	// MaxHeld is how many requests of one connection may wait for space with
	// all their patience at a time; the next is answered ENOSPC after 2 s. 0 is
	// 8; negative is none, each is answered ENOSPC at once.
	MaxHeld int
	// TLS requires every client to begin with STARTTLS; nil serves without
	// encryption and refuses STARTTLS. Set ClientAuth to RequireAndVerifyClientCert
	// and ClientCAs to serve only clients that have a certificate.
	TLS *tls.Config
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.MaxConnections = defaulted(o.MaxConnections, connectionsDefault)
	o.HandshakeTimeout = defaulted(o.HandshakeTimeout, handshakeDefault)
	o.WriteTimeout = defaulted(o.WriteTimeout, writeTimeoutDefault)
	o.Patience = defaulted(o.Patience, patienceDefault)
	o.MaxInFlightBytes = defaulted(o.MaxInFlightBytes, serverBytesDefault)
	o.MaxHeld = max(defaulted(o.MaxHeld, heldDefault), 0)
	return o
}

func defaulted[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}

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

	mu        sync.Mutex // guards what follows
	exports   []*export  // in the order of AddExport
	listeners map[net.Listener]struct{}
	conns     map[*connection]struct{}
	undecided list.List // of conns, those that have chosen no export, the oldest first
	nextID    uint64
	full      bool // at the limit; said so in the log
	stopping  bool
}

// connection is one that was accepted. The rest is guarded by Server.mu.
type connection struct {
	net.Conn
	session   *session      // nil in the handshake
	undecided *list.Element // in Server.undecided; nil when an export was chosen
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
	}
}

// AddExport offers a Device. A name that is there already is ErrInUse.
func (srv *Server) AddExport(x Export) error {
	e, err := newExport(x)
	if err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.stopping {
		return fmt.Errorf("nbd: export %q: %w", x.Name, ErrShutdown)
	}
	for _, other := range srv.exports {
		if other.Name == x.Name {
			return fmt.Errorf("nbd: export %q: the name is %w; remove that export first", x.Name, ErrInUse)
		}
	}
	srv.exports = append(srv.exports, e)
	return nil
}

// RemoveExport withdraws an export, drains its connections as Shutdown does,
// and waits until none of its requests is left, so that the Device may be
// closed. When ctx ends first, the connections are closed and the error tells
// that requests may still be running.
func (srv *Server) RemoveExport(ctx context.Context, name string) error {
	e := srv.takeExport(name)
	if e == nil {
		return fmt.Errorf("nbd: there is no export %q", name)
	}
	sessions := e.remove()
	for _, s := range sessions {
		s.drain()
	}
	for i, s := range sessions {
		select {
		case <-s.done:
		case <-ctx.Done():
			for _, s := range sessions[i:] {
				s.kill(ErrShutdown)
			}
			return fmt.Errorf("nbd: export %q still has requests in progress: %w", name, context.Cause(ctx))
		}
	}
	return nil
}

func (srv *Server) takeExport(name string) *export {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for i, e := range srv.exports {
		if e.Name == name {
			srv.exports = append(srv.exports[:i:i], srv.exports[i+1:]...)
			return e
		}
	}
	return nil
}

// findExport resolves a client's name; the empty one is the default.
func (srv *Server) findExport(name string) *export {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for _, e := range srv.exports {
		if e.Name == name {
			return e
		}
	}
	if name == "" && len(srv.exports) > 0 {
		return srv.exports[0]
	}
	return nil
}

func (srv *Server) listExports() []*export {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	return append([]*export(nil), srv.exports...)
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

// ServeConn serves one connection in the background, and closes it. It is for
// connections that do not come from a listener.
func (srv *Server) ServeConn(c net.Conn) { srv.start(c) }

// start serves c in a goroutine of its own, unless there are too many.
func (srv *Server) start(nc net.Conn) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.stopping {
		_ = nc.Close()
		return
	}
	if len(srv.conns) < srv.opts.MaxConnections {
		srv.full = false
	} else if !srv.makeRoomLocked(nc) {
		return
	}
	srv.nextID++
	c := &connection{Conn: nc}
	srv.conns[c] = struct{}{}
	c.undecided = srv.undecided.PushBack(c)
	srv.counters.connections.Add(1)
	// Under the lock, so that Shutdown's shorter deadline comes later.
	_ = c.SetDeadline(time.Now().Add(srv.opts.HandshakeTimeout))
	log := srv.opts.Logger.With("connection", srv.nextID)
	srv.wg.Go(func() {
		defer srv.forget(c)
		srv.serve(c, log)
	})
}

// makeRoomLocked closes the oldest connection that has chosen no export, so that
// whoever only connects keeps nobody out; or, if there is none, the new one, and
// reports false.
func (srv *Server) makeRoomLocked(c net.Conn) bool {
	srv.counters.refused.Add(1)
	if !srv.full {
		srv.full = true
		srv.opts.Logger.Warn("nbd: connections are refused: the limit is reached", "limit", srv.opts.MaxConnections)
	}
	oldest := srv.undecided.Front()
	if oldest == nil {
		_ = c.Close()
		return false
	}
	victim, _ := oldest.Value.(*connection)
	srv.dropLocked(victim)
	_ = victim.Close()
	return true
}

// dropLocked forgets a connection; doing it twice is harmless.
func (srv *Server) dropLocked(c *connection) {
	srv.decidedLocked(c)
	delete(srv.conns, c)
}

func (srv *Server) decidedLocked(c *connection) {
	if c.undecided != nil {
		srv.undecided.Remove(c.undecided)
		c.undecided = nil
	}
}

// decided keeps a connection that has chosen an export from giving way to others,
// and fails if it has done so already.
func (srv *Server) decided(c *connection) error {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if _, ok := srv.conns[c]; !ok {
		return net.ErrClosed
	}
	srv.decidedLocked(c)
	return nil
}

// transferTime is how long a client may take to send or read n bytes.
func (srv *Server) transferTime(n int) time.Duration {
	return srv.opts.WriteTimeout + time.Duration(n)*time.Second/writeRateMin
}

func (srv *Server) forget(c *connection) {
	_ = c.Close()
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.dropLocked(c)
}

// serve leads a connection through its two phases.
func (srv *Server) serve(c *connection, log *slog.Logger) {
	h := srv.newHandshake(c, c.Conn, log)
	s, before, err := h.run()
	if h.secure != nil {
		log = log.With("tls", h.peerName())
	}
	if s == nil {
		log.Debug("nbd: the handshake ended without an export", "reason", err)
		return
	}
	_ = c.SetDeadline(time.Time{}) // the handshake's
	log.Info("nbd: connected", "export", s.export.Name, "remote", c.RemoteAddr().String())
	err = s.run(before)
	log.Info("nbd: disconnected", "export", s.export.Name, "reason", err)
}

// promote makes a handshake a session, which Shutdown drains.
func (srv *Server) promote(c *connection, s *session) error {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.stopping {
		return ErrShutdown
	}
	c.session = s
	return nil
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
			_ = c.SetDeadline(time.Now().Add(handshakeGrace))
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
