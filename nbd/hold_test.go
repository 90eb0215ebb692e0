package nbd

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// heldWrites starts n writes to blocks without space; each result comes on the
// channel.
func heldWrites(t *testing.T, ts *testServer, c *Client, n int) <-chan error {
	t.Helper()
	results := make(chan error, n)
	before := ts.Stats().HeldNow
	for i := range n {
		go func() { results <- c.WriteAt(context.Background(), make([]byte, 512), int64(i)*memBlock, 0) }()
	}
	eventually(t, "held", func() bool { return ts.Stats().HeldNow == before+n })
	return results
}

// Eight writes wait, the ninth is refused soon, everything else on the same
// connection goes on, and the eight finish when there is space.
func TestHeldWrites(t *testing.T) {
	d := newMemDevice(1 << 20)
	srv := NewServer(Options{Patience: -1})
	srv.overGrace = time.Millisecond
	ts := serveOn(t, srv, Export{Device: d})
	c := ts.dial(t, ClientOptions{})
	require.NoError(t, c.WriteAt(t.Context(), []byte("old"), 1<<19, 0))
	d.setFull()
	results := heldWrites(t, ts, c, heldDefault)

	require.ErrorIs(t, c.WriteAt(t.Context(), make([]byte, 512), 900000, 0), ErrNoSpace)
	require.NoError(t, c.ReadAt(t.Context(), make([]byte, 4096), 0, 0))
	require.NoError(t, c.WriteAt(t.Context(), []byte("new"), 1<<19, 0))
	require.NoError(t, c.Flush(t.Context()))
	second := ts.dial(t, ClientOptions{})
	more := heldWrites(t, ts, second, 1) // the limit is the connection's

	d.makeSpace()
	for range heldDefault {
		require.NoError(t, <-results)
	}
	require.NoError(t, <-more)
	require.Zero(t, ts.Stats().HeldNow)
	require.EqualValues(t, heldDefault+2, ts.Stats().HeldTotal)
}

// A pool that is only slow is not full: what is above the limit waits for it,
// for a while.
func TestHeldWritesOverTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const writes = 40
		d := newMemDevice(1 << 20)
		srv, c := pipeClient(t, Options{}, Export{Device: d})
		write := func() <-chan error {
			results := make(chan error, writes)
			for i := range writes {
				go func() { results <- c.WriteAt(context.Background(), make([]byte, 512), int64(i)*memBlock, 0) }()
			}
			return results
		}
		d.setFull()
		results := write()
		time.Sleep(overGrace - time.Millisecond)
		require.Equal(t, writes, srv.Stats().HeldNow)
		require.Empty(t, results)
		d.makeSpace()
		for range writes {
			require.NoError(t, <-results)
		}

		for i := range int64(writes) {
			require.NoError(t, d.WriteZeroes(t.Context(), i*memBlock, memBlock, MayUnmap))
		}
		d.setFull()
		start := time.Now()
		results = write()
		for range writes - heldDefault {
			require.ErrorIs(t, <-results, ErrNoSpace)
			require.Equal(t, overGrace, time.Since(start))
		}
		require.NoError(t, c.ReadAt(t.Context(), make([]byte, 512), 0, 0))
		for range heldDefault {
			require.ErrorIs(t, <-results, ErrNoSpace)
			require.Equal(t, patienceDefault, time.Since(start))
		}
		synctest.Wait()
		require.Zero(t, srv.Stats().HeldNow)
		require.Zero(t, srv.held.inUse())
		require.NoError(t, c.Close())
		require.NoError(t, srv.Shutdown(t.Context()))
	})
}

// With none allowed nobody waits.
func TestNoHeldWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemDevice(1 << 20)
		d.setFull()
		srv, c := pipeClient(t, Options{MaxHeld: -1}, Export{Device: d})
		start := time.Now()
		require.ErrorIs(t, c.WriteAt(t.Context(), make([]byte, 512), 0, 0), ErrNoSpace)
		require.Zero(t, time.Since(start))
		require.NoError(t, c.Close())
		require.NoError(t, srv.Shutdown(t.Context()))
	})
}

// Held requests are not in the budget: with more than it waiting, reads go on.
func TestHeldWritesLeaveTheBudget(t *testing.T) {
	const n, size = 5, 64 << 10
	d := newMemDevice(n * size)
	srv := NewServer(Options{Patience: -1})
	srv.connectionBytes = 2 * size
	ts := serveOn(t, srv, Export{Device: d})
	c := ts.dial(t, ClientOptions{})
	d.setFull()
	payload := make([]byte, size)
	results := make(chan error, n)
	for i := range n {
		go func() { results <- c.WriteAt(context.Background(), payload, int64(i)*size, 0) }()
	}
	eventually(t, "held", func() bool { return ts.Stats().HeldNow == n })
	require.NoError(t, c.ReadAt(t.Context(), make([]byte, 4096), 0, 0))
	d.makeSpace()
	for range n {
		require.NoError(t, <-results)
	}
}

