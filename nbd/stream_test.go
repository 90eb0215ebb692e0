package nbd

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// streamKinds are the ways in which the bytes of a connection move.
var streamKinds = []string{"socket", "polled", "plain", "tcp"}

// serveOver serves so that every connection has a stream of a kind.
func serveOver(t *testing.T, kind string, srv *Server, exports ...Export) *testServer {
	t.Helper()
	for _, e := range exports {
		require.NoError(t, srv.AddExport(e))
	}
	switch kind {
	case "polled":
		srv.taken.Store(blockingMax)
	case "plain":
		return serveListener(t, srv, func(l net.Listener) net.Listener { return opaque{l} })
	case "tcp":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		ts := serveListener(t, srv, func(unix net.Listener) net.Listener {
			require.NoError(t, unix.Close())
			return l
		})
		ts.network, ts.address = "tcp", l.Addr().String()
		return ts
	}
	return serveOn(t, srv)
}

// opaque hides what its connections are.
type opaque struct{ net.Listener }

func (l opaque) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return struct{ net.Conn }{c}, err
}

// streams returns the streams of all sessions.
func (srv *Server) streams() (ss []stream) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for c := range srv.conns {
		if c.session != nil {
			c.session.mu.Lock()
			ss = append(ss, c.session.stream)
			c.session.mu.Unlock()
		}
	}
	return ss
}

// descriptors counts the open ones of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("there is no /proc/self/fd")
	}
	return len(es)
}

// Up to blockingMax sockets are taken over; all work, and nothing is left of them.
func TestTakenSockets(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("sockets are taken over on Linux only")
	}
	before, goroutines := descriptors(t), runtime.NumGoroutine()
	t.Run("", func(t *testing.T) {
		const n = blockingMax + 5
		ts := serve(t, Options{MaxConnections: n}, Export{Device: newMemDevice(1 << 20)})
		var clients []*Client
		for range n {
			clients = append(clients, ts.dial(t, ClientOptions{}))
		}
		for _, c := range clients {
			require.NoError(t, c.WriteAt(t.Context(), make([]byte, 4096), 0, 0))
			require.NoError(t, c.Flush(t.Context()))
		}
		kinds := map[string]int{}
		for _, s := range ts.streams() {
			kinds[fmt.Sprintf("%T", s)]++
		}
		require.Equal(t, map[string]int{"*nbd.socket": blockingMax, "*nbd.polled": n - blockingMax}, kinds)
		for _, c := range clients[:n/2] {
			require.NoError(t, c.Close())
		}
		eventually(t, "half of them gone", func() bool { return ts.Stats().Connections == n-n/2 })
		require.EqualValues(t, blockingMax-n/2, ts.taken.Load())
		again := ts.dial(t, ClientOptions{})
		require.NoError(t, again.Flush(t.Context()))
		require.EqualValues(t, blockingMax-n/2+1, ts.taken.Load())
	})
	eventually(t, "all goroutines gone", func() bool { return runtime.NumGoroutine() <= goroutines })
	eventually(t, "all descriptors closed", func() bool { return descriptors(t) <= before })
}

// watched counts what a wrapper that only watches would see.
type watched struct {
	*net.UnixConn
	closed *atomic.Int32
}

func (c watched) Bare() net.Conn { return c.UnixConn }

func (c watched) Close() error {
	c.closed.Add(1)
	return c.UnixConn.Close()
}

type watching struct {
	net.Listener
	closed *atomic.Int32
}

func (l watching) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return watched{c.(*net.UnixConn), l.closed}, nil
}

// A wrapper that tells what it wraps keeps a socket from being slow, and learns
// about the end, not before it.
func TestWrapperOfASocket(t *testing.T) {
	srv := NewServer(Options{})
	require.NoError(t, srv.AddExport(Export{Device: newMemDevice(1 << 20)}))
	var closed atomic.Int32
	ts := serveListener(t, srv, func(l net.Listener) net.Listener { return watching{l, &closed} })
	c := ts.dial(t, ClientOptions{})
	require.NoError(t, c.Flush(t.Context()))
	if runtime.GOOS == "linux" {
		require.Equal(t, "*nbd.socket", fmt.Sprintf("%T", ts.streams()[0]))
	}
	require.Zero(t, closed.Load())
	require.NoError(t, c.Close())
	eventually(t, "told", func() bool { return closed.Load() > 0 })
	require.Nil(t, bareSocket(struct{ net.Conn }{c.conn}))
}

// Short replies over TCP are not kept back for more.
func TestRepliesAreNotDelayed(t *testing.T) {
	c := serveOver(t, "tcp", NewServer(Options{}), Export{Device: newMemDevice(1 << 20)}).dial(t, ClientOptions{})
	var took []time.Duration
	for range 31 { // Linux would wait for 200 ms each time
		start := time.Now()
		require.NoError(t, c.WriteAt(t.Context(), make([]byte, 512), 0, 0))
		require.NoError(t, c.Flush(t.Context()))
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	require.Less(t, took[15], 100*time.Millisecond, "the median: the machine is others' too")
}

// script is a stream that gives what each call is to read.
type script struct {
	stream
	now   []int
	reads []int // the room that the calls had
}

func (s *script) Read(p []byte) (int, error) {
	s.reads = append(s.reads, len(p))
	n := s.now[0]
	s.now = s.now[1:]
	return min(n, len(p)), nil
}

func (s *script) readNow(p []byte) (int, error) {
	n, err := s.Read(p)
	s.reads[len(s.reads)-1] *= -1
	return n, err
}

// The inbox waits with little memory and takes a large buffer for as long as there
// is more; what is unread moves with it.
func TestInbox(t *testing.T) {
	const large = 1 << 30
	s := &script{now: []int{large, large, 0, 100, large, 0, 5000}}
	in := newInbox(s, &buffers{}, []byte("begun"))
	fill := func(need, unread int) {
		require.NoError(t, in.fill(need))
		require.Len(t, in.unread(), unread)
	}
	fill(requestBytes, inboxBytes)
	require.Equal(t, "begun", string(in.unread()[:5]))
	in.skip(inboxBytes - 7)
	in.unread()[6] = 'x'
	fill(requestBytes, batchBytes) // there was more
	require.EqualValues(t, 'x', in.unread()[6])
	in.skip(batchBytes - 20)
	fill(requestBytes, 120)
	require.Nil(t, in.large)
	in.skip(100)
	fill(inboxBytes+1, batchBytes) // waits for a request that is larger than base
	in.skip(batchBytes - inboxBytes)
	fill(inboxBytes+1, inboxBytes+5000)
	require.NotNil(t, in.large)
	in.free()
	require.Equal(t, []int{inboxBytes - 5, -(batchBytes - 7), -(batchBytes - 20), inboxBytes - 20,
		batchBytes - 20, -(batchBytes - inboxBytes), batchBytes - inboxBytes}, s.reads)
}
