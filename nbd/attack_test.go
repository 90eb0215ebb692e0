package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// The corpus of bad input. Every row says what the server must do; afterwards
// another client, connected all the time, must have noticed nothing and no
// goroutine may be left.
func TestAttacks(t *testing.T) {
	const size = 1 << 20
	header := func(o option, length uint32) []byte {
		b := appendOption(nil, o, nil)
		binary.BigEndian.PutUint32(b[12:], length)
		return b
	}
	name := func(n int) string { return strings.Repeat("a", n) }
	alive := func(r *raw) { r.ask(requestHeader{cmd: cmdRead, cookie: 99, length: 512}, nil, 0) }
	optionsAlive := func(r *raw) {
		require.Equal(r.t, []repType{repServer, repAck}, r.option(optList, nil))
	}
	refuse := func(o option, data []byte, want repType) func(*testing.T, *testServer) {
		return func(t *testing.T, ts *testServer) {
			r := ts.options(t)
			if o == optSetMeta || o == optListMeta {
				r.option(optStructuredReply, nil)
			}
			require.Equal(t, []repType{want}, r.option(o, data))
			optionsAlive(r)
		}
	}
	drop := func(b []byte) func(*testing.T, *testServer) {
		return func(t *testing.T, ts *testServer) {
			r := ts.options(t)
			r.send(b)
			r.closed()
		}
	}
	dropRaw := func(b []byte) func(*testing.T, *testServer) {
		return func(t *testing.T, ts *testServer) {
			r := ts.raw(t)
			r.send(b)
			r.closed()
		}
	}
	answer := func(h requestHeader, want Errno) func(*testing.T, *testServer) {
		return func(t *testing.T, ts *testServer) {
			for _, structured := range []bool{false, true} {
				r := ts.transmission(t, structured)
				h.cookie = 0xfeedfacecafebeef
				want := want
				if want == EOVERFLOW && !structured {
					want = EINVAL
				}
				r.send(h.append(nil))
				r.zeroes(int(h.payload()))
				r.expect(h, want)
				alive(r)
			}
		}
	}
	for _, row := range []struct {
		name string
		run  func(*testing.T, *testServer)
	}{
		// Handshake.
		{"port scan", func(t *testing.T, ts *testServer) { _ = ts.raw(t).conn.Close() }},
		{"unknown client flags", dropRaw([]byte{0x80, 0, 0, 3})},
		{"HTTP", dropRaw([]byte("GET / HTTP/1.1\r\nHost: example\r\n\r\n"))},
		{"options without fixed newstyle", dropRaw(append([]byte{0, 0, 0, 2}, appendOption(nil, optList, nil)...))},
		{"option magic", drop(bytes.Repeat([]byte{0x42}, optionHeaderBytes))},
		{"option of 4 GiB", drop(header(optGo, math.MaxUint32))},
		{"unknown option of 4 GiB", drop(header(0x7654321, math.MaxUint32))},
		{"option of 64 KiB + 1", drop(header(optInfo, optionBytesMax+1))},
		{"EXPORT_NAME of an unknown export", drop(appendOption(nil, optExportName, []byte("nobody")))},
		{"EXPORT_NAME of 4097 bytes", drop(appendOption(nil, optExportName, []byte(name(4097))))},
		{"unknown option", refuse(0x7654321, []byte("payload"), repErrUnsup)},
		{"option of 64 KiB", refuse(0x7654321, make([]byte, optionBytesMax), repErrUnsup)},
		{"STARTTLS", refuse(optStartTLS, nil, repErrUnsup)},
		{"EXTENDED_HEADERS with data", refuse(optExtendedHeaders, []byte{0}, repErrInvalid)},
		{"PEEK_EXPORT", refuse(4, nil, repErrUnsup)},
		{"LIST with data", refuse(optList, []byte{0}, repErrInvalid)},
		{"STRUCTURED_REPLY with data", refuse(optStructuredReply, []byte{0}, repErrInvalid)},
		{"GO of nothing", refuse(optGo, nil, repErrInvalid)},
		{"GO with a name of 4 GiB", refuse(optGo, []byte{0xff, 0xff, 0xff, 0xff, 0, 0}, repErrInvalid)},
		{"GO with a name beyond the option", refuse(optGo, []byte{0, 0, 0, 3, 'a', 'b', 0, 0}, repErrInvalid)},
		{"GO with too few infos", refuse(optGo, []byte{0, 0, 0, 0, 0, 2, 0, 0}, repErrInvalid)},
		{"GO with too many infos", refuse(optGo, []byte{0, 0, 0, 0, 0, 0, 0, 0}, repErrInvalid)},
		{"GO with a name of 3000 bytes", refuse(optGo, goRequest{name: name(3000)}.append(nil), repErrUnknown)},
		{"INFO with a name of 4096 bytes", refuse(optInfo, goRequest{name: name(4096)}.append(nil), repErrUnknown)},
		{"INFO with a name of 4097 bytes", refuse(optInfo, goRequest{name: name(4097)}.append(nil), repErrTooBig)},
		{"SET_META of nothing", refuse(optSetMeta, nil, repErrInvalid)},
		{"SET_META with 4 G queries", refuse(optSetMeta, []byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, repErrInvalid)},
		{"SET_META with a query of 4 GiB", refuse(optSetMeta, []byte{0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff}, repErrInvalid)},
		{"SET_META with bytes left", refuse(optSetMeta, []byte{0, 0, 0, 0, 0, 0, 0, 0, 1}, repErrInvalid)},
		{"SET_META of an unknown export", refuse(optSetMeta, metaRequest{"x", nil}.append(nil), repErrUnknown)},
		{"SET_META of unknown namespaces", refuse(optSetMeta, metaRequest{"", []string{"qemu:x", "base:", "", "base"}}.append(nil), repAck)},
		{"META without structured replies", func(t *testing.T, ts *testServer) {
			r := ts.options(t)
			require.Equal(t, []repType{repErrInvalid}, r.option(optSetMeta, metaRequest{}.append(nil)))
			optionsAlive(r)
		}},
		{"too many options", func(t *testing.T, ts *testServer) {
			r := ts.options(t)
			for range optionsMax {
				require.Equal(t, []repType{repErrUnsup}, r.option(99, nil))
			}
			r.send(appendOption(nil, 99, nil))
			r.closed()
		}},
		{"ABORT with data", func(t *testing.T, ts *testServer) {
			r := ts.options(t)
			require.Equal(t, []repType{repAck}, r.option(optAbort, []byte("bye")))
			r.closed()
		}},
		{"GO in pieces of a byte", func(t *testing.T, ts *testServer) {
			r := ts.options(t)
			for _, b := range appendOption(nil, optGo, goRequest{}.append(nil)) {
				r.send([]byte{b})
			}
			require.Equal(t, []repType{repInfo, repAck}, r.replies(optGo))
			alive(r)
		}},

		// Transmission.
		{"request magic", func(t *testing.T, ts *testServer) {
			r := ts.transmission(t, true)
			r.send(bytes.Repeat([]byte{0x21}, requestBytes))
			r.closed()
		}},
		{"extended request magic", func(t *testing.T, ts *testServer) {
			r := ts.transmission(t, true)
			r.send(append([]byte{0x21, 0xe4, 0x1c, 0x71}, make([]byte, 28)...))
			r.closed()
		}},
		{"half a request", func(t *testing.T, ts *testServer) {
			r := ts.transmission(t, true)
			r.send(requestHeader{cmd: cmdRead, length: 1}.append(nil)[:20])
			_ = r.conn.Close()
		}},
		{"half a payload", func(t *testing.T, ts *testServer) {
			r := ts.transmission(t, true)
			r.send(append(requestHeader{cmd: cmdWrite, length: 1 << 20}.append(nil), make([]byte, 1000)...))
			_ = r.conn.Close()
		}},
		{"unknown command", answer(requestHeader{cmd: 8}, EINVAL)},
		{"command 65535", answer(requestHeader{cmd: 0xffff, length: math.MaxUint32}, EINVAL)},
		{"unknown flags of READ", answer(requestHeader{cmd: cmdRead, flags: 1 << 5, length: 512}, EINVAL)},
		{"NO_HOLE on WRITE", answer(requestHeader{cmd: cmdWrite, flags: cmdFlagNoHole, length: 512}, EINVAL)},
		{"REQ_ONE on READ", answer(requestHeader{cmd: cmdRead, flags: cmdFlagReqOne, length: 512}, EINVAL)},
		{"flag on CACHE", answer(requestHeader{cmd: cmdCache, flags: cmdFlagDF, length: 512}, EINVAL)},
		{"FUA on READ", answer(requestHeader{cmd: cmdRead, flags: cmdFlagFUA, length: 512}, 0)},
		{"FLUSH with an offset", answer(requestHeader{cmd: cmdFlush, offset: 1}, EINVAL)},
		{"WRITE of 32 MiB + 1", answer(requestHeader{cmd: cmdWrite, length: payloadBytesMax + 1}, EINVAL)},
		{"WRITE with a bad flag and a payload", answer(requestHeader{cmd: cmdWrite, flags: 1 << 15, length: 4096}, EINVAL)},
		{"READ of 4 GiB - 1", answer(requestHeader{cmd: cmdRead, length: math.MaxUint32}, EOVERFLOW)},
		{"READ past the end", answer(requestHeader{cmd: cmdRead, offset: size - 511, length: 512}, EINVAL)},
		{"TRIM past the end", answer(requestHeader{cmd: cmdTrim, offset: size - 511, length: 512}, EINVAL)},
		{"CACHE past the end", answer(requestHeader{cmd: cmdCache, offset: size, length: 1}, EINVAL)},
		{"WRITE past the end", answer(requestHeader{cmd: cmdWrite, offset: size - 511, length: 512}, ENOSPC)},
		{"WRITE_ZEROES past the end", answer(requestHeader{cmd: cmdWriteZeroes, offset: size - 511, length: 512}, ENOSPC)},
		{"READ at 2^64-1", answer(requestHeader{cmd: cmdRead, offset: math.MaxUint64, length: 1}, EINVAL)},
		{"READ that wraps", answer(requestHeader{cmd: cmdRead, offset: math.MaxUint64 - 511, length: 4096}, EINVAL)},
		{"WRITE that wraps", answer(requestHeader{cmd: cmdWrite, offset: math.MaxUint64 - 511, length: 4096}, ENOSPC)},
		{"WRITE at 2^63-1", answer(requestHeader{cmd: cmdWrite, offset: math.MaxInt64, length: 4096}, ENOSPC)},
		{"READ of nothing", answer(requestHeader{cmd: cmdRead, offset: size}, 0)},
		{"WRITE of nothing", answer(requestHeader{cmd: cmdWrite, offset: 7}, 0)},
		{"BLOCK_STATUS of 4 GiB - 1", answer(requestHeader{cmd: cmdBlockStatus, length: math.MaxUint32}, EINVAL)},
		{"BLOCK_STATUS of nothing", answer(requestHeader{cmd: cmdBlockStatus}, EINVAL)},
		{"BLOCK_STATUS without a context", func(t *testing.T, ts *testServer) {
			r := ts.transmission(t, false)
			r.ask(requestHeader{cmd: cmdBlockStatus, length: 512}, nil, EINVAL)
			alive(r)
		}},
		{"DF without structured replies", func(t *testing.T, ts *testServer) {
			r := ts.transmission(t, false)
			r.ask(requestHeader{cmd: cmdRead, flags: cmdFlagDF, length: 512}, nil, EINVAL)
			alive(r)
		}},
		{"DISC with junk behind it", func(t *testing.T, ts *testServer) {
			r := ts.transmission(t, true)
			r.send(requestHeader{cmd: cmdDisc, length: 4}.append(nil))
			r.closed()
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			t.Run("", func(t *testing.T) {
				d := newMemDevice(size)
				ts := serve(t, Options{}, Export{Device: d})
				other := ts.dial(t, ClientOptions{})
				row.run(t, ts)
				require.NoError(t, other.ReadAt(t.Context(), make([]byte, 512), 0, 0))
				require.Equal(t, make([]byte, size), d.snapshot(), "nothing was written")
				require.Zero(t, ts.Stats().Panics)
			})
			eventually(t, "all goroutines gone", func() bool { return runtime.NumGoroutine() <= before })
		})
	}
}