// The patience ends a wait with ENOSPC; a flush has none. An export's own goes
// before the server's.
func TestPatience(t *testing.T) {
	const patience = 7 * time.Second
	testPatience(t, patience, Options{Patience: patience}, Export{})
	testPatience(t, patience, Options{Patience: -1}, Export{Patience: patience})
}

func testPatience(t *testing.T, patience time.Duration, o Options, x Export) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemDevice(1 << 20)
		d.setFull()
		d.before = func(ctx context.Context, op string, _, _ int64, _ block.Flags) error {
			if _, bounded := ctx.Deadline(); op == "flush" && bounded {
				return ErrNoSpace
			}
			return nil
		}
		x.Device = d
		srv, c := pipeClient(t, o, x)
		start := time.Now()
		require.ErrorIs(t, c.WriteAt(t.Context(), make([]byte, 512), 0, 0), ErrNoSpace)
		require.Equal(t, patience, time.Since(start))
		require.NoError(t, c.Flush(t.Context()))
		require.NoError(t, c.Close())
		require.NoError(t, srv.Shutdown(t.Context()))
	})
}

// Patience counts from when the request was received: time that it spends
// before it waits for space is part of it.
func TestPatienceCountsFromReceipt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newMemDevice(1 << 20)
		d.setFull()
		d.before = func(_ context.Context, op string, _, _ int64, _ block.Flags) error {
			if op == "write" {
				time.Sleep(5 * time.Second) // the bubble's clock
			}
			return nil
		}
		srv, c := pipeClient(t, Options{Patience: 7 * time.Second}, Export{Device: d})
		start := time.Now()
		require.ErrorIs(t, c.WriteAt(t.Context(), make([]byte, 512), 0, 0), ErrNoSpace)
		require.Equal(t, 7*time.Second, time.Since(start))
		require.NoError(t, c.Close())
		require.NoError(t, srv.Shutdown(t.Context()))
	})
}

func TestSpaceContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent, cancel := context.WithCancelCause(t.Context())
		c := newSpaceContext(parent, time.Now(), time.Second)
		require.NoError(t, c.Err())
		require.Nil(t, c.real, "no timer before somebody waits")
		child, stop := context.WithCancel(c)
		defer stop()
		time.Sleep(time.Second)
		<-child.Done()
		require.ErrorIs(t, block.SpaceError(child), block.ErrNoSpace)
		cancel(errGone)
		require.ErrorIs(t, c.Err(), context.DeadlineExceeded, "the first reason stays")
		c.free()

		c = newSpaceContext(t.Context(), time.Now().Add(-time.Hour), time.Second)
		require.ErrorIs(t, c.Err(), context.DeadlineExceeded, "from receipt, not from now")
		c.free()

		c = newSpaceContext(t.Context(), time.Now(), -1)
		_, bounded := c.Deadline()
		require.False(t, bounded)
		c.end(ErrShutdown)
		require.ErrorIs(t, block.SpaceError(c), ErrShutdown)
		c.free()
	})
}

// pipeClient connects over net.Pipe, for tests with a clock of their own.
func pipeClient(t *testing.T, o Options, x Export) (*Server, *Client) {
	t.Helper()
	srv := NewServer(o)
	require.NoError(t, srv.AddExport(x))
	return srv, pipeTo(t, srv)
}

func pipeTo(t *testing.T, srv *Server) *Client {
	t.Helper()
	a, b := netPipe()
	srv.ServeConn(a)
	c, err := NewClient(t.Context(), b, ClientOptions{})
	require.NoError(t, err)
	return c
}

// When a connection dies, what it holds is cancelled, and a new GO is answered
// only after its last request has ended.
func TestDeadConnection(t *testing.T) {
	d := newMemDevice(1 << 20)
	gate := make(chan struct{})
	d.before = func(ctx context.Context, op string, off, _ int64, _ block.Flags) error {
		if op == "write" && off == 4096 {
			<-gate // I/O that was issued
		}
		return nil
	}
	ts := serve(t, Options{Patience: -1}, Export{Device: d})
	d.setFull()
	c := ts.dial(t, ClientOptions{})
	results := heldWrites(t, ts, c, 1)
	go func() { results2 := c.WriteAt(context.Background(), make([]byte, 1), 4096, 0); _ = results2 }()
	eventually(t, "in the device", func() bool { return d.seen("write") == 2 })
	require.NoError(t, c.conn.Close())
	require.Error(t, <-results)
	eventually(t, "the held one cancelled", func() bool { return ts.Stats().HeldNow == 0 })

	entered := make(chan *Client)
	go func() {
		c, err := Dial(context.Background(), "unix", ts.address, ClientOptions{})
		if err != nil {
			t.Error(err)
		}
		entered <- c
	}()
	x, err := Info(t.Context(), "unix", ts.address, "", nil) // INFO does not wait
	require.NoError(t, err)
	require.NotZero(t, x.Size)
	eventually(t, "two connections", func() bool { return ts.Stats().Connections == 2 })
	select {
	case <-entered:
		t.Fatal("GO was answered while an old write was in progress")
	case <-time.After(50 * time.Millisecond):
	}
	close(gate)
	again := <-entered
	require.NoError(t, again.Close())
}

