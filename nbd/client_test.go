package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
)

// testServer is a server on a unix socket, or what serveOver makes of it.
type testServer struct {
	*Server
	network, address string
}

func serve(t testing.TB, o Options, exports ...Export) *testServer {
	t.Helper()
	return serveOn(t, NewServer(o), exports...)
}

func serveOn(t testing.TB, srv *Server, exports ...Export) *testServer {
	t.Helper()
	for _, e := range exports {
		require.NoError(t, srv.AddExport(e))
	}
	return serveListener(t, srv, func(l net.Listener) net.Listener { return l })
}

func serveListener(t testing.TB, srv *Server, wrap func(net.Listener) net.Listener) *testServer {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir is too long for a socket
	require.NoError(t, err)
	ts := &testServer{srv, "unix", filepath.Join(dir, "s")}
	l, err := net.Listen("unix", ts.address)
	require.NoError(t, err)
	l = wrap(l)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.NoError(t, srv.Shutdown(ctx))
		require.NoError(t, <-served)
		require.NoError(t, os.RemoveAll(dir))
	})
	return ts
}

func (ts *testServer) dial(t *testing.T, o ClientOptions) *Client {
	t.Helper()
	c, err := Dial(t.Context(), ts.network, ts.address, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// eventually polls for what another goroutine brings about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after a minute: not %s", what)
		}
	}
}

func TestEveryCommandWithEveryFlag(t *testing.T) {
	d := newMemDevice(1<<20 + 512)
	ts := serve(t, Options{}, Export{Name: "a", Device: d})
	for _, o := range []ClientOptions{{}, {Extended: true}, {Export: "a"}, {NoStructured: true}, {UseExportName: true}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			c := ts.dial(t, o)
			ctx := t.Context()
			require.Equal(t, block.DeviceInfo{
				Size: d.info.Size, MinBlock: 1, PreferredBlock: 4096, MaxTransfer: payloadBytesMax,
				CanFlush: true, CanFUA: true, CanDiscard: true, CanZero: true, CanFastZero: true, MultiConn: true,
			}, c.Info())

			data := bytes.Repeat([]byte("tidemark"), 8192)
			require.NoError(t, c.WriteAt(ctx, data, 100, 0))
			require.NoError(t, c.WriteAt(ctx, data[:512], d.info.Size-512, FUA))
			requireOp(t, d, "write", block.FUA)
			got := make([]byte, len(data))
			require.NoError(t, c.ReadAt(ctx, got, 100, 0))
			require.True(t, bytes.Equal(data, got))
			require.NoError(t, c.ReadAt(ctx, nil, 0, 0))

			require.NoError(t, c.Flush(ctx))
			requireOp(t, d, "flush", 0)
			require.NoError(t, c.Discard(ctx, 0, 8192, FUA))
			requireOp(t, d, "discard", block.FUA)
			require.NoError(t, c.WriteZeroes(ctx, 8192, 4096, 0))
			requireOp(t, d, "zero", 0)
			require.NoError(t, c.WriteZeroes(ctx, 8192, 4096, MayUnmap|Fast|FUA))
			requireOp(t, d, "zero", block.MayUnmap|block.Fast|block.FUA)
			require.ErrorIs(t, c.WriteZeroes(ctx, 8192, 100, Fast), ErrNotFast)
			reads := d.seen("read")
			require.NoError(t, c.Cache(ctx, 0, d.info.Size))
			require.Greater(t, d.seen("read"), reads)

			got = got[:4096]
			require.NoError(t, c.ReadAt(ctx, got, 8192, 0))
			require.Equal(t, make([]byte, 4096), got)

			require.ErrorIs(t, c.ReadAt(ctx, got, d.info.Size, 0), ErrRange)
			require.ErrorIs(t, c.WriteAt(ctx, got, 0, NoWait), ErrWouldBlock)
		})
	}
}

func requireOp(t *testing.T, d *memDevice, op string, f block.Flags) {
	t.Helper()
	gotOp, gotFlags := d.lastOp()
	require.Equal(t, op, gotOp)
	require.Equal(t, f, gotFlags)
}

func TestExtents(t *testing.T) {
	d := newMemDevice(64 << 10)
	ts := serve(t, Options{}, Export{Device: d})
	c := ts.dial(t, ClientOptions{})
	ctx := t.Context()
	require.NoError(t, c.WriteAt(ctx, make([]byte, 8192), 4096, 0))
	require.NoError(t, c.WriteAt(ctx, make([]byte, 4096), 32<<10, 0))
	data := block.Allocated | block.Data
	want := []Extent{
		{Off: 0, Len: 4096, State: block.Zero, Host: -1}, {Off: 4096, Len: 8192, State: data, Host: -1},
		{Off: 12288, Len: 20480, State: block.Zero, Host: -1}, {Off: 32768, Len: 4096, State: data, Host: -1},
		{Off: 36864, Len: 28672, State: block.Zero, Host: -1},
	}
	got, err := c.AppendExtents(ctx, nil, 0, 64<<10)
	require.NoError(t, err)
	require.Equal(t, want, got)
	got, err = c.AppendExtents(ctx, make([]Extent, 0, 2), 0, 64<<10)
	require.NoError(t, err)
	require.Equal(t, want[:2], got)
	got, err = c.AppendExtents(ctx, nil, 6000, 1000)
	require.NoError(t, err)
	require.Equal(t, []Extent{{Off: 6000, Len: 1000, State: data, Host: -1}}, got)

	k, err := c.roundTrip(ctx, requestHeader{cmd: cmdBlockStatus, flags: cmdFlagReqOne, length: 64 << 10}, nil, nil)
	require.NoError(t, err)
	require.Equal(t, []descriptor{{4096, stateHole | stateZero}}, k.descriptors)
}

