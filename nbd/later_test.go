package nbd

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// A beginner begins writes for a memDevice, and ends them when it is told to.
type beginner struct {
	d *memDevice

	mu    sync.Mutex
	begun []begunWrite
}

type begunWrite struct {
	p   []byte
	off int64
	to  block.Later
}

// beginWrites lets d begin all writes, and do nothing inline.
func beginWrites(d *memDevice) *beginner {
	b := &beginner{d: d}
	d.inline = func(string, int64, int64) error { return block.ErrWouldBlock }
	d.begins = func(p []byte, off int64, to block.Later) bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.begun = append(b.begun, begunWrite{p, off, to})
		return true
	}
	return b
}

// take returns the writes that were begun, when there are n of them.
func (b *beginner) take(t *testing.T, n int) (ws []begunWrite) {
	t.Helper()
	eventually(t, fmt.Sprintf("begun %d times", n), func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.begun) == n
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	ws, b.begun = b.begun, nil
	return ws
}

// end does a write, and says so.
func (b *beginner) end(w begunWrite) {
	b.d.mu.Lock()
	copy(b.d.data[w.off:], w.p)
	b.d.mu.Unlock()
	w.to.Ended(true)
}

// twoWrites sends two writes at a time, at 0 and memBlock.
func twoWrites(r *raw) (hs [2]requestHeader) {
	var b []byte
	for i := range hs {
		hs[i] = requestHeader{cmd: cmdWrite, cookie: uint64(i), offset: uint64(i) * memBlock, length: 512}
		b = append(hs[i].append(b), bytes.Repeat([]byte{byte(i) + 1}, 512)...)
	}
	r.send(b)
	return hs
}

// Many writes at a time are begun by the reader, and answered when they end, in
// whatever order; no goroutine of the server waits for them.
func TestWritesAreBegun(t *testing.T) {
	for _, kind := range streamKinds {
		t.Run(kind, func(t *testing.T) {
			const n = 60
			d := newMemDevice(n * memBlock)
			b := beginWrites(d)
			// The first may come alone, and is done then: not before all are there, so that
			// nothing else is alone.
			var alone atomic.Int64
			gate := make(chan struct{})
			d.late = func(string, int64) {
				alone.Add(1)
				<-gate
			}
			c := serveOver(t, kind, NewServer(Options{}), Export{Device: d}).dial(t, ClientOptions{})
			want := make([]byte, n*memBlock)
			results := make(chan error, n)
			for i := range n {
				p := want[i*memBlock:][:memBlock]
				copy(p, bytes.Repeat([]byte{byte(i + 1)}, memBlock))
				go func() { results <- c.WriteAt(context.Background(), p, int64(i)*memBlock, 0) }()
			}
			eventually(t, "all begun", func() bool {
				b.mu.Lock()
				defer b.mu.Unlock()
				return len(b.begun)+int(alone.Load()) == n
			})
			require.LessOrEqual(t, alone.Load(), int64(1))
			close(gate)
			ws := b.take(t, n-int(alone.Load()))
			slices.Reverse(ws)
			for _, w := range ws {
				b.end(w)
			}
			for range n {
				require.NoError(t, <-results)
			}
			d.mu.Lock()
			defer d.mu.Unlock()
			require.Equal(t, want, d.data)
		})
	}
}

// What has to be durable, is alone, or no write, is not begun.
func TestNotBegun(t *testing.T) {
	d := newMemDevice(1 << 20)
	beginWrites(d)
	d.begins = func([]byte, int64, block.Later) bool { t.Error("it was begun"); return false }
	ts := serve(t, Options{}, Export{Device: d})
	c := ts.dial(t, ClientOptions{})
	budget := ts.sessions()[0].budget
	for range 3 {
		require.NoError(t, c.WriteAt(t.Context(), make([]byte, 4096), 0, 0))
		eventually(t, "over", func() bool { // which it is a moment after its reply
			budget.mu.Lock()
			defer budget.mu.Unlock()
			return budget.requests == 0
		})
	}
	results := make(chan error, 60)
	for i := range cap(results) {
		go func() {
			switch i % 3 {
			case 0:
				results <- c.WriteAt(context.Background(), make([]byte, 4096), 0, FUA)
			case 1:
				results <- c.WriteZeroes(context.Background(), 0, 4096, 0)
			default:
				results <- c.ReadAt(context.Background(), make([]byte, 4096), 0, 0)
			}
		}()
	}
	for range cap(results) {
		require.NoError(t, <-results)
	}
}

// What is refused, and what has ended before anybody knows that it was begun.
func TestBegunAtOnceOrNot(t *testing.T) {
	for _, begins := range []bool{false, true} {
		d := newMemDevice(1 << 20)
		beginWrites(d)
		d.begins = func(p []byte, off int64, to block.Later) bool {
			if begins {
				d.mu.Lock()
				copy(d.data[off:], p)
				d.mu.Unlock()
				to.Ended(true)
			}
			return begins
		}
		r := serve(t, Options{}, Export{Device: d}).transmission(t, false)
		hs := twoWrites(r)
		r.answers(hs[:], noError(t))
		requireTwo(t, d)
	}
}