// The reader of a dead connection may be busy with what came before the end;
// GO asks the kernel.
func TestDeadConnectionWithUnreadRequests(t *testing.T) {
	const size = 64 << 10
	d := newMemDevice(size)
	var mu sync.Mutex
	released := false
	gate := make(chan struct{})
	d.before = func(_ context.Context, op string, _, n int64, _ block.Flags) error {
		if op == "read" && n > 512 {
			<-gate
			mu.Lock()
			defer mu.Unlock()
			released = true
		}
		return nil
	}
	srv := NewServer(Options{})
	srv.connectionBytes = 2 * size
	ts := serveOn(t, srv, Export{Device: d})
	r := ts.transmission(t, true)
	for range 4 { // two fill the budget, one is being accepted, one is unread
		r.send(requestHeader{cmd: cmdRead, length: size}.append(nil))
	}
	eventually(t, "budget full", func() bool { return d.seen("read") == 2 })
	_ = r.conn.Close()
	old := ts.sessions()[0]
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := Dial(context.Background(), "unix", ts.address, ClientOptions{})
		if err != nil {
			t.Error(err)
			return
		}
		mu.Lock()
		if !released {
			t.Error("GO was answered while old requests were in progress")
		}
		mu.Unlock()
		_ = c.Close()
	}()
	eventually(t, "the kernel was asked", old.dead.Load)
	select {
	case <-done:
	case <-time.After(50 * time.Millisecond): // nothing can tell that somebody goes on waiting
	}
	close(gate)
	<-done
	require.Equal(t, 2, d.seen("read"), "what was unread is not executed")
}

// Shutdown lets requests in progress finish, cancels what is held, refuses what
// is new, and then closes the connections.
func TestShutdownDrains(t *testing.T) {
	d := newMemDevice(1 << 20)
	gate := make(chan struct{})
	d.before = func(_ context.Context, op string, _, _ int64, _ block.Flags) error {
		if op == "read" {
			<-gate
		}
		return nil
	}
	srv := NewServer(Options{Patience: -1})
	srv.handshakeGrace = time.Minute
	ts := serveOn(t, srv, Export{Device: d})
	c := ts.dial(t, ClientOptions{})
	handshaking := ts.options(t)
	d.setFull()
	held := heldWrites(t, ts, c, 3)
	read := make(chan error, 1)
	go func() { read <- c.ReadAt(context.Background(), make([]byte, 512), 0, 0) }()
	eventually(t, "reading", func() bool { return d.seen("read") == 1 })

	stopped := make(chan error, 1)
	go func() { stopped <- ts.Shutdown(context.Background()) }()
	for range 3 {
		require.ErrorIs(t, <-held, ErrShutdown)
	}
	require.ErrorIs(t, c.Flush(t.Context()), ErrShutdown, "a new request")
	require.Zero(t, d.seen("flush"))
	require.Equal(t, []repType{repErrShutdown}, handshaking.option(optList, nil))
	require.Equal(t, []repType{repAck}, handshaking.option(optAbort, nil))
	select {
	case <-stopped:
		t.Fatal("stopped with a request in progress")
	default:
	}
	close(gate)
	require.NoError(t, <-read)
	require.NoError(t, <-stopped)
	<-c.ended
	require.Zero(t, ts.Stats().Connections)
	require.ErrorIs(t, ts.AddExport(Export{Name: "x", Device: d}), ErrShutdown)
}

// A request that does not end makes Shutdown give up when its context ends.
func TestShutdownGivesUp(t *testing.T) {
	d := newMemDevice(1 << 20)
	gate := make(chan struct{})
	d.before = func(context.Context, string, int64, int64, block.Flags) error { <-gate; return nil }
	ts := serve(t, Options{}, Export{Device: d})
	c := ts.dial(t, ClientOptions{})
	read := make(chan error, 1)
	go func() { read <- c.ReadAt(context.Background(), make([]byte, 512), 0, 0) }()
	eventually(t, "reading", func() bool { return d.seen("read") == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, ts.Shutdown(ctx), context.DeadlineExceeded)
	require.Error(t, <-read)
	close(gate)
}

func TestRemoveExport(t *testing.T) {
	d := newMemDevice(1 << 20)
	ts := serve(t, Options{Patience: -1}, Export{Name: "a", Device: d}, Export{Name: "b", Device: d})
	a, b := ts.dial(t, ClientOptions{Export: "a"}), ts.dial(t, ClientOptions{Export: "b"})
	d.setFull()
	held := heldWrites(t, ts, a, 1)
	require.NoError(t, ts.RemoveExport(t.Context(), "a"))
	require.ErrorIs(t, <-held, ErrShutdown)
	require.NoError(t, b.ReadAt(t.Context(), make([]byte, 1), 0, 0))
	_, err := Dial(t.Context(), "unix", ts.address, ClientOptions{Export: "a"})
	require.ErrorContains(t, err, "ERR_UNKNOWN")
	x, err := Info(t.Context(), "unix", ts.address, "", nil)
	require.NoError(t, err)
	require.Equal(t, "b", x.Name)
	require.Error(t, ts.RemoveExport(t.Context(), "a"))
}
