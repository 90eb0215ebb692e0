package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// What several budgets take is in the pool, but for ownBytes of each, and at the
// end nothing is.
func TestBudgetsShareAPool(t *testing.T) {
	p := newPool(payloadBytesMax)
	a, b := newBudget(p, inFlightBytesMax, func() {}), newBudget(p, inFlightBytesMax, func() {})
	require.True(t, a.acquire(ownBytes))
	require.Zero(t, p.used, "its own")
	require.True(t, a.acquire(payloadBytesMax))
	require.EqualValues(t, payloadBytesMax, p.used)

	require.True(t, b.acquire(ownBytes), "small requests of others go on")
	got := make(chan bool)
	go func() { got <- b.acquire(4096) }()
	a.release(ownBytes)
	require.True(t, <-got)
	require.LessOrEqual(t, p.used, p.limit)
	b.release(4096)
	b.release(ownBytes)
	a.retake(payloadBytesMax) // never waits
	require.Greater(t, p.used, p.limit)
	a.release(payloadBytesMax)
	a.release(payloadBytesMax)
	require.Zero(t, p.used)
}

// What does not fit is not taken in part.
func TestBudgetTriesOnly(t *testing.T) {
	p := newPool(payloadBytesMax)
	a, b := newBudget(p, inFlightBytesMax, func() {}), newBudget(p, ownBytes, func() {})
	require.True(t, a.tryAcquire(ownBytes))
	require.True(t, a.tryAcquire(payloadBytesMax))
	require.False(t, a.tryAcquire(1), "the pool's limit")
	require.Equal(t, 2, a.requests)
	require.Equal(t, ownBytes+payloadBytesMax, a.bytes)
	require.True(t, b.tryAcquire(ownBytes))
	require.False(t, b.tryAcquire(1), "its own limit")
	for range inFlightMax - 1 {
		require.True(t, b.tryAcquire(0))
	}
	require.False(t, b.tryAcquire(0), "as many requests as there may be")
	b.release(0)
	b.close()
	require.False(t, b.tryAcquire(0))
	a.release(payloadBytesMax)
	require.Zero(t, p.inUse())
}

// A connection that dies while it waits for the others leaves nothing behind.
func TestBudgetClosedWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(payloadBytesMax)
		a, b := newBudget(p, inFlightBytesMax, func() {}), newBudget(p, inFlightBytesMax, func() {})
		require.True(t, a.acquire(payloadBytesMax))
		require.True(t, a.acquire(ownBytes))
		require.True(t, b.acquire(100))
		got := make(chan bool, 1)
		go func() { got <- b.acquire(payloadBytesMax) }()
		synctest.Wait()
		require.Empty(t, got, "it waits")
		b.close()
		require.False(t, <-got)
		b.release(100)
		require.Zero(t, b.bytes)
		require.Zero(t, b.requests)
		require.EqualValues(t, payloadBytesMax, p.used)
	})
}

// Held requests leave the budget and come back to it, those over the limit stay
// in it; one that has stopped waiting is not ended any more.
func TestHoldMovesBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := NewServer(Options{MaxHeld: 1, Patience: -1})
		s := newSession(srv, nil, nil, srv.opts.Logger, terms{})
		var rqs []*request
		for range 2 {
			require.True(t, s.budget.acquire(4096))
			rqs = append(rqs, &request{s: s, cost: 4096, space: newSpaceContext(s.ctx, time.Now(), -1)})
		}
		held, over := rqs[0], rqs[1]
		for range 2 {
			require.NoError(t, held.Begin())
			require.NoError(t, held.Begin(), "twice is once")
			require.NoError(t, over.Begin())
			require.Equal(t, 4096, s.budget.bytes)
			require.EqualValues(t, 4096, srv.held.used)
			held.End()
			held.End()
			over.End()
			require.Equal(t, 2*4096, s.budget.bytes)
			require.Zero(t, srv.held.used)
			time.Sleep(2 * overGrace)
			require.NoError(t, over.space.Err())
		}
		require.NoError(t, held.Begin())
		require.NoError(t, over.Begin())
		time.Sleep(2 * overGrace)
		require.NoError(t, held.space.Err())
		require.ErrorIs(t, block.SpaceError(over.space), ErrNoSpace)
		held.space.free()
		over.space.free()
	})
}