// Without base:allocation everything is data.
func TestExtentsUnknown(t *testing.T) {
	ts := serve(t, Options{}, Export{Device: newMemDevice(8192)})
	got, err := ts.dial(t, ClientOptions{NoStructured: true}).AppendExtents(t.Context(), nil, 0, 8192)
	require.NoError(t, err)
	require.Equal(t, []Extent{{Len: 8192, State: block.Allocated | block.Data, Host: -1}}, got)
}

func TestErrorsOfTheDevice(t *testing.T) {
	d := newMemDevice(1 << 20)
	ts := serve(t, Options{}, Export{Device: d})
	p := make([]byte, 512)
	long := errors.New(strings.Repeat("é\x00\n", 2000))
	for _, o := range []ClientOptions{{}, {NoStructured: true}} {
		c := ts.dial(t, o)
		for _, row := range []struct {
			err   error
			errno Errno
		}{
			{errors.New("broken"), EIO}, {fmt.Errorf("x: %w", block.ErrNoSpace), ENOSPC}, {block.ErrReadOnly, EPERM},
			{block.ErrUnsupported, EINVAL}, {block.ErrNotFast, EINVAL}, {block.ErrClosed, ESHUTDOWN}, {long, EIO},
			{os.NewSyscallError("pwrite", syscall.ENOSPC), ENOSPC}, {fmt.Errorf("x: %w", context.DeadlineExceeded), ENOSPC},
		} {
			d.failWith(row.err)
			for op, err := range map[string]error{
				"read": c.ReadAt(t.Context(), p, 0, 0), "write": c.WriteAt(t.Context(), p, 0, 0),
				"flush": c.Flush(t.Context()), "zero": c.WriteZeroes(t.Context(), 0, 512, 0), "trim": c.Discard(t.Context(), 0, 512, 0),
			} {
				var e *Error
				require.ErrorAs(t, err, &e, "%s: %v", op, row.err)
				require.Equal(t, row.errno, e.Errno, "%s: %v", op, row.err)
				require.LessOrEqual(t, len(e.Text), errorTextMax)
				if !o.NoStructured && !errors.Is(row.err, long) {
					require.Contains(t, e.Text, row.err.Error())
				}
			}
		}
		d.failWith(block.ErrUnsupported)
		require.ErrorIs(t, c.WriteZeroes(t.Context(), 0, 512, Fast), ErrNotFast)
		d.failWith(nil)
		require.NoError(t, c.ReadAt(t.Context(), p, 0, 0), "the connection lives")
	}
}

func TestReadOnly(t *testing.T) {
	d := newMemDevice(4096)
	ts := serve(t, Options{}, Export{Device: d, ReadOnly: true})
	c := ts.dial(t, ClientOptions{})
	require.True(t, c.Info().ReadOnly)
	require.ErrorIs(t, c.WriteAt(t.Context(), make([]byte, 1), 0, 0), ErrReadOnly)
	for _, cmd := range []command{cmdWrite, cmdTrim, cmdWriteZeroes} {
		_, err := c.roundTrip(t.Context(), requestHeader{cmd: cmd, length: 1}, make([]byte, (requestHeader{cmd: cmd, length: 1}).payload()), nil)
		var e *Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, EPERM, e.Errno)
	}
	require.Empty(t, d.ops)
}

func TestListAndInfo(t *testing.T) {
	d := newMemDevice(1000)
	d.info.MinBlock, d.info.PreferredBlock, d.info.MaxTransfer = 512, 65536, 1<<20
	ts := serve(t, Options{}, Export{Name: "one", Description: "the first", Device: d, NoMultiConn: true}, Export{Name: "two", Device: d})
	list, err := List(t.Context(), "unix", ts.address, nil)
	require.NoError(t, err)
	require.Equal(t, []ExportInfo{{Name: "one", Description: "the first", Size: -1}, {Name: "two", Size: -1}}, list)
	for _, name := range []string{"", "one"} {
		x, err := Info(t.Context(), "unix", ts.address, name, nil)
		require.NoError(t, err)
		require.Equal(t, ExportInfo{Name: "one", Description: "the first", Size: 512, MinBlock: 512, PreferredBlock: 65536, MaxPayload: 1 << 20,
			Flags: x.Flags, Contexts: []string{contextAllocation}}, x)
		require.Equal(t, []string{"flush", "fua", "trim", "zeroes", "df", "cache", "fast-zero"}, x.FlagNames())
	}
	x, err := Info(t.Context(), "unix", ts.address, "two", nil)
	require.NoError(t, err)
	require.True(t, x.MultiConn)
	_, err = Info(t.Context(), "unix", ts.address, "three", nil)
	require.ErrorContains(t, err, `ERR_UNKNOWN: there is no export "three"`)
	require.ErrorIs(t, ts.AddExport(Export{Name: "two", Device: d}), ErrInUse)
}

