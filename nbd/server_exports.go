package nbd

import (
	"context"
	"fmt"
)

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
