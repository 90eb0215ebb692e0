package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"math"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What went wrong in other NBD servers and clients, each row with the input that
// did it. Not here, because there is no such thing in this package: address lists
// (CVE-2013-6410, nbdkit's ip filter), URIs (CVE-2025-14946), sockets that somebody
// else opens (CVE-2025-40080).
func TestHistoryOfServers(t *testing.T) {
	const size = 1 << 20
	long := func(n int) string { return string(bytes.Repeat([]byte{'a'}, n)) }
	read := requestHeader{cmd: cmdRead, cookie: 99, length: 512}
	for _, row := range []struct {
		name string
		run  func(*testing.T, *testServer)
	}{
		{"CVE-2011-0530: a request larger than the buffer", func(t *testing.T, ts *testServer) {
			for _, n := range []uint64{payloadBytesMax + 1, 1 << 27} {
				r := ts.transmission(t, false)
				h := requestHeader{cmd: cmdWrite, cookie: 1, length: n}
				r.send(h.append(nil))
				r.zeroes(int(n))
				r.expect(h, EINVAL)
				r.ask(read, nil, 0)
			}
		}},
		{"CVE-2013-7441: ABORT and an unknown export end nothing", func(t *testing.T, ts *testServer) {
			r := ts.options(t)
			require.Equal(t, []repType{repErrUnknown}, r.option(optGo, goRequest{name: "nobody"}.append(nil)))
			r.send(appendOption(nil, optExportName, []byte("nobody")))
			r.closed()
			r = ts.options(t)
			require.Equal(t, []repType{repAck}, r.option(optAbort, nil))
			r.closed()
		}},
		{"CVE-2015-0847: stopping in the middle of requests", func(t *testing.T, ts *testServer) {
			r := ts.transmission(t, true)
			stopped := make(chan error, 1)
			go func() {
				for range 200 {
					if _, err := r.conn.Write(read.append(nil)); err != nil {
						break
					}
				}
			}()
			go func() { stopped <- ts.Shutdown(t.Context()) }()
			_, _ = io.Copy(io.Discard, r.conn)
			require.NoError(t, <-stopped)
		}},
		{"CVE-2017-7539: requests in the handshake", func(t *testing.T, ts *testServer) {
			r := ts.options(t)
			r.send(read.append(nil))
			r.closed()
		}},
		{"CVE-2017-9524, nbdkit 9d82aa4f: hanging up at every byte", func(t *testing.T, ts *testServer) {
			b := appendOption(be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes), optStructuredReply, nil)
			b = read.append(appendOption(b, optGo, goRequest{infos: []infoType{infoName}}.append(nil)))
			for n := range len(b) {
				r := ts.raw(t)
				r.send(b[:n])
				_ = r.conn.Close()
			}
			eventually(t, "all gone", func() bool { return ts.Stats().Connections == 1 })
		}},
		{"CVE-2017-15118, CVE-2022-26496: export names up to 4096 bytes and beyond", func(t *testing.T, ts *testServer) {
			for _, o := range []option{optInfo, optGo} {
				r := ts.options(t)
				for _, n := range []int{255, 256, 257, 1024, 1025, 3000, 4096} {
					require.Equal(t, []repType{repErrUnknown}, r.option(o, goRequest{name: long(n)}.append(nil)))
				}
				require.Equal(t, []repType{repErrTooBig}, r.option(o, goRequest{name: long(4097)}.append(nil)))
			}
		}},
		{"CVE-2017-15119: options of up to 4 GiB", func(t *testing.T, ts *testServer) {
			for _, n := range []uint32{optionBytesMax + 1, 32 << 20, math.MaxUint32} {
				b := appendOption(nil, optList, nil)
				be.PutUint32(b[12:], n)
				r := ts.options(t)
				r.send(b)
				r.closed()
			}
		}},
		{"CVE-2019-14851: INFO and GO in any order", func(t *testing.T, ts *testServer) {
			for _, order := range [][]option{{optInfo, optInfo, optList, optInfo}, {optStructuredReply, optInfo, optSetMeta, optInfo}, {optSetMeta, optInfo, optStructuredReply}, {optInfo, optExtendedHeaders}} {
				r := ts.options(t)
				for _, o := range order {
					data := map[option][]byte{optInfo: goRequest{}.append(nil), optSetMeta: metaRequest{"", []string{contextAllocation}}.append(nil)}[o]
					r.option(o, data)
				}
				extended := order[len(order)-1] == optExtendedHeaders
				require.Equal(t, []repType{repInfo, repAck}, r.option(optGo, goRequest{}.append(nil)))
				r.ask(requestHeader{cmd: cmdRead, length: 512, extended: extended}, nil, 0)
			}
		}},
		{"CVE-2020-10761: the text of an error stays short", func(t *testing.T, ts *testServer) {
			r := ts.options(t)
			r.send(appendOption(nil, optGo, goRequest{name: long(4096)}.append(nil)))
			_, typ, n, err := parseOptionReply(r.read(replyHeaderBytes))
			require.NoError(t, err)
			require.Equal(t, repErrUnknown, typ)
			require.LessOrEqual(t, n, uint32(errorTextMax))
			r.read(int(n))
		}},
		{"nbdkit 6e7b6faf: the data of an option is always taken", func(t *testing.T, ts *testServer) {
			r := ts.options(t)
			for _, o := range []option{optList, optStructuredReply, optExtendedHeaders, optStartTLS, 4, 999} {
				require.Len(t, r.option(o, []byte("some data")), 1)
			}
			require.Equal(t, []repType{repServer, repAck}, r.option(optList, nil))
		}},
		{"CVE-2022-26495: a name of 2^32-1 bytes", func(t *testing.T, ts *testServer) {
			r := ts.options(t)
			for _, o := range []option{optInfo, optGo} {
				require.Equal(t, []repType{repErrInvalid}, r.option(o, []byte{0xff, 0xff, 0xff, 0xff, 0, 0}))
			}
		}},
		{"CVE-2024-7409: many idle handshakes, then the server stops", func(t *testing.T, ts *testServer) {
			var rs []*raw
			for range 90 {
				rs = append(rs, ts.options(t))
			}
			require.NoError(t, ts.Shutdown(t.Context()))
			for _, r := range rs {
				r.closed()
			}
		}},
		{"go-nbd: GO of an unknown export after INFO of a known one", func(t *testing.T, ts *testServer) {
			r := ts.options(t)
			require.Equal(t, []repType{repInfo, repAck}, r.option(optInfo, goRequest{}.append(nil)))
			require.Equal(t, []repType{repErrUnknown}, r.option(optGo, goRequest{name: "nobody"}.append(nil)))
		}},
		{"gonbdserver: CACHE is no WRITE_ZEROES", func(t *testing.T, ts *testServer) {
			r := ts.transmission(t, false)
			r.ask(requestHeader{cmd: cmdWrite, length: 4}, []byte("data"), 0)
			r.ask(requestHeader{cmd: cmdCache, length: 4096}, nil, 0)
			r.send(requestHeader{cmd: cmdRead, length: 4}.append(nil))
			require.Equal(t, "data", string(r.read(simpleBytes + 4)[simpleBytes:]))
			r.ask(requestHeader{cmd: cmdWriteZeroes, length: 4}, nil, 0)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := runtime.NumGoroutine()
			t.Run("", func(t *testing.T) {
				d := newMemDevice(size)
				ts := serve(t, Options{}, Export{Device: d})
				other := ts.dial(t, ClientOptions{})
				row.run(t, ts)
				if !ts.isStopping() {
					require.NoError(t, other.ReadAt(t.Context(), make([]byte, 512), 0, 0))
				}
				require.Equal(t, make([]byte, size), d.snapshot(), "nothing was written")
				require.Zero(t, ts.Stats().Panics)
			})
			eventually(t, "all goroutines gone", func() bool { return runtime.NumGoroutine() <= before })
		})
	}
}

