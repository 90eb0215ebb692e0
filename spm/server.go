package spm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// socketPathMax is the longest path of a unix socket in bytes, without the NUL
// that ends it.
const socketPathMax = 107

// Listen makes the API socket at path with mode 0600. It refuses a socket that
// somebody answers on, replaces one that nobody does, and touches nothing else.
// The socket appears at path in one step, listening; make it when the pool is
// open. Closing the listener removes it.
func Listen(path string) (net.Listener, error) {
	if len(path) > socketPathMax {
		return nil, fmt.Errorf("socket %s: its path has %d bytes, at most %d are possible: choose a shorter one",
			path, len(path), socketPathMax)
	}
	if err := clearStale(path); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".spm-")
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // empty, and private
	l, err := listenIn(dir)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	if err := publish(filepath.Join(dir, "s"), path); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	info, err := os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, err
	}
	return &listener{Listener: l, path: path, info: info}, nil
}

// clearStale removes a socket at path that nobody listens on.
func clearStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("%s exists and is not a socket: choose another path", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
		return fmt.Errorf("socket %s: another process answers on it: stop that one or choose another path: %w", path, block.ErrInUse)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("socket %s: cannot tell whether somebody uses it: %w", path, err)
	}
	return os.Remove(path)
}

// listenIn binds the socket s in dir through the directory's descriptor, so that
// the length of its path does not matter.
func listenIn(dir string) (net.Listener, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/s", d.Fd())})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(filepath.Join(dir, "s"), 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// publish renames, but never over something that has appeared meanwhile where
// the file system is able to tell.
func publish(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return os.Rename(from, to)
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("another process has just made it: %w", block.ErrInUse)
	}
	return err
}

// A listener removes its socket, if that is still its own, when it is closed.
type listener struct {
	net.Listener
	path string
	info fs.FileInfo
}

func (l *listener) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: l.path} }

func (l *listener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.info) {
		os.Remove(l.path) //nolint:errcheck // a stale socket is replaced anyway
	}
	return l.Listener.Close()
}

// Serve answers on l until Close, and then returns nil. It closes l.
func (m *Manager) Serve(l net.Listener) error {
	s := &http.Server{
		Handler:           newDispatcher(m),
		BaseContext:       func(net.Listener) context.Context { return m.ctx },
		ReadHeaderTimeout: 10 * time.Second,
	}
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return errors.Join(m.stopping(), l.Close())
	}
	m.servers = append(m.servers, s)
	m.mu.Unlock()
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
