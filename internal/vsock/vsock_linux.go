// Package vsock listens on a socket between a virtual machine and its host
// (vsock(7)). It knows nothing of what is spoken over it.
//
// Package net does not know the address family, so a connection is a file of the
// runtime's poller, with the addresses put beside it.
package vsock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Addr is one end: a context id, which names the host or a machine, and a port.
type Addr struct{ CID, Port uint32 }

// Network is "vsock".
func (Addr) Network() string { return "vsock" }

func (a Addr) String() string {
	if a.CID == unix.VMADDR_CID_ANY {
		return fmt.Sprintf("any:%d", a.Port)
	}
	return fmt.Sprintf("%d:%d", a.CID, a.Port)
}

// backlog is how many connections may wait to be accepted.
const backlog = 128

// Listen listens for every other context on a port. The error of a kernel without
// vsock says so, and is errors.ErrUnsupported.
func Listen(port uint32) (net.Listener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, fmt.Errorf("vsock port %d: this kernel has no vsock: load the module vhost_vsock on a host, "+
			"vmw_vsock_virtio_transport in a guest: %w", port, errors.ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("vsock port %d: %w", port, os.NewSyscallError("socket", err))
	}
	err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}))
	if err == nil {
		err = os.NewSyscallError("listen", unix.Listen(fd, backlog))
	}
	if err != nil {
		_ = unix.Close(fd) // the first error is the one that counts
		return nil, fmt.Errorf("vsock port %d: %w", port, err)
	}
	return newListener(fd, Addr{unix.VMADDR_CID_ANY, port}), nil
}

type listener struct {
	file  *os.File
	addr  Addr
	ended atomic.Bool // by Close
}

// newListener takes over a socket that listens and does not block.
func newListener(fd int, addr Addr) *listener {
	return &listener{file: os.NewFile(uintptr(fd), addr.String()), addr: addr}
}

func (l *listener) Addr() net.Addr { return l.addr }

// Close ends an Accept that waits.
func (l *listener) Close() error {
	l.ended.Store(true)
	return l.closed(l.file.Close())
}

// Accept waits in the poller for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return nil, l.closed(err)
	}
	var from unix.Sockaddr
	fd, acceptErr := -1, error(nil)
	err = raw.Read(func(s uintptr) bool {
		for {
			fd, from, acceptErr = unix.Accept4(int(s), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if !errors.Is(acceptErr, unix.EINTR) && !errors.Is(acceptErr, unix.ECONNABORTED) {
				return !errors.Is(acceptErr, unix.EAGAIN)
			}
		}
	})
	if err == nil {
		err = os.NewSyscallError("accept", acceptErr)
	}
	if err != nil {
		return nil, l.closed(err)
	}
	remote := Addr{}
	if vm, ok := from.(*unix.SockaddrVM); ok {
		remote = Addr{vm.CID, vm.Port}
	}
	return &conn{os.NewFile(uintptr(fd), remote.String()), l.addr, remote}, nil
}

// closed says what package net says of an error after Close.
func (l *listener) closed(err error) error {
	if err != nil && l.ended.Load() {
		return net.ErrClosed
	}
	return err
}

// conn is a connection; os.File has the rest, deadlines and SyscallConn too.
type conn struct {
	*os.File
	local, remote Addr
}

var _ net.Conn = (*conn)(nil)

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// CloseWrite tells the other side that nothing more comes.
func (c *conn) CloseWrite() error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var shutErr error
	if err := raw.Control(func(fd uintptr) { shutErr = unix.Shutdown(int(fd), unix.SHUT_WR) }); err != nil {
		return err
	}
	return os.NewSyscallError("shutdown", shutErr)
}