// CVE-2019-14850: nobody reaches the device before GO, and with TLS not before he
// has proved who he is.
func TestDeviceIsUntouchedBeforeGo(t *testing.T) {
	p := newTLSParties(t)
	for _, config := range []*tls.Config{nil, p.server} {
		d := newMemDevice(4096)
		ts := serve(t, Options{TLS: config}, Export{Name: "x", Device: d})
		r := ts.options(t)
		for _, o := range []option{optStructuredReply, optList, optListMeta, optSetMeta, optInfo} {
			r.option(o, nil)
		}
		r.option(optInfo, goRequest{name: "x"}.append(nil))
		require.Empty(t, d.ops)
	}
}

// CVE-2025-47711 and -47712: the largest BLOCK_STATUS of a device with large blocks,
// aligned, not aligned, and with 64 bits.
func TestBlockStatusRounding(t *testing.T) {
	d := &hugeDevice{memDevice: *newMemDevice(0)}
	d.info.Size, d.info.MinBlock = 1<<40, 4096
	ts := serve(t, Options{}, Export{Device: d})
	for _, extended := range []bool{false, true} {
		c := ts.dial(t, ClientOptions{Extended: extended})
		for _, n := range []uint64{1<<32 - 1, 1<<32 - 4096, 1<<32 - 512} {
			k, err := c.roundTrip(t.Context(), requestHeader{cmd: cmdBlockStatus, offset: 4096, length: n}, nil, nil)
			if n%4096 != 0 {
				var e *Error
				require.ErrorAs(t, err, &e)
				require.Equal(t, EINVAL, e.Errno)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, []descriptor{{n, stateHole | stateZero}}, k.descriptors)
		}
	}
	c := ts.dial(t, ClientOptions{Extended: true})
	for _, n := range []uint64{1<<40 - 4096, 1 << 40, math.MaxUint64 &^ 4095} {
		_, err := c.roundTrip(t.Context(), requestHeader{cmd: cmdBlockStatus, offset: 4096, length: n}, nil, nil)
		require.Equal(t, n == 1<<40-4096, err == nil, "%d: %v", n, err)
	}
}

