package nbd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// What does not wait is executed once, inline, with the flags of the request;
// what would wait is executed once too, without NoWait. The client cannot tell.
func TestInlineAndOffload(t *testing.T) {
	for _, kind := range streamKinds {
		for _, blocks := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/blocks=%v", kind, blocks), func(t *testing.T) {
				d := newMemDevice(1 << 20)
				if blocks {
					d.inline = func(string, int64, int64) error { return fmt.Errorf("x: %w", block.ErrWouldBlock) }
				}
				c := serveOver(t, kind, NewServer(Options{}), Export{Device: d}).dial(t, ClientOptions{})
				data := bytes.Repeat([]byte("tidemark"), 512)
				got := make([]byte, len(data))
				require.NoError(t, c.WriteAt(t.Context(), data, 4096, FUA))
				requireOp(t, d, "write", block.FUA)
				require.NoError(t, c.ReadAt(t.Context(), got, 4096, 0))
				require.Equal(t, data, got)
				require.NoError(t, c.WriteZeroes(t.Context(), 4096, 4096, MayUnmap|Fast|FUA))
				requireOp(t, d, "zero", block.MayUnmap|block.Fast|block.FUA)
				require.ErrorIs(t, c.WriteZeroes(t.Context(), 1, 1, Fast), ErrNotFast)
				require.NoError(t, c.Discard(t.Context(), 0, 8192, FUA))
				requireOp(t, d, "discard", block.FUA)
				require.Len(t, d.ops, 5)
				finished, wouldBlock := d.inlined()
				if blocks {
					require.Equal(t, []int{0, 5}, []int{finished, wouldBlock})
				} else {
					require.Equal(t, []int{5, 0}, []int{finished, wouldBlock})
				}
			})
		}
	}
}

// What has no NoWait, is large or goes to the Device in pieces is not tried
// inline.
func TestNeverInline(t *testing.T) {
	d := newMemDevice(1 << 20)
	c := serve(t, Options{}, Export{Device: d}).dial(t, ClientOptions{})
	p := make([]byte, inlineBytesMax+1)
	require.NoError(t, c.WriteAt(t.Context(), p, 0, 0))
	require.NoError(t, c.ReadAt(t.Context(), p, 0, 0))
	require.NoError(t, c.Flush(t.Context()))
	require.NoError(t, c.Cache(t.Context(), 0, 4096))
	_, err := c.AppendExtents(t.Context(), nil, 0, 4096)
	require.NoError(t, err)
	small := newMemDevice(1 << 20)
	small.info.MaxTransfer = 4096
	c = serve(t, Options{}, Export{Device: small}).dial(t, ClientOptions{})
	_, err = c.roundTrip(t.Context(), requestHeader{cmd: cmdWrite, length: 4097}, p[:4097], nil)
	require.NoError(t, err)
	_, err = c.roundTrip(t.Context(), requestHeader{cmd: cmdRead, length: 4097}, nil, p[:4097])
	require.NoError(t, err)
	for _, d := range []*memDevice{d, small} {
		finished, wouldBlock := d.inlined()
		require.Zero(t, finished+wouldBlock)
	}
}

// Several clients with many requests on their way, of sizes around every limit,
// against a plain array, over every kind of stream. Whether the Device would have
// to wait is decided by lot.
func TestInlineAgainstAModel(t *testing.T) {
	for _, kind := range streamKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			seed := testSeed(t)
			const owners, size = 8, 1 << 20
			d := newMemDevice(owners * size)
			d.inline = func(_ string, off, n int64) error {
				if rand.Uint32N(4) == 0 {
					return block.ErrWouldBlock
				}
				return nil
			}
			ts := serveOver(t, kind, NewServer(Options{}), Export{Device: d})
			clients := []*Client{ts.dial(t, ClientOptions{}), ts.dial(t, ClientOptions{NoStructured: true})}
			sizes := []int{1, 4096, inboxBytes - requestBytes, inboxBytes, inlineBytesMax, inlineBytesMax + 1, batchBytes, batchBytes + 1}
			failed := make(chan error, owners)
			for o := range owners {
				go func() {
					rng := rand.New(rand.NewPCG(seed, uint64(o)))
					failed <- ownRandomly(rng, clients[o%len(clients)], int64(o*size), size, sizes)
				}()
			}
			for range owners {
				require.NoError(t, <-failed)
			}
			finished, wouldBlock := d.inlined()
			require.NotZero(t, finished)
			require.NotZero(t, wouldBlock)
			require.Zero(t, ts.Stats().Errors)
		})
	}
}

