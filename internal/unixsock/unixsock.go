//go:build linux

// Package unixsock makes listening unix sockets that are safe to wait for and
// safe to leave behind.
//
// A socket appears at its path in one step, listening, with its final mode and
// group: whoever waits for the path may connect as soon as it is there. So call
// Listen when everything behind the socket is ready. A socket on which nobody
// answers any more is replaced; one on which somebody does, and anything that is
// not a socket, is refused. It knows nothing of what is spoken over a socket.
//
// How it appears:
//
//	0  lock the directory (flock), so that two that find the same stale socket do
//	   not remove each other's new one
//	1  a path that exists: connect; refused (ECONNREFUSED) means stale: unlink
//	2  bind and listen in a private directory (0700) beside the path; chmod, chown
//	3  rename without replacing: of two that start together one wins
//
// What a crash leaves: before 3 the private directory, .NAME-*, which nothing
// looks at; after it a stale socket, which the next Listen replaces.
package unixsock

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// PathMax is the longest path of a unix socket in bytes, without the NUL that
// ends it (sun_path in unix(7)).
const PathMax = 107

// dialTimeout bounds the question whether somebody answers. A live server whose
// queue of connections is full makes us wait; that is an answer too.
const dialTimeout = time.Second

// Options of a socket. The zero value works.
type Options struct {
	// Mode are the permission bits; 0 means 0600. Connecting needs write.
	Mode fs.FileMode
	// Group is the number of the group that the socket belongs to; 0 means
	// that of the process.
	Group int
}

// Listen makes a listening socket at path. Closing the listener removes it. A
// path on which another process answers is an error that wraps
// [block.ErrInUse].
func Listen(path string, o Options) (net.Listener, error) {
	if len(path) == 0 || len(path) > PathMax {
		return nil, fmt.Errorf("socket %s: expected a path of 1 to %d bytes, found %d: choose another one", path, PathMax, len(path))
	}
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	defer unlock()
	if err := clearStale(path); err != nil {
		return nil, err
	}
	l, err := listen(path, o)
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return l, nil
}

// lockDir does step 0. A file system without such locks is as good as one where
// nobody else starts at this moment.
func lockDir(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	_ = unix.Flock(int(d.Fd()), unix.LOCK_EX)
	return func() { d.Close() }, nil
}

// listen does steps 2 and 3.
func listen(path string, o Options) (net.Listener, error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // empty, and private
	l, err := listenIn(dir, o)
	if err != nil {
		return nil, err
	}
	if err := publish(filepath.Join(dir, "s"), path); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &listener{UnixListener: l, path: path, info: info}, nil
}

// clearStale removes a socket at path that nobody listens on.
func clearStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("socket %s: %w", path, err)
	case info.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("socket %s: expected a socket or nothing there, found what is not a socket (%v): choose another path", path, info.Mode())
	}
	c, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		c.Close() //nolint:errcheck // nothing was sent
		return fmt.Errorf("socket %s: %w: another process answers on it: stop that one, or choose another path", path, block.ErrInUse)
	}
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	case errors.Is(err, unix.ENOENT): // removed in between
		return nil
	}
	return fmt.Errorf("socket %s: cannot tell whether somebody uses it; remove it if nobody does: %w", path, err)
}

// listenIn binds the socket s in dir through the directory's descriptor, so that
// the length of its path does not matter.
func listenIn(dir string, o Options) (*net.UnixListener, error) {
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
	if err := own(filepath.Join(dir, "s"), o); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// own sets the mode and the group. The group comes first, so that the mode
// never lets in the wrong one.
func own(path string, o Options) error {
	if o.Group != 0 {
		if err := os.Lchown(path, -1, o.Group); err != nil {
			return fmt.Errorf("give it to group %d: %w", o.Group, err)
		}
	}
	mode := o.Mode.Perm()
	if mode == 0 {
		mode = 0o600
	}
	return os.Chmod(path, mode)
}

// publish renames, but never over something that has appeared meanwhile where
// the file system is able to tell.
func publish(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return os.Rename(from, to)
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w: another process has just made it", block.ErrInUse)
	}
	return err
}

// A listener removes its socket, if that is still its own, when it is closed.
type listener struct {
	*net.UnixListener
	path string
	info fs.FileInfo
}

// Addr is the path at which the socket appeared.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: l.path} }

// Close removes the socket and stops listening. Later calls do nothing to a
// socket that another process has made there since.
func (l *listener) Close() error {
	if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.info) {
		os.Remove(l.path) //nolint:errcheck // a stale socket is replaced anyway
	}
	return l.UnixListener.Close()
}