// requireTwo looks for what twoWrites has sent.
func requireTwo(t *testing.T, d *memDevice) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	require.Equal(t, []byte{1, 2}, []byte{d.data[0], d.data[memBlock]})
}

func noError(t *testing.T) func(requestHeader, Errno, []byte) {
	return func(_ requestHeader, e Errno, _ []byte) { require.Zero(t, e) }
}

// A write that is to be done again is held while there is no space, and has the error
// that the Device has for it.
func TestBegunIsDoneAgain(t *testing.T) {
	d := newMemDevice(1 << 20)
	b := beginWrites(d)
	ts := serve(t, Options{Patience: -1}, Export{Device: d})
	r := ts.transmission(t, false)
	d.setFull()
	hs := twoWrites(r)
	for _, w := range b.take(t, 2) {
		w.to.Ended(false)
	}
	eventually(t, "held", func() bool { return ts.Stats().HeldNow == 2 })
	d.makeSpace()
	r.answers(hs[:], noError(t))
	requireTwo(t, d)

	d.failWith(block.ErrNoSpace)
	h := twoWrites(r)[0]
	ws := b.take(t, 2)
	ws[0].to.Ended(false)
	r.expect(h, ENOSPC)
	b.end(ws[1])
}

// Shutdown waits for what was begun, and answers it.
func TestDrainWaitsForWhatWasBegun(t *testing.T) {
	d := newMemDevice(1 << 20)
	b := beginWrites(d)
	ts := serve(t, Options{}, Export{Device: d})
	r := ts.transmission(t, false)
	hs := twoWrites(r)
	ws := b.take(t, 2)
	stopped := make(chan error, 1)
	go func() { stopped <- ts.Shutdown(context.Background()) }()
	eventually(t, "draining", func() bool { return ts.AddExport(Export{Name: "x", Device: d}) != nil })
	b.end(ws[0])
	r.expect(hs[0], 0)
	select {
	case <-stopped:
		t.Fatal("stopped with a write in progress")
	default:
	}
	b.end(ws[1])
	r.expect(hs[1], 0)
	require.NoError(t, <-stopped)
}

// A new GO waits for what a connection that has died had begun (rule 10).
func TestDeadConnectionHadBegun(t *testing.T) {
	d := newMemDevice(1 << 20)
	b := beginWrites(d)
	ts := serve(t, Options{}, Export{Device: d})
	r := ts.transmission(t, false)
	twoWrites(r)
	ws := b.take(t, 2)
	require.NoError(t, r.conn.Close())
	entered := make(chan *Client)
	go func() {
		c, err := Dial(context.Background(), "unix", ts.address, ClientOptions{})
		if err != nil {
			t.Error(err)
		}
		entered <- c
	}()
	eventually(t, "two connections", func() bool { return ts.Stats().Connections == 2 })
	b.end(ws[0])
	select {
	case <-entered:
		t.Fatal("GO was answered while an old write was in progress")
	case <-time.After(50 * time.Millisecond):
	}
	ws[1].to.Ended(false) // nobody does it again
	again := <-entered
	require.Zero(t, d.seen("write"))
	require.NoError(t, again.Close())
}

// A panic where a write is begun ends its connection only.
func TestPanicWhereAWriteIsBegun(t *testing.T) {
	d := newMemDevice(1 << 20)
	beginWrites(d)
	d.begins = func([]byte, int64, block.Later) bool { panic("on purpose") }
	ts := serve(t, Options{}, Export{Device: d})
	other, r := ts.dial(t, ClientOptions{}), ts.transmission(t, false)
	twoWrites(r)
	r.closed()
	eventually(t, "gone", func() bool { return ts.Stats().Connections == 1 })
	require.NoError(t, other.ReadAt(t.Context(), make([]byte, 1), 4096, 0))
	require.EqualValues(t, 1, ts.Stats().Panics)
}

// Writes that were begun reach the storage while the rest of their batch is taken in: who
// brings them there has his turn when begunTogether of them were begun.
func TestBegunAreLetGo(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // nobody has his turn before somebody yields
	const n = 4 * begunTogether
	d := newMemDevice(n * memBlock)
	b := beginWrites(d)
	begins, begun, atTurn := d.begins, atomic.Int64{}, make(chan int64, 1)
	d.begins = func(p []byte, off int64, to block.Later) bool {
		if begun.Add(1) == 1 {
			go func() { atTurn <- begun.Load() }()
		}
		return begins(p, off, to)
	}
	r := serve(t, Options{}, Export{Device: d}).transmission(t, false)
	hs := make([]requestHeader, n)
	var batch []byte // inboxBytes at most
	for i := range hs {
		hs[i] = requestHeader{cmd: cmdWrite, cookie: uint64(i), offset: uint64(i) * memBlock, length: 512}
		batch = append(hs[i].append(batch), make([]byte, 512)...)
	}
	r.send(batch)
	for _, w := range b.take(t, n) {
		b.end(w)
	}
	r.answers(hs, noError(t))
	// Go lets the one who yields go on at once every 61 times.
	require.LessOrEqual(t, <-atTurn, int64(2*begunTogether))
}
