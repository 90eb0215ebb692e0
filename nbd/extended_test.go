package nbd

import (
	"context"
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// Neither QEMU 7.2 nor libnbd 1.14 knows extended headers; these are the test
// clients that do: raw for what is not allowed, Client for what is.

func (ts *testServer) extended(t *testing.T, contexts ...string) *raw {
	r := ts.options(t)
	require.Equal(t, []repType{repAck}, r.option(optExtendedHeaders, nil))
	want := make([]repType, 0, len(contexts)+1)
	for range contexts {
		want = append(want, repMetaContext)
	}
	require.Equal(t, append(want, repAck), r.option(optSetMeta, metaRequest{"", contexts}.append(nil)))
	require.Equal(t, []repType{repInfo, repAck}, r.option(optGo, goRequest{}.append(nil)))
	return r
}

func TestExtendedNegotiation(t *testing.T) {
	ts := serve(t, Options{}, Export{Device: newMemDevice(4096), AllocationDepth: true})
	flags := func(r *raw) txFlags {
		f, err := (&negotiation{conn: r.conn}).infoOrGo(optInfo, "")
		require.NoError(t, err)
		return f.flags
	}
	r := ts.options(t)
	require.Equal(t, []repType{repAck}, r.option(optStructuredReply, nil))
	require.Equal(t, []repType{repMetaContext, repAck}, r.option(optSetMeta, metaRequest{"", []string{contextDepth}}.append(nil)))
	require.False(t, flags(r).has(txStatusPayload), "without extended headers there is no payload")
	require.Equal(t, []repType{repAck}, r.option(optExtendedHeaders, nil), "after structured replies")
	require.Equal(t, []repType{repErrExtHeaderReq}, r.option(optStructuredReply, nil))
	require.Equal(t, []repType{repErrInvalid}, r.option(optExtendedHeaders, nil))
	require.True(t, flags(r).has(txStatusPayload|txSendDF))
	require.Equal(t, []repType{repAck}, r.option(optSetMeta, metaRequest{"", nil}.append(nil)))
	require.False(t, flags(r).has(txStatusPayload), "nothing is left to choose from")
	r.send(appendOption(nil, optExportName, nil))
	r.closed()

	c := ts.dial(t, ClientOptions{Extended: true})
	require.True(t, c.extended && c.structured && c.allocation)
}

// Ranges beyond 4 GiB are one request, and one descriptor.
func TestExtendedLengths(t *testing.T) {
	const size = 1 << 44
	d := &hugeDevice{memDevice: *newMemDevice(0)}
	d.info.Size = size
	ts := serve(t, Options{}, Export{Device: d})
	c := ts.dial(t, ClientOptions{Extended: true})
	k, err := c.roundTrip(t.Context(), requestHeader{cmd: cmdBlockStatus, length: size}, nil, nil)
	require.NoError(t, err)
	require.Equal(t, []descriptor{{size, stateHole | stateZero}}, k.descriptors)
	require.NoError(t, c.WriteZeroes(t.Context(), 0, size, MayUnmap))
	require.NoError(t, c.Discard(t.Context(), 4096, size-4096, 0))
	d.mu.Lock()
	defer d.mu.Unlock()
	require.Equal(t, [][2]int64{{0, size}, {4096, size - 4096}}, d.ranges)
	require.EqualValues(t, 3, ts.Stats().Requests.BlockStatus+ts.Stats().Requests.WriteZeroes+ts.Stats().Requests.Trim)
}

func (d *hugeDevice) WriteZeroes(_ context.Context, off, n int64, f block.Flags) error {
	if f.Has(block.NoWait) {
		return block.ErrWouldBlock
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ranges = append(d.ranges, [2]int64{off, n})
	return nil
}

func (d *hugeDevice) Discard(ctx context.Context, off, n int64, f block.Flags) error {
	return d.WriteZeroes(ctx, off, n, f)
}

// What an extended request may not be; the connection goes on unless it is said.
func TestExtendedAttacks(t *testing.T) {
	const size = 1 << 20
	d := newMemDevice(size)
	ts := serve(t, Options{}, Export{Device: d})
	for _, row := range []struct {
		name string
		h    requestHeader
		want Errno
	}{
		{"READ of 2^64-1", requestHeader{cmd: cmdRead, length: math.MaxUint64}, EOVERFLOW},
		{"READ of 2^32, which has no low bits", requestHeader{cmd: cmdRead, length: 1 << 32}, EOVERFLOW},
		{"TRIM of 2^64-1", requestHeader{cmd: cmdTrim, length: math.MaxUint64}, EINVAL},
		{"TRIM that wraps", requestHeader{cmd: cmdTrim, offset: 4096, length: math.MaxUint64 - 4095}, EINVAL},
		{"WRITE_ZEROES of 2^63", requestHeader{cmd: cmdWriteZeroes, length: 1 << 63}, ENOSPC},
		{"WRITE_ZEROES that wraps an int64", requestHeader{cmd: cmdWriteZeroes, offset: math.MaxInt64, length: math.MaxInt64}, ENOSPC},
		{"BLOCK_STATUS of 2^32", requestHeader{cmd: cmdBlockStatus, length: 1 << 32}, EINVAL},
		{"CACHE of 2^40", requestHeader{cmd: cmdCache, length: 1 << 40}, EINVAL},
		{"FLUSH with a length", requestHeader{cmd: cmdFlush, length: 1 << 32}, EINVAL},
		{"payload of READ", requestHeader{cmd: cmdRead, flags: cmdFlagPayload, length: 512}, EINVAL},
		{"payload of TRIM, of 1 MiB", requestHeader{cmd: cmdTrim, flags: cmdFlagPayload, length: 1 << 20}, EINVAL},
		{"payload of WRITE_ZEROES", requestHeader{cmd: cmdWriteZeroes, flags: cmdFlagPayload, length: 7}, EINVAL},
		{"payload of an unknown command", requestHeader{cmd: 77, flags: cmdFlagPayload, length: 70000}, EINVAL},
		{"filter of nothing", requestHeader{cmd: cmdBlockStatus, flags: cmdFlagPayload}, EINVAL},
		{"filter of 1 MiB", requestHeader{cmd: cmdBlockStatus, flags: cmdFlagPayload, length: 1 << 20}, EINVAL},
		{"WRITE of 32 MiB + 1", requestHeader{cmd: cmdWrite, flags: cmdFlagPayload, length: payloadBytesMax + 1}, EINVAL},
		{"READ of nothing", requestHeader{cmd: cmdRead}, 0},
		{"WRITE of nothing", requestHeader{cmd: cmdWrite, flags: cmdFlagPayload}, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := ts.extended(t, contextAllocation)
			h := row.h
			h.extended, h.cookie = true, 0xfeedfacecafebeef
			r.send(h.append(nil))
			r.zeroes(int(h.payload()))
			r.expect(h, row.want)
			r.ask(requestHeader{cmd: cmdFlush, extended: true, cookie: 5}, nil, 0)
		})
	}
	require.Equal(t, make([]byte, size), d.snapshot(), "nothing was written")
	for name, b := range map[string][]byte{
		"a compact request":                     append(requestHeader{cmd: cmdRead, length: 512}.append(nil), 0, 0, 0, 0),
		"WRITE of 4 GiB":                        requestHeader{cmd: cmdWrite, flags: cmdFlagPayload, length: 1 << 32, extended: true}.append(nil),
		"payload of 2^64-1":                     requestHeader{cmd: cmdTrim, flags: cmdFlagPayload, length: math.MaxUint64, extended: true}.append(nil),
		"DISC":                                  requestHeader{cmd: cmdDisc, extended: true}.append(nil),
		"filter of 2^64-1":                      requestHeader{cmd: cmdBlockStatus, flags: cmdFlagPayload, length: math.MaxUint64, extended: true}.append(nil),
		"WRITE_ZEROES of 2^64-1 with a payload": requestHeader{cmd: cmdWriteZeroes, flags: cmdFlagPayload, length: math.MaxUint64, extended: true}.append(nil),
	} {
		t.Run(name, func(t *testing.T) {
			r := ts.extended(t, contextAllocation)
			r.send(b)
			r.closed()
		})
	}
	require.Zero(t, ts.Stats().Panics)
}

// layered is a device with a piece of its own, one from below, and one from
// nowhere.
type layered struct{ memDevice }

func (d *layered) AppendExtents(_ context.Context, dst []Extent, off, n int64) ([]Extent, error) {
	all := []Extent{
		{Off: 0, Len: 8192, State: block.Allocated | block.Data, Host: 0},
		{Off: 8192, Len: 8192, State: block.Allocated | block.Zero, Host: -1},
		{Off: 16384, Len: 8192, State: block.Allocated | block.Data, Host: 0, Depth: 1},
		{Off: 24576, Len: 4096, State: block.Allocated | block.Data, Host: 0, Depth: 2},
		{Off: 28672, Len: 1<<20 - 28672, State: block.Zero, Host: -1},
	}
	for _, e := range all {
		end := min(e.End(), off+n)
		if e.Off = max(e.Off, off); e.Off < end {
			e.Len = end - e.Off
			dst = append(dst, e)
		}
	}
	return dst, nil
}

// status asks for descriptors, by the id of their context.
func (r *raw) status(h requestHeader, payload []byte) map[uint32][]descriptor {
	r.t.Helper()
	all := map[uint32][]descriptor{}
	r.send(append(h.append(nil), payload...))
	for {
		c := r.chunkHeader(r.read(4), h)
		b := r.read(int(c.length))
		require.False(r.t, c.typ.isError(), "%q", b)
		parse := parseStatusChunk
		if h.extended {
			require.Equal(r.t, chunkStatusExt, c.typ)
			parse = parseStatusExtChunk
		}
		id, ds, err := parse(b)
		require.NoError(r.t, err)
		require.NotContains(r.t, all, id)
		all[id] = ds
		if c.flags&chunkDone != 0 {
			return all
		}
	}
}

// Both contexts, compact and extended; with a filter only those that it names.
func TestContexts(t *testing.T) {
	ts := serve(t, Options{}, Export{Device: &layered{*newMemDevice(1 << 20)}, AllocationDepth: true})
	allocation := []descriptor{{8192, 0}, {8192, stateHole | stateZero}, {12288, 0}, {1<<20 - 28672, stateHole | stateZero}}
	depth := []descriptor{{16384, 1}, {8192, 2}, {4096, 3}, {1<<20 - 28672, 0}}
	const h = 1 << 20

	r := ts.options(t)
	require.Equal(t, []repType{repAck}, r.option(optStructuredReply, nil))
	require.Equal(t, []repType{repMetaContext, repMetaContext, repAck}, r.option(optListMeta, metaRequest{}.append(nil)))
	require.Equal(t, []repType{repMetaContext, repAck}, r.option(optListMeta, metaRequest{"", []string{"qemu:"}}.append(nil)))
	require.Equal(t, []repType{repMetaContext, repMetaContext, repAck}, r.option(optSetMeta, metaRequest{"", []string{contextDepth, "qemu:", "qemu:dirty-bitmap:x", contextAllocation, contextDepth}}.append(nil)))
	require.Equal(t, []repType{repInfo, repAck}, r.option(optGo, goRequest{}.append(nil)))
	require.Equal(t, map[uint32][]descriptor{1: allocation, 2: depth}, r.status(requestHeader{cmd: cmdBlockStatus, length: h}, nil))
	require.Equal(t, map[uint32][]descriptor{1: allocation[:1], 2: depth[:1]}, r.status(requestHeader{cmd: cmdBlockStatus, flags: cmdFlagReqOne, length: h}, nil))

	r = ts.extended(t, contextDepth, contextAllocation)
	request := requestHeader{cmd: cmdBlockStatus, length: h, extended: true}
	require.Equal(t, map[uint32][]descriptor{1: allocation, 2: depth}, r.status(request, nil))
	filtered := func(effect uint64, ids ...uint32) (requestHeader, []byte) {
		p := appendFilter(nil, effect, ids...)
		return requestHeader{cmd: cmdBlockStatus, flags: cmdFlagPayload, length: uint64(len(p)), extended: true, cookie: 3}, p
	}
	require.Equal(t, map[uint32][]descriptor{1: allocation}, r.status(filtered(h, 1)))
	require.Equal(t, map[uint32][]descriptor{2: depth}, r.status(filtered(h, 2)))
	require.Equal(t, map[uint32][]descriptor{1: allocation, 2: depth}, r.status(filtered(h, 2, 1)))
	one, p := filtered(h, 2)
	one.flags |= cmdFlagReqOne
	require.Equal(t, map[uint32][]descriptor{2: depth[:1]}, r.status(one, p))
	for name, ids := range map[string][]uint32{
		"none": {}, "unknown": {3}, "zero": {0}, "huge": {math.MaxUint32}, "twice": {1, 1}, "one too many": {1, 2, 1},
	} {
		bad, p := filtered(h, ids...)
		r.ask(bad, p, EINVAL)
		require.Equal(t, map[uint32][]descriptor{2: depth}, r.status(filtered(h, 2)), name)
	}
	for _, effect := range []uint64{0, h + 1, 1 << 63, math.MaxUint64} {
		bad, p := filtered(effect, 1)
		r.ask(bad, p, EINVAL)
	}
	half, p := filtered(h, 1)
	half.length = 11
	r.ask(half, p[:11], EINVAL)

	r = ts.extended(t, contextDepth) // one that was not selected
	bad, p := filtered(h, 1)
	r.ask(bad, p, EINVAL)
	require.Equal(t, map[uint32][]descriptor{2: depth}, r.status(request, nil))

	other := serve(t, Options{}, Export{Device: newMemDevice(4096)}) // does not offer it
	r = other.options(t)
	require.Equal(t, []repType{repAck}, r.option(optStructuredReply, nil))
	require.Equal(t, []repType{repAck}, r.option(optSetMeta, metaRequest{"", []string{contextDepth}}.append(nil)))
}

// A large read of nothing but zeroes carries none of them, also with DF; one that
// has data in it does.
func TestHoles(t *testing.T) {
	d := newMemDevice(4 << 20)
	ts := serve(t, Options{}, Export{Device: d})
	require.NoError(t, ts.dial(t, ClientOptions{}).WriteAt(t.Context(), []byte{1}, 3<<20-1, 0))
	reads := d.seen("read")
	for _, extended := range []bool{false, true} {
		r := ts.transmission(t, true)
		if extended {
			r = ts.extended(t, contextAllocation)
		}
		for _, row := range []struct {
			h    requestHeader
			want chunkType
		}{
			{requestHeader{offset: 5, length: 1 << 20}, chunkOffsetHole},
			{requestHeader{offset: 3 << 20, length: 1 << 20, flags: cmdFlagDF}, chunkOffsetHole},
			{requestHeader{offset: 2 << 20, length: 1 << 20}, chunkOffsetData},
		} {
			h := row.h
			h.extended = extended
			r.send(h.append(nil))
			c := r.chunkHeader(r.read(4), h)
			b := r.read(int(c.length))
			require.Equal(t, row.want, c.typ)
			require.Equal(t, h.offset, be.Uint64(b))
			if c.typ == chunkOffsetHole {
				require.EqualValues(t, h.length, be.Uint32(b[8:]))
			} else {
				require.EqualValues(t, 1, b[len(b)-1])
			}
		}
	}
	require.Equal(t, reads+2, d.seen("read"), "holes are not read")
	got := make([]byte, 2<<20)
	c := ts.dial(t, ClientOptions{})
	require.NoError(t, c.ReadAt(t.Context(), got, 2<<20, 0))
	require.EqualValues(t, 1, got[1<<20-1])
	require.NoError(t, c.ReadAt(t.Context(), got, 0, 0))
	require.Equal(t, make([]byte, 2<<20), got)
}

// Blocks larger than the device's extents take the nearest depth.
func TestDepthOfMixedBlocks(t *testing.T) {
	d := describer{meaning: inDepth.meaningOf(), end: 4096 * 3, min: 4096, limit: 9}
	own, below := block.Allocated|block.Data, block.Allocated|block.Data
	for _, e := range []Extent{
		{Off: 0, Len: 1000}, {Off: 1000, Len: 1000, State: below, Depth: 1}, {Off: 2000, Len: 2096, State: own},
		{Off: 4096, Len: 100, State: below, Depth: 4}, {Off: 4196, Len: 4096 - 100 + 4096},
	} {
		d.add(e)
	}
	require.Equal(t, []descriptor{{4096, 1}, {4096, 5}, {4096, 0}}, d.ds)
}

// The layouts, byte by byte, as the specification's extension has them.
func TestExtendedLayout(t *testing.T) {
	h := requestHeader{extended: true, flags: cmdFlagPayload, cmd: cmdBlockStatus, cookie: 0x0102030405060708, offset: 0x1112131415161718, length: 12}
	b := h.append(nil)
	require.Equal(t, []byte{0x21, 0xe4, 0x1c, 0x71, 0, 32, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0, 0, 0, 0, 0, 0, 0, 12}, b)
	got, err := parseRequest(b, true)
	require.NoError(t, err)
	require.Equal(t, h, got)
	_, err = parseRequest(b, false)
	require.ErrorIs(t, err, errSyntax)
	b = appendStatusChunk(nil, h, chunkDone, 9, []descriptor{{1 << 33, 3}})
	require.Equal(t, []byte{
		0x6e, 0x8a, 0x27, 0x8c, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0, 0, 0, 0, 0, 0, 0, 24,
		0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3,
	}, b)
	binary.BigEndian.PutUint32(b[extChunkBytes+4:], 2)
	_, _, err = parseStatusExtChunk(b[extChunkBytes:])
	require.ErrorIs(t, err, errSyntax, "a count that does not fit")
}
