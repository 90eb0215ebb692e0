package vsock

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Where the kernel has no vsock, the error says what is missing.
func TestListen(t *testing.T) {
	l, err := Listen(unix.VMADDR_PORT_ANY)
	if errors.Is(err, errors.ErrUnsupported) {
		require.ErrorContains(t, err, "this kernel has no vsock")
		return
	}
	require.NoError(t, err)
	ended := make(chan error)
	go func() {
		_, err := l.Accept()
		ended <- err
	}()
	require.NoError(t, l.Close())
	require.ErrorIs(t, <-ended, net.ErrClosed)
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
}

// A host cannot connect to itself everywhere, so the listener and its connections
// are shown to work with another address family below them.
func TestConn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
	require.NoError(t, unix.Listen(fd, backlog))
	l := newListener(fd, Addr{unix.VMADDR_CID_ANY, 10809})
	defer l.Close()
	require.Equal(t, "any:10809", l.Addr().String())
	require.Equal(t, "vsock", l.Addr().Network())

	accepted := make(chan net.Conn)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	a, err := net.Dial("unix", path)
	require.NoError(t, err)
	defer a.Close()
	b := <-accepted
	_, err = a.Write([]byte("ping"))
	require.NoError(t, err)
	p := make([]byte, 4)
	_, err = io.ReadFull(b, p)
	require.NoError(t, err)
	require.Equal(t, "ping", string(p))
	require.NoError(t, b.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	_, err = b.Read(p)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, b.(*conn).CloseWrite())
	_, err = a.Read(p)
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, b.Close())
	require.ErrorIs(t, b.Close(), os.ErrClosed)
}