// Several connections, each with many requests on their way, against a plain
// array. Every goroutine has bytes of its own.
func TestPipelined(t *testing.T) {
	t.Parallel()
	seed := testSeed(t)
	const owners, size = 16, 64 << 10
	d := newMemDevice(owners * size)
	d.info.MaxTransfer = 5000 // pieces
	ts := serve(t, Options{}, Export{Device: d})
	clients := []*Client{ts.dial(t, ClientOptions{}), ts.dial(t, ClientOptions{NoStructured: true}), ts.dial(t, ClientOptions{UseExportName: true})}
	model := make([]byte, owners*size)
	var wg sync.WaitGroup
	for o := range owners {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(o)))
			mine := model[o*size : (o+1)*size]
			for range 100 {
				c := clients[rng.IntN(len(clients))]
				at := rng.IntN(size)
				n := rng.IntN(size - at)
				off := int64(o*size + at)
				var err error
				switch rng.IntN(4) {
				case 0:
					clear(mine[at : at+n])
					err = c.WriteZeroes(t.Context(), off, int64(n), MayUnmap)
				case 1:
					fillRandom(rng, mine[at:at+n])
					err = c.WriteAt(t.Context(), mine[at:at+n], off, 0)
				default:
					got := make([]byte, n)
					err = c.ReadAt(t.Context(), got, off, 0)
					if err == nil && !bytes.Equal(got, mine[at:at+n]) {
						err = fmt.Errorf("other bytes at %d", off)
					}
				}
				if err != nil {
					t.Errorf("owner %d: %v", o, err)
					return
				}
			}
		})
	}
	wg.Wait()
	require.True(t, bytes.Equal(model, d.snapshot()))
	st := ts.Stats()
	require.Equal(t, 3, st.Connections)
	require.Zero(t, st.Errors)
	require.NotZero(t, st.Requests.Read)
	require.NotZero(t, st.BytesIn)
}

func fillRandom(rng *rand.Rand, p []byte) {
	var b [8]byte
	for ; len(p) > 0; p = p[copy(p, b[:]):] {
		be.PutUint64(b[:], rng.Uint64())
	}
}

func testSeed(t *testing.T) uint64 {
	seed, _ := testenv.Seed(t)
	return seed
}

// afterWrite is a connection that calls a function, once, when something was written.
type afterWrite struct {
	net.Conn
	call atomic.Pointer[func()]
}

func (c *afterWrite) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if call := c.call.Swap(nil); call != nil {
		(*call)()
	}
	return n, err
}

// Who gives up when his request has left already, and nobody knows it yet, harms nobody.
func TestClientCancelledBehindItsRequest(t *testing.T) {
	d := newMemDevice(1 << 20)
	gate := make(chan struct{})
	d.before = func(_ context.Context, _ string, off, _ int64, _ block.Flags) error {
		if off == 0 {
			<-gate
		}
		return nil
	}
	ts := serve(t, Options{}, Export{Device: d})
	conn, err := net.Dial(ts.network, ts.address)
	require.NoError(t, err)
	w := &afterWrite{Conn: conn}
	c, err := NewClient(t.Context(), w, ClientOptions{})
	require.NoError(t, err)
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		call := func() { cancel() }
		w.call.Store(&call)
		require.ErrorIs(t, c.ReadAt(ctx, make([]byte, 512), 0, 0), context.Canceled)
		gate <- struct{}{}
		require.NoError(t, c.ReadAt(t.Context(), make([]byte, 512), 512, 0), "the connection lives")
	}
	require.NoError(t, c.Close())
}

func TestClientCancelledRequest(t *testing.T) {
	d := newMemDevice(1 << 20)
	gate := make(chan struct{})
	d.before = func(_ context.Context, op string, off, _ int64, _ block.Flags) error {
		if op == "read" && off == 0 {
			<-gate
		}
		return nil
	}
	ts := serve(t, Options{}, Export{Device: d})
	c := ts.dial(t, ClientOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error)
	p := make([]byte, 512)
	go func() { got <- c.ReadAt(ctx, p, 0, 0) }()
	eventually(t, "reading", func() bool { return d.seen("read") == 1 })
	cancel()
	require.ErrorIs(t, <-got, context.Canceled)
	p[0] = 1 // ours again
	close(gate)
	require.NoError(t, c.ReadAt(t.Context(), make([]byte, 512), 512, 0), "the connection lives")
	require.NoError(t, c.Close())
	require.ErrorIs(t, c.ReadAt(t.Context(), p, 0, 0), ErrClosed)
}