// A buffer that a Device was using when it panicked is not used again.
func TestPanicKeepsTheBuffer(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // a pool hides nothing from one processor
	const size = 2 * replyBytes                     // of a class that replies do not use
	d := newMemDevice(size)
	d.before = func(_ context.Context, op string, _, _ int64, _ block.Flags) error {
		if op == "write" {
			panic("on purpose")
		}
		return nil
	}
	ts := serve(t, Options{}, Export{Device: d})
	require.Error(t, ts.dial(t, ClientOptions{}).WriteAt(t.Context(), make([]byte, size), 0, 0))
	eventually(t, "gone", func() bool { return ts.Stats().Connections == 0 })
	require.True(t, ts.buffers.classes[bufferClass(size)].Get() == nil)
}

// The pool's limit is the server's: a connection waits until another has
// finished, and small requests of a third go on.
func TestMaxInFlightBytes(t *testing.T) {
	const size = 4 * ownBytes
	d := newMemDevice(size)
	gate := make(chan struct{})
	d.before = func(_ context.Context, op string, off, n int64, _ block.Flags) error {
		if op == "read" && n > ownBytes {
			<-gate
		}
		return nil
	}
	srv := NewServer(Options{MaxInFlightBytes: 1})
	require.EqualValues(t, payloadBytesMax, srv.inFlight.limit, "as little as there can be")
	srv.inFlight.limit = size
	ts := serveOn(t, srv, Export{Device: d})
	big := requestHeader{cmd: cmdRead, cookie: 1, length: size}
	a, b, c := ts.transmission(t, false), ts.transmission(t, false), ts.transmission(t, false)
	a.send(requestHeader{cmd: cmdRead, cookie: 2, length: ownBytes}.append(big.append(nil)))
	eventually(t, "one at the device", func() bool { return d.seen("read") == 2 })
	a.expect(requestHeader{cmd: cmdRead, cookie: 2, length: ownBytes}, 0)
	b.send(big.append(nil))
	for range 3 { // alternating with nothing: the device would see it at once
		c.ask(requestHeader{cmd: cmdRead, cookie: 3, length: 4096}, nil, 0)
	}
	require.Equal(t, 5, d.seen("read"), "b waits")
	close(gate)
	a.expect(big, 0)
	b.expect(big, 0)
	eventually(t, "all given back", func() bool { return srv.inFlight.inUse() == 0 })
}

func (p *pool) inUse() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used
}

// Payloads that wait for space are bounded over all connections; what is given
// back can be used again.
func TestHeldBytesOfAllConnections(t *testing.T) {
	d := newMemDevice(1 << 20)
	srv := NewServer(Options{Patience: -1})
	srv.held.limit = 3 * memBlock
	srv.overGrace = time.Millisecond
	ts := serveOn(t, srv, Export{Device: d})
	d.setFull()
	a, b := ts.dial(t, ClientOptions{}), ts.dial(t, ClientOptions{})
	results := heldWrites(t, ts, a, 2)
	more := heldWrites(t, ts, b, 1)
	require.ErrorIs(t, b.WriteAt(t.Context(), make([]byte, 512), 1<<19, 0), ErrNoSpace)
	require.NoError(t, b.ReadAt(t.Context(), make([]byte, 512), 0, 0))
	d.makeSpace()
	require.NoError(t, errors.Join(<-results, <-results, <-more))
	require.Zero(t, srv.held.inUse())
	d.setFull()
	last := make(chan error)
	go func() { last <- b.WriteAt(context.Background(), make([]byte, 512), 1<<19, 0) }()
	eventually(t, "held", func() bool { return ts.Stats().HeldNow == 1 })
	d.makeSpace()
	require.NoError(t, <-last)
}

// halfConn takes part of the first message, then fails.
type halfConn struct {
	net.Conn
	mu      sync.Mutex // guards written
	written int
}

func (c *halfConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.written > 0 {
		c.written += len(p)
		return len(p), nil
	}
	c.written = len(p) / 2
	return len(p) / 2, errors.New("timeout")
}
func (c *halfConn) SetWriteDeadline(time.Time) error { return nil }
func (c *halfConn) Close() error                     { return nil }

