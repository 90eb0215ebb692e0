//go:build unix

package nbd

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// load is a client that costs as little as possible: one thread, no allocation,
// requests that are sent together as far as the depth allows.
type load struct {
	fd    int
	depth int
	reply int    // bytes of a reply
	sizes []int  // of the messages, which repeat
	out   []byte // one after the other
	in    []byte
	part  int // of a reply that has begun
	next  int // message
}

// newLoad connects to a unix socket and prepares depth different requests of a
// kind, at random places in the first span bytes.
func newLoad(t testing.TB, address string, h requestHeader, span int64, depth int) *load {
	t.Helper()
	conn, err := net.Dial("unix", address)
	require.NoError(t, err)
	err = negotiating(t.Context(), conn, nil, func(n *negotiation) error {
		_, err := n.infoOrGo(optGo, "")
		return err
	})
	require.NoError(t, err)
	l := &load{fd: blockingCopy(t, conn), depth: depth, reply: simpleBytes, in: make([]byte, 1<<20)}
	require.NoError(t, conn.Close())
	t.Cleanup(l.close)
	if h.cmd == cmdRead {
		l.reply += int(h.length)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	payload := make([]byte, h.payload())
	for range max(depth, 64) {
		h.cookie++
		if h.length > 0 {
			h.offset = uint64(rng.Int64N(span/int64(h.length))) * h.length
		}
		before := len(l.out)
		l.out = append(h.append(l.out), payload...)
		l.sizes = append(l.sizes, len(l.out)-before)
	}
	return l
}

// close hangs up; doing it twice is harmless.
func (l *load) close() {
	if l.fd >= 0 {
		_ = syscall.Close(l.fd)
		l.fd = -1
	}
}

func blockingCopy(t testing.TB, conn net.Conn) int {
	t.Helper()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	require.NoError(t, err)
	fd := -1
	require.NoError(t, raw.Control(func(old uintptr) { fd, err = syscall.Dup(int(old)) }))
	require.NoError(t, err)
	require.NoError(t, syscall.SetNonblock(fd, false))
	return fd
}

// run has n requests answered.
func (l *load) run(n int) error {
	for sent, done := 0, 0; done < n; {
		if k := min(l.depth-(sent-done), n-sent); k > 0 {
			if err := l.send(k); err != nil {
				return err
			}
			sent += k
		}
		k, err := l.receive()
		if err != nil {
			return err
		}
		done += k
	}
	return nil
}

// send sends k requests, in one call unless the end of the prepared ones comes
// between.
func (l *load) send(k int) error {
	for k > 0 {
		m := min(k, len(l.sizes)-l.next)
		size := l.sizes[0]
		p := l.out[l.next*size : (l.next+m)*size]
		for len(p) > 0 {
			n, err := syscall.Write(l.fd, p)
			if err != nil && err != syscall.EINTR {
				return err
			}
			p = p[max(n, 0):]
		}
		k -= m
		l.next = (l.next + m) % len(l.sizes)
	}
	return nil
}

// receive takes what there is, and counts the replies that end in it.
func (l *load) receive() (int, error) {
	n, err := syscall.Read(l.fd, l.in)
	switch {
	case err == syscall.EINTR:
		return 0, nil
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	if l.part == 0 {
		if m, e := be.Uint32(l.in), be.Uint32(l.in[4:]); n >= 8 && (m != magicSimple || e != 0) {
			return 0, fmt.Errorf("reply %#x with error %d", m, e)
		}
	}
	l.part += n
	k := l.part / l.reply
	l.part %= l.reply
	return k, nil
}
