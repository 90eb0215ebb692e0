package nbd

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// raw is a client that sends whatever a test wants.
type raw struct {
	t    *testing.T
	conn net.Conn
}

// raw connects and reads the greeting.
func (ts *testServer) raw(t *testing.T) *raw {
	t.Helper()
	conn, err := net.Dial(ts.network, ts.address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
	r := &raw{t, conn}
	flags, err := parseGreeting(r.read(greetingBytes))
	require.NoError(t, err)
	require.EqualValues(t, flagFixedNewstyle|flagNoZeroes, flags)
	return r
}

// options sends the client's flags.
func (ts *testServer) options(t *testing.T) *raw {
	r := ts.raw(t)
	r.send(be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes))
	return r
}

// transmission enters the default export, structured or not.
func (ts *testServer) transmission(t *testing.T, structured bool) *raw {
	r := ts.options(t)
	if structured {
		require.Equal(t, []repType{repAck}, r.option(optStructuredReply, nil))
		require.Equal(t, []repType{repMetaContext, repAck}, r.option(optSetMeta, metaRequest{"", []string{contextAllocation}}.append(nil)))
	}
	require.Equal(t, []repType{repInfo, repAck}, r.option(optGo, goRequest{}.append(nil)))
	return r
}

func (r *raw) send(b []byte) {
	r.t.Helper()
	_, err := r.conn.Write(b)
	require.NoError(r.t, err)
}

// zeroes sends n of them.
func (r *raw) zeroes(n int) {
	r.t.Helper()
	for p := make([]byte, 256<<10); n > 0; n -= len(p) {
		p = p[:min(n, len(p))]
		r.send(p)
	}
}

func (r *raw) read(n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	_, err := io.ReadFull(r.conn, b)
	require.NoError(r.t, err)
	return b
}

// option sends an option and returns the types of all replies.
func (r *raw) option(o option, data []byte) []repType {
	r.t.Helper()
	r.send(appendOption(nil, o, data))
	return r.replies(o)
}

func (r *raw) replies(o option) (types []repType) {
	r.t.Helper()
	for {
		to, typ, n, err := parseOptionReply(r.read(replyHeaderBytes))
		require.NoError(r.t, err)
		require.Equal(r.t, o, to)
		r.read(int(n))
		types = append(types, typ)
		if typ == repAck || typ.isError() {
			return types
		}
	}
}

// ask sends a request and expects an error number (0 is success) and, for a
// read that succeeds, data.
func (r *raw) ask(h requestHeader, payload []byte, want Errno) {
	r.t.Helper()
	r.send(append(h.append(nil), payload...))
	r.expect(h, want)
}

func (r *raw) expect(h requestHeader, want Errno) {
	r.t.Helper()
	b := r.read(4)
	if be.Uint32(b) == magicSimple {
		b = r.read(simpleBytes - 4)
		require.Equal(r.t, h.cookie, be.Uint64(b[4:]))
		require.Equal(r.t, want, Errno(be.Uint32(b)))
		if want == 0 && h.cmd == cmdRead {
			r.read(int(h.length))
		}
		return
	}
	c := r.chunkHeader(b, h)
	require.EqualValues(r.t, chunkDone, c.flags)
	b = r.read(int(c.length))
	if !c.typ.isError() {
		require.Zero(r.t, want, "chunk type %d", c.typ)
		return
	}
	require.Less(r.t, len(b), 1000, "QEMU drops the connection")
	e, _, err := parseErrorChunk(b)
	require.NoError(r.t, err)
	require.Equal(r.t, want, e)
}

// chunkHeader reads a chunk's header behind its magic b.
func (r *raw) chunkHeader(b []byte, h requestHeader) chunkHeader {
	r.t.Helper()
	var c chunkHeader
	if h.extended {
		require.Equal(r.t, magicExtChunk, be.Uint32(b))
		c = parseExtChunk(r.read(extChunkBytes - 4))
		require.Equal(r.t, h.offset, c.offset)
	} else {
		require.Equal(r.t, magicChunk, be.Uint32(b))
		c = parseChunk(r.read(chunkBytes - 4))
	}
	require.Equal(r.t, h.cookie, c.cookie)
	return c
}

// closed expects that the server has closed the connection, without another
// byte.
func (r *raw) closed() {
	r.t.Helper()
	b, err := io.ReadAll(r.conn)
	if !errors.Is(err, syscall.ECONNRESET) {
		require.NoError(r.t, err)
	}
	require.Empty(r.t, b)
}

func netPipe() (net.Conn, net.Conn) { return net.Pipe() }