// hostile connects to a server that says hello whatever it is sent, and hangs up, or
// if it has a reply gives it to the first request.
func hostile(t *testing.T, hello, reply []byte, o ClientOptions) (*Client, error) {
	t.Helper()
	a, s := net.Pipe()
	t.Cleanup(func() { _ = s.Close() })
	said := make(chan struct{})
	go func() {
		defer close(said)
		_, _ = s.Write(hello)
		if reply == nil {
			_ = s.Close()
		}
	}()
	go func() {
		magic := be.AppendUint32(nil, magicRequest)
		if o.Extended {
			magic = be.AppendUint32(nil, magicExtRequest)
		}
		var got []byte
		for p := make([]byte, 512); !bytes.Contains(got, magic); {
			n, err := s.Read(p)
			if err != nil {
				return
			}
			got = append(got, p[:n]...)
		}
		<-said
		_, _ = s.Write(reply)
		_ = s.Close()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := NewClient(ctx, a, o)
	if err == nil {
		t.Cleanup(func() { _ = c.Close() })
	}
	return c, err
}

// serverHello is a handshake of a server with structured replies, extended headers
// too if wanted, and base:allocation as context 3.
func serverHello(size uint64, extended bool) []byte {
	o := optStructuredReply
	if extended {
		o = optExtendedHeaders
	}
	b := appendOptionReply(appendGreeting(nil, flagFixedNewstyle|flagNoZeroes), o, repAck, nil)
	b = appendOptionReply(b, optSetMeta, repMetaContext, appendMetaContext(nil, 3, contextAllocation))
	b = appendOptionReply(b, optSetMeta, repAck, nil)
	b = appendOptionReply(b, optGo, repInfo, appendInfoExport(nil, size, uint16(txHasFlags|txSendFlush|txSendDF)))
	return appendOptionReply(b, optGo, repAck, nil)
}

func TestHistoryOfClients(t *testing.T) {
	t.Run("CVE-2021-20286: the server dies in GO", func(t *testing.T) {
		b := serverHello(4096, false)
		for n := range len(b) {
			_, err := hostile(t, b[:n], nil, ClientOptions{})
			require.Error(t, err)
		}
	})
	t.Run("CVE-2023-5215: a size above 2^63", func(t *testing.T) {
		for _, size := range []uint64{1 << 63, math.MaxUint64} {
			_, err := hostile(t, serverHello(size, false), nil, ClientOptions{})
			require.ErrorIs(t, err, errSyntax)
		}
	})
	t.Run("a chunk that repeats another offset", func(t *testing.T) {
		h := requestHeader{cookie: 1, length: 512, offset: 512, extended: true}
		b := append(be.AppendUint64(chunkOf(h, chunkDone, chunkOffsetData, 8+512).append(nil, true), 1024), make([]byte, 512)...)
		c, err := hostile(t, serverHello(4096, true), b, ClientOptions{Extended: true})
		require.NoError(t, err)
		require.ErrorIs(t, c.ReadAt(t.Context(), make([]byte, 512), 1024, 0), errSyntax)
	})
	for _, extended := range []bool{false, true} {
		h := requestHeader{cookie: 1, length: 512, offset: 1024, extended: extended}
		chunk := func(c chunkHeader, payload []byte) []byte { return append(c.append(nil, extended), payload...) }
		at := func(off uint64, more int) []byte { return append(be.AppendUint64(nil, off), make([]byte, more)...) }
		for name, b := range map[string][]byte{
			"libnbd 2019: data before the request":         chunk(chunkOf(h, chunkDone, chunkOffsetData, 8+512), at(0, 512)),
			"libnbd 2019: a negative offset":               chunk(chunkOf(h, chunkDone, chunkOffsetData, 8+512), at(math.MaxUint64-511, 512)),
			"libnbd 2019: data behind the request":         chunk(chunkOf(h, chunkDone, chunkOffsetData, 8+512), at(1025, 512)),
			"libnbd 2019: a hole of 4 GiB":                 chunk(chunkOf(h, chunkDone, chunkOffsetHole, 12), be.AppendUint32(at(1024, 0), math.MaxUint32)),
			"CVE-2022-0485: less than was asked for":       chunk(chunkOf(h, chunkDone, chunkOffsetData, 8+256), at(1024, 256)),
			"CVE-2022-0485: success without any data":      chunk(chunkOf(h, chunkDone, chunkNone, 0), nil),
			"CVE-2022-0485: an error":                      appendErrorChunk(nil, h, EIO, "broken"),
			"CVE-2022-0485: an error behind the data":      appendErrorChunk(chunk(chunkOf(h, 0, chunkOffsetData, 8+512), at(1024, 512)), h, EIO, "broken"),
			"a chunk that does not fit what was agreed on": append(chunkOf(h, chunkDone, chunkOffsetData, 8+512).append(nil, !extended), at(1024, 512)...),
		} {
			t.Run(name, func(t *testing.T) {
				c, err := hostile(t, serverHello(4096, extended), b, ClientOptions{Extended: extended})
				require.NoError(t, err)
				err = c.ReadAt(t.Context(), make([]byte, 512), 1024, 0)
				if strings.Contains(name, "an error") {
					var e *Error
					require.ErrorAs(t, err, &e)
					require.Equal(t, EIO, e.Errno)
					return
				}
				require.ErrorIs(t, err, errSyntax)
			})
		}
		status := func(id uint32, ds ...descriptor) []byte { return appendStatusChunk(nil, h, chunkDone, id, ds) }
		for name, b := range map[string][]byte{
			"CVE-2023-5871: another context":                status(4, descriptor{512, 0}),
			"CVE-2023-5871: the other layout":               chunk(chunkOf(h, chunkDone, map[bool]chunkType{true: chunkBlockStatus, false: chunkStatusExt}[extended], 12), make([]byte, 12)),
			"CVE-2023-5871: no length":                      status(3, descriptor{0, 0}),
			"CVE-2023-5871: descriptors behind the request": status(3, descriptor{512, 0}, descriptor{512, 1}),
			"CVE-2023-5871: none":                           status(3),
			"CVE-2023-5871: a length that wraps":            status(3, descriptor{256, 0}, descriptor{math.MaxUint64, 0}, descriptor{1, 0}),
			"CVE-2023-5871: success without descriptors":    chunk(chunkOf(h, chunkDone, chunkNone, 0), nil),
		} {
			t.Run(name, func(t *testing.T) {
				c, err := hostile(t, serverHello(4096, extended), b, ClientOptions{Extended: extended})
				require.NoError(t, err)
				got, err := c.AppendExtents(t.Context(), nil, 1024, 512)
				require.ErrorIs(t, err, errSyntax, "%+v", got)
			})
		}
	}
}
