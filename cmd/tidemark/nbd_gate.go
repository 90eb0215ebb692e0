package main

import (
	"net"
	"sync"
	"sync/atomic"
)

// A gate is a listener with qemu-nbd's rules about clients: at most so many at a
// time, of which the next one waits to be accepted, and unless it is to persist
// it says when the last one has gone. A connection counts as a client for the
// latter from its first byte on: somebody who only looks whether anybody answers
// ends nothing.
type gate struct {
	net.Listener
	slots  chan struct{} // a place for each client; nil is no limit
	closed chan struct{}
	idle   chan struct{} // closed when the last client has gone
	once   sync.Once

	persistent bool

	mu      sync.Mutex // guards what follows
	clients int        // that have sent something
}

func newGate(l net.Listener, limit int, persistent bool) *gate {
	g := &gate{Listener: l, persistent: persistent, closed: make(chan struct{}), idle: make(chan struct{})}
	if limit > 0 {
		g.slots = make(chan struct{}, limit)
	}
	return g
}

// Idle is closed when the last client has gone; never if the gate persists.
func (g *gate) Idle() <-chan struct{} { return g.idle }

// Accept waits for a place, then for a connection.
func (g *gate) Accept() (net.Conn, error) {
	if err := g.enter(); err != nil {
		return nil, err
	}
	c, err := g.Listener.Accept()
	if err != nil {
		g.leave()
		return nil, err
	}
	return g.wrap(c), nil
}

// Close stops listening, and ends an Accept that waits for a place.
func (g *gate) Close() error {
	g.once.Do(func() { close(g.closed) })
	return g.Listener.Close()
}

func (g *gate) enter() error {
	if g.slots == nil {
		return nil
	}
	select {
	case g.slots <- struct{}{}:
		return nil
	case <-g.closed:
		return net.ErrClosed
	}
}

func (g *gate) leave() {
	if g.slots != nil {
		<-g.slots
	}
}

func (g *gate) arrived() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.clients++
}

func (g *gate) gone() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.clients--; g.clients > 0 || g.persistent {
		return
	}
	select {
	case <-g.idle:
	default:
		close(g.idle)
	}
}

// wrap makes c tell the gate what becomes of it. The concrete types are embedded
// so that everything else that a socket is able to do (writev, half close,
// SyscallConn) stays in sight of the server, which may also move the bytes itself
// (Bare): a seat only wants to know of the first one, and of the end.
func (g *gate) wrap(c net.Conn) net.Conn {
	switch c := c.(type) {
	case *net.UnixConn:
		return &gatedUnix{UnixConn: c, seat: seat{gate: g}}
	case *net.TCPConn:
		return &gatedTCP{TCPConn: c, seat: seat{gate: g}}
	}
	return &gatedConn{Conn: c, seat: seat{gate: g}}
}

type gatedUnix struct {
	*net.UnixConn
	seat seat
}

func (c *gatedUnix) Read(p []byte) (int, error) { return c.seat.read(c.UnixConn.Read(p)) }
func (c *gatedUnix) Close() error               { return c.seat.release(c.UnixConn.Close()) }
func (c *gatedUnix) Bare() net.Conn             { return c.UnixConn }

type gatedTCP struct {
	*net.TCPConn
	seat seat
}

func (c *gatedTCP) Read(p []byte) (int, error) { return c.seat.read(c.TCPConn.Read(p)) }
func (c *gatedTCP) Close() error               { return c.seat.release(c.TCPConn.Close()) }
func (c *gatedTCP) Bare() net.Conn             { return c.TCPConn }

type gatedConn struct {
	net.Conn
	seat seat
}

func (c *gatedConn) Read(p []byte) (int, error) { return c.seat.read(c.Conn.Read(p)) }
func (c *gatedConn) Close() error               { return c.seat.release(c.Conn.Close()) }

// A seat is a connection's place at the gate.
type seat struct {
	gate    *gate
	counted atomic.Bool // as a client
	once    sync.Once
}

// read passes the result of a read on, and counts the client at its first byte.
func (s *seat) read(n int, err error) (int, error) {
	if n > 0 && !s.counted.Load() && s.counted.CompareAndSwap(false, true) {
		s.gate.arrived()
	}
	return n, err
}

// release passes the result of a close on, and gives the place back, once.
func (s *seat) release(err error) error {
	s.once.Do(func() {
		if s.counted.Swap(true) {
			s.gate.gone()
		}
		s.gate.leave()
	})
	return err
}
