package nbd

import (
	"container/list"
	"context"
	"errors"
	"log/slog"
	"net"
	"time"
)

// connection is one that was accepted. The rest is guarded by Server.mu.
type connection struct {
	net.Conn
	session   *session      // nil in the handshake
	undecided *list.Element // in Server.undecided; nil when an export was chosen
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
		level := slog.LevelDebug
		if errors.Is(err, errTLS) { // whoever gives out certificates wants to know
			level = slog.LevelInfo
		}
		log.Log(context.Background(), level, "nbd: the handshake ended without an export", "remote", c.RemoteAddr().String(), "reason", err)
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