// ownRandomly reads and writes size bytes at base, which nobody else uses, and
// compares.
func ownRandomly(rng *rand.Rand, c *Client, base int64, size int, sizes []int) error {
	mine := make([]byte, size)
	for range 60 {
		n := min(sizes[rng.IntN(len(sizes))]+rng.IntN(3), size)
		at := rng.IntN(size - n + 1)
		off := base + int64(at)
		switch rng.IntN(5) {
		case 0:
			clear(mine[at : at+n])
			if err := c.WriteZeroes(context.Background(), off, int64(n), 0); err != nil {
				return err
			}
		case 1, 2:
			fillRandom(rng, mine[at:at+n])
			if err := c.WriteAt(context.Background(), mine[at:at+n], off, 0); err != nil {
				return err
			}
		default:
			got := make([]byte, n)
			if err := c.ReadAt(context.Background(), got, off, 0); err != nil {
				return err
			}
			if !bytes.Equal(got, mine[at:at+n]) {
				return fmt.Errorf("other bytes at %d", off)
			}
		}
	}
	return nil
}

// However the bytes of requests are cut, they mean the same.
func TestRequestsInPieces(t *testing.T) {
	for _, kind := range streamKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(testSeed(t), 0))
			const n, slot = 100, 72 << 10
			d := newMemDevice((n + 1) * slot) // the last slot is only read
			fillRandom(rng, d.data[n*slot:])
			model := d.snapshot()
			sizes := []int{0, 1, 512, 4096, inboxBytes, inlineBytesMax, inlineBytesMax + 5}
			var requests []requestHeader
			var stream []byte
			for i := range n {
				w := requestHeader{cmd: cmdWrite, offset: uint64(i * slot), length: uint64(sizes[rng.IntN(len(sizes))])}
				r := requestHeader{cmd: cmdRead, offset: n * slot, length: uint64(1 + rng.IntN(slot))}
				tooFar := requestHeader{cmd: cmdWrite, offset: (n + 1) * slot, length: w.length}
				for _, h := range []requestHeader{w, r, tooFar} {
					h.cookie = uint64(len(requests))
					p := make([]byte, h.payload())
					fillRandom(rng, p)
					if h.offset < n*slot {
						copy(model[h.offset:], p)
					}
					stream = append(h.append(stream), p...)
					requests = append(requests, h)
				}
			}
			ts := serveOver(t, kind, NewServer(Options{}), Export{Device: d})
			r := ts.transmission(t, false)
			go func() {
				for len(stream) > 0 {
					k := min(1+rng.IntN([]int{3, 100, 5000, 300000}[rng.IntN(4)]), len(stream))
					if _, err := r.conn.Write(stream[:k]); err != nil {
						return // the test fails by what it does not read
					}
					stream = stream[k:]
				}
			}()
			r.answers(requests, func(h requestHeader, e Errno, data []byte) {
				if h.offset == (n+1)*slot && h.length > 0 {
					require.Equal(t, ENOSPC, e)
					return
				}
				require.Zero(t, e)
				require.True(t, bytes.Equal(model[n*slot:][:len(data)], data))
			})
			require.True(t, bytes.Equal(model, d.snapshot()))
			require.Equal(t, RequestStats{Read: n, Write: 2 * n}, ts.Stats().Requests)
		})
	}
}

// answers reads one simple reply to each request, in any order.
func (r *raw) answers(requests []requestHeader, check func(requestHeader, Errno, []byte)) {
	r.t.Helper()
	open := map[uint64]requestHeader{}
	for _, h := range requests {
		open[h.cookie] = h
	}
	for len(open) > 0 {
		b := r.read(simpleBytes)
		require.Equal(r.t, magicSimple, be.Uint32(b))
		h, ok := open[be.Uint64(b[8:])]
		require.True(r.t, ok, "cookie %d", be.Uint64(b[8:]))
		delete(open, h.cookie)
		e := Errno(be.Uint32(b[4:]))
		var data []byte
		if h.cmd == cmdRead && e == 0 {
			data = r.read(int(h.length))
		}
		check(h, e, data)
	}
}

