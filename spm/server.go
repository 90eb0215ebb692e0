package spm

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"tidemark/internal/unixsock"
)

// Listen makes the API socket at path, as package unixsock says. Make it when
// the pool is open. Closing the listener removes it. Who may connect may remove
// volumes.
func Listen(path string, o unixsock.Options) (net.Listener, error) {
	return unixsock.Listen(path, o)
}

// NewServer serves h; the requests end with ctx.
func NewServer(ctx context.Context, h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// Serve answers on l with a handler until Close, and then returns nil. It closes l.
// Requests that wait are answered before their contexts end.
func (h *Host) Serve(l net.Listener, handler http.Handler) error {
	s := NewServer(h.requests, handler, h.o.Log)
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return errors.Join(h.unmanaged(), l.Close())
	}
	h.servers = append(h.servers, s)
	h.mu.Unlock()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// shutDown lets requests in progress have their answers, which come soon: those
// that wait have been told to go.
func shutDown(servers []*http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var errs []error
	for _, s := range servers {
		if s.Shutdown(ctx) != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}