// After half a reply no other is written: the client would take it for data.
func TestNothingFollowsHalfAReply(t *testing.T) {
	srv := NewServer(Options{})
	c := &halfConn{}
	s := newSession(srv, nil, c, srv.opts.Logger, terms{})
	put := func() {
		require.True(t, s.budget.tryAcquire(0))
		s.out.put(&request{s: s, reply: make([]byte, 16), data: make([]byte, 4096)})
	}
	put()
	half := c.written
	require.NotZero(t, half)
	require.True(t, s.dead.Load())
	s.budget.closed = false
	put()
	s.out.offer(replies{buf: srv.buffers.get(16), n: 16})
	s.wg.Wait()
	require.Equal(t, half, c.written)
	require.ErrorContains(t, s.reason, "timeout")
	require.Zero(t, s.budget.requests, "what is not answered is given back too")
}

// A payload that everybody's memory was set aside for has to arrive in time; a
// small one may take as long as it likes.
func TestHalfAPayload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := NewServer(Options{})
		require.NoError(t, srv.AddExport(Export{Device: newMemDevice(4 << 20)}))
		send := func(n uint32) net.Conn {
			r := pipeRaw(t, srv)
			r.read(greetingBytes)
			r.send(be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes))
			require.Equal(t, []repType{repInfo, repAck}, r.option(optGo, goRequest{}.append(nil)))
			r.send(requestHeader{cmd: cmdWrite, length: uint64(n)}.append(nil))
			r.zeroes(1000)
			return r.conn
		}
		small, large := send(ownBytes), send(2*ownBytes)
		start := time.Now()
		_, err := large.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, writeTimeoutDefault+2*time.Second, time.Since(start))
		time.Sleep(time.Hour)
		r := &raw{t, small}
		r.zeroes(ownBytes - 1000)
		r.expect(requestHeader{cmd: cmdWrite}, 0)
		require.NoError(t, small.Close())
		require.NoError(t, srv.Shutdown(t.Context()))
	})
}

// A request that never arrives completely does not delay a shutdown.
func TestShutdownDoesNotWaitForHalfAPayload(t *testing.T) {
	t.Parallel()
	ts := serve(t, Options{}, Export{Device: newMemDevice(1 << 20)})
	r := ts.transmission(t, true)
	r.send(requestHeader{cmd: cmdWrite, length: 4096}.append(nil))
	r.zeroes(100)
	eventually(t, "being received", func() bool { return ts.Stats().Requests.Write == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, ts.Shutdown(ctx))
	r.closed()
}

// Pieces of what is too large for the Device stay aligned.
func TestPiecesAreAligned(t *testing.T) {
	d := newMemDevice(64 << 10)
	d.info.MinBlock, d.info.MaxTransfer = 512, 5000
	d.before = func(_ context.Context, op string, off, n int64, _ block.Flags) error {
		if (op == "read" || op == "write") && ((off|n)%512 != 0 || n > 5000) {
			return fmt.Errorf("%s of %d bytes at %d", op, n, off)
		}
		return nil
	}
	r := serve(t, Options{}, Export{Device: d}).transmission(t, true)
	r.ask(requestHeader{cmd: cmdWrite, length: 64 << 10}, make([]byte, 64<<10), 0)
	r.ask(requestHeader{cmd: cmdRead, length: 64 << 10}, nil, 0)
	for _, row := range [][3]int{{0, 0, 0}, {512, 0, 0}, {0, 5000, 5000}, {512, 5000, 4608}, {4096, 512, 4096}, {1, -1, 0}} {
		require.Equal(t, row[2], maxTransfer(DeviceInfo{MinBlock: row[0], MaxTransfer: row[1]}), "%v", row)
	}
}

// What a buffer takes is what the budget counts.
func TestCostIsMemory(t *testing.T) {
	var p buffers
	for _, n := range []int{1, 511, 4096, 4097, 1<<20 + 1, 17 << 20, payloadBytesMax} {
		require.Equal(t, cap(p.get(n).data), cost(requestHeader{cmd: cmdWrite}, action{n: int64(n)}), "%d", n)
	}
	require.Zero(t, cost(requestHeader{cmd: cmdRead}, action{}))
}

// A context that has ended already harms no other request of the client.
func TestClientWithEndedContext(t *testing.T) {
	ts := serve(t, Options{}, Export{Device: newMemDevice(1 << 20)})
	c := ts.dial(t, ClientOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // a select would choose at random
		require.ErrorIs(t, c.WriteAt(ctx, make([]byte, 512), 0, 0), context.Canceled)
	}
	require.NoError(t, c.Flush(t.Context()))
}