// A panic inline ends its connection only, and what the Device was given is not
// used again.
func TestPanicInline(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // a pool hides nothing from one processor
	for _, op := range []string{"read", "write"} {
		d := newMemDevice(1 << 20)
		d.inline = func(o string, off, _ int64) error {
			if o == op && off == 0 {
				panic("on purpose")
			}
			return nil
		}
		ts := serve(t, Options{}, Export{Device: d})
		other, r := ts.dial(t, ClientOptions{}), ts.transmission(t, false)
		h := requestHeader{cmd: cmdRead, length: inlineBytesMax}
		if op == "write" {
			h.cmd = cmdWrite
		}
		r.send(append(h.append(nil), make([]byte, h.payload())...))
		r.closed()
		require.NoError(t, other.ReadAt(t.Context(), make([]byte, 1), 4096, 0))
		eventually(t, "gone", func() bool { return ts.Stats().Connections == 1 })
		require.EqualValues(t, 1, ts.Stats().Panics)
		require.True(t, ts.buffers.classes[bufferClass(batchBytes)].Get() == nil, op)
	}
}

// Requests of a connection that has died do not reach the Device any more, and
// are not answered.
func TestDeadSessionExecutesNothing(t *testing.T) {
	d := newMemDevice(4096)
	srv := NewServer(Options{})
	x, err := newExport(Export{Device: d})
	require.NoError(t, err)
	a, b := netPipe()
	defer b.Close()
	s := newSession(srv, x, a, srv.opts.Logger, terms{size: 4096, minBlock: 1})
	s.kill(errGone)
	for _, c := range []command{cmdRead, cmdWrite, cmdFlush} {
		rq := srv.takeRequest()
		rq.s, rq.header, rq.buf = s, requestHeader{cmd: c}, srv.buffers.get(512)
		s.serve(rq)
	}
	require.Empty(t, d.ops)
}

// Nor does what has arrived behind the request during which it died.
func TestSessionDiesInABatch(t *testing.T) {
	d := newMemDevice(1 << 20)
	ts := serve(t, Options{}, Export{Device: d})
	d.inline = func(string, int64, int64) error {
		for s := range ts.findExport("").sessions {
			s.kill(errGone)
		}
		return nil
	}
	r := ts.transmission(t, false)
	h := requestHeader{cmd: cmdRead, length: 512}
	r.send(h.append(h.append(nil)))
	eventually(t, "gone", func() bool { return ts.Stats().Connections == 0 })
	require.Equal(t, 1, d.seen("read"))
}

// A drain in the middle of a stream of requests: what is answered with success was
// executed, what is answered with ESHUTDOWN was not, and the rest is not answered.
func TestDrainWhileInline(t *testing.T) {
	for _, kind := range streamKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const n = 20000
			d := newMemDevice(n)
			ts := serveOver(t, kind, NewServer(Options{}), Export{Device: d})
			r := ts.transmission(t, false)
			go func() {
				var b []byte
				for i := range uint64(n) {
					b = append(requestHeader{cmd: cmdWrite, cookie: i, offset: i, length: 1}.append(b), 'x')
					if len(b) > 1000 {
						if _, err := r.conn.Write(b); err != nil {
							return
						}
						b = b[:0]
					}
				}
			}()
			stopped := make(chan error, 1)
			answered := make([]Errno, n)
			for i := range answered {
				answered[i] = EIO // none
			}
			b := make([]byte, simpleBytes)
			replies := 0
			for ; ; replies++ {
				if _, err := io.ReadFull(r.conn, b); err != nil {
					break
				}
				if replies == 1000 {
					go func() { stopped <- ts.RemoveExport(context.Background(), "") }()
				}
				require.Equal(t, magicSimple, be.Uint32(b))
				answered[be.Uint64(b[8:])] = Errno(be.Uint32(b[4:]))
			}
			require.Greater(t, replies, 1000)
			require.NoError(t, <-stopped)
			for i, c := range d.snapshot() {
				switch answered[i] {
				case 0:
					require.EqualValues(t, 'x', c, "%d", i)
				case ESHUTDOWN:
					require.Zero(t, c, "%d", i)
				default:
					require.Equal(t, EIO, answered[i])
				}
			}
		})
	}
}