// The largest BLOCK_STATUS, of an export where it is legal, at the boundary
// that CVE-2025-47711 was about.
func TestBlockStatusBoundary(t *testing.T) {
	d := &hugeDevice{memDevice: *newMemDevice(0)}
	d.info.Size = 1 << 40
	ts := serve(t, Options{}, Export{Device: d})
	c := ts.dial(t, ClientOptions{})
	for _, flags := range []cmdFlags{0, cmdFlagReqOne} {
		k, err := c.roundTrip(t.Context(), requestHeader{cmd: cmdBlockStatus, flags: flags, offset: 1, length: math.MaxUint32}, nil, nil)
		require.NoError(t, err)
		require.Equal(t, []descriptor{{math.MaxUint32, stateHole | stateZero}}, k.descriptors)
	}
	got, err := c.AppendExtents(t.Context(), nil, 0, 1<<40)
	require.NoError(t, err)
	require.Equal(t, []Extent{{Len: 1 << 40, State: block.Zero, Host: -1}}, got)
}

type hugeDevice struct {
	memDevice
	ranges [][2]int64 // of WriteZeroes and Discard, with memDevice.mu
}

func (d *hugeDevice) AppendExtents(_ context.Context, dst []Extent, off, n int64) ([]Extent, error) {
	return append(dst, Extent{Off: off, Len: n, State: block.Zero, Host: -1}), nil
}

func TestHalfOpenHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, good := pipeClient(t, Options{MaxConnections: 5}, Export{Device: newMemDevice(4096)})
		start := time.Now()
		var idle []*raw
		for range 5 { // one above the limit: the oldest gives way
			r := pipeRaw(t, srv)
			r.read(greetingBytes)
			idle = append(idle, r)
		}
		idle[0].closed()
		require.Zero(t, time.Since(start))
		require.Equal(t, 5, srv.Stats().Connections)
		for _, r := range idle[1:] {
			r.closed()
			require.Equal(t, handshakeDefault, time.Since(start))
		}
		require.NoError(t, good.Flush(t.Context()), "the limit is the handshake's")
		synctest.Wait()
		require.Equal(t, 1, srv.Stats().Connections, "room again")
		clients := []*Client{good}
		for range 4 {
			clients = append(clients, pipeTo(t, srv))
		}
		pipeRaw(t, srv).closed() // nobody gives way who has an export
		require.EqualValues(t, 2, srv.Stats().Refused)
		for _, c := range clients {
			require.NoError(t, c.Flush(t.Context()))
			require.NoError(t, c.Close())
		}
		require.NoError(t, srv.Shutdown(t.Context()))
	})
}

// pipeRaw connects over net.Pipe.
func pipeRaw(t *testing.T, srv *Server) *raw {
	a, b := netPipe()
	srv.ServeConn(a)
	return &raw{t, b}
}

// The time limit ends a handshake over a socket too.
func TestHalfOpenHandshakeOverASocket(t *testing.T) {
	t.Parallel()
	ts := serve(t, Options{HandshakeTimeout: 10 * time.Millisecond}, Export{Device: newMemDevice(4096)})
	conn, err := net.Dial("unix", ts.address)
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.Copy(io.Discard, conn)
	require.NoError(t, err)
}

// A client that asks and never reads makes the server keep no more than the
// budget, harms nobody, and is thrown out.
func TestClientThatDoesNotRead(t *testing.T) {
	t.Parallel()
	const piece, pieces = 512 << 10, 12
	const sent = 1 + 2*sendBufferBytes/piece // the kernel doubles what it is asked for
	d := newMemDevice(1 << 20)
	srv := NewServer(Options{WriteTimeout: 2 * time.Second})
	srv.connectionBytes = pieces * piece
	ts := serveOn(t, srv, Export{Device: d})
	other := ts.dial(t, ClientOptions{})
	r := ts.transmission(t, false) // holes would be short
	go func() {                    // until the server hangs up
		b := requestHeader{cmd: cmdRead, length: piece}.append(nil)
		for {
			if _, err := r.conn.Write(b); err != nil {
				return
			}
		}
	}()
	eventually(t, "budget full", func() bool { return d.seen("read") >= pieces })
	for range 10 {
		require.NoError(t, other.ReadAt(t.Context(), make([]byte, 4096), 0, 0))
	}
	require.LessOrEqual(t, d.seen("read"), 10+pieces+sent)
	eventually(t, "thrown out", func() bool { return ts.Stats().Connections == 1 })
}

// A panic in a request ends its connection only.
func TestPanic(t *testing.T) {
	d := newMemDevice(4096)
	d.before = func(_ context.Context, op string, _, _ int64, _ block.Flags) error {
		if op == "flush" {
			panic("on purpose")
		}
		return nil
	}
	ts := serve(t, Options{}, Export{Device: d})
	other, c := ts.dial(t, ClientOptions{}), ts.dial(t, ClientOptions{})
	require.Error(t, c.Flush(t.Context()))
	require.NoError(t, other.ReadAt(t.Context(), make([]byte, 1), 0, 0))
	require.EqualValues(t, 1, ts.Stats().Panics)
}

// A device with large blocks is refused to clients that do not ask for them.
func TestBlockSizeRequired(t *testing.T) {
	d := newMemDevice(1 << 20)
	d.info.MinBlock = 4096
	ts := serve(t, Options{}, Export{Device: d})
	r := ts.options(t)
	require.Equal(t, []repType{repInfo, repErrBlockSize}, r.option(optGo, goRequest{}.append(nil)))
	r.send(appendOption(nil, optExportName, nil))
	r.closed()
	c := ts.dial(t, ClientOptions{})
	var e *Error
	require.ErrorAs(t, c.ReadAt(t.Context(), make([]byte, 512), 0, 0), &e)
	require.Equal(t, EINVAL, e.Errno)
	require.NoError(t, c.ReadAt(t.Context(), make([]byte, 4096), 0, 0))
}
