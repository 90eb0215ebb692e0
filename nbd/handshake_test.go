package nbd

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Every way into transmission: client flags x structured x context x option.
func TestHandshakeMatrix(t *testing.T) {
	d := newMemDevice(1 << 20)
	ts := serve(t, Options{}, Export{Name: "x", Device: d}, Export{Name: "y", Device: newMemDevice(4096)})
	for _, clientFlags := range []uint32{0, flagFixedNewstyle, flagNoZeroes, flagFixedNewstyle | flagNoZeroes} {
		for _, structured := range []bool{false, true} {
			for _, context := range []string{"", "x", "y", "base"} { // none, right, other export, none selected
				for _, o := range []option{optExportName, optGo} {
					fixed := clientFlags&flagFixedNewstyle != 0
					if !fixed && (structured || o == optGo) || !structured && context != "" {
						continue
					}
					r := ts.raw(t)
					r.send(be.AppendUint32(nil, clientFlags))
					want := terms{size: 1 << 20, structured: structured, contexts: map[bool]contextSet{true: inAllocation}[context == "x"]}
					r.negotiate(structured, context)
					size, flags := r.enter(o, clientFlags)
					require.EqualValues(t, want.size, size)
					require.Equal(t, structured, flags.has(txSendDF))
					r.ask(requestHeader{cmd: cmdRead, cookie: 1, length: 512}, nil, 0)
					status := EINVAL
					if want.contexts != 0 {
						status = 0
					}
					r.ask(requestHeader{cmd: cmdBlockStatus, cookie: 2, length: 512}, nil, status)
					r.send(requestHeader{cmd: cmdDisc}.append(nil))
					r.closed()
				}
			}
		}
	}
}

func (r *raw) negotiate(structured bool, context string) {
	if structured {
		require.Equal(r.t, []repType{repAck}, r.option(optStructuredReply, nil))
	}
	switch context {
	case "x", "y":
		m := metaRequest{context, []string{"other:thing", contextAllocation, contextAllocation}}
		require.Equal(r.t, []repType{repMetaContext, repAck}, r.option(optSetMeta, m.append(nil)))
	case "base":
		require.Equal(r.t, []repType{repMetaContext, repAck}, r.option(optSetMeta, metaRequest{"x", []string{contextAllocation}}.append(nil)))
		require.Equal(r.t, []repType{repMetaContext, repAck}, r.option(optListMeta, metaRequest{"x", []string{"base:"}}.append(nil)))
		require.Equal(r.t, []repType{repMetaContext, repAck}, r.option(optListMeta, metaRequest{"x", nil}.append(nil)))
		require.Equal(r.t, []repType{repAck}, r.option(optSetMeta, metaRequest{"x", []string{"base:"}}.append(nil)), "the last one counts")
	}
}

func (r *raw) enter(o option, clientFlags uint32) (size uint64, flags txFlags) {
	if o == optGo {
		n := &negotiation{conn: r.conn}
		f, err := n.infoOrGo(optInfo, "x")
		require.NoError(r.t, err)
		g, err := n.infoOrGo(optGo, "x")
		require.NoError(r.t, err)
		require.Equal(r.t, f, g, "INFO and GO say the same")
		require.Equal(r.t, "x", g.name)
		return g.size, g.flags
	}
	r.send(appendOption(nil, optExportName, []byte("x")))
	b := r.read(exportNameReplyBytes)
	if clientFlags&flagNoZeroes == 0 {
		require.Equal(r.t, make([]byte, exportNameReplyZeroes), r.read(exportNameReplyZeroes))
	}
	return be.Uint64(b), txFlags(be.Uint16(b[8:]))
}

// A client that is faster than the answers loses nothing.
func TestPipelinedHandshake(t *testing.T) {
	ts := serve(t, Options{}, Export{Device: newMemDevice(4096)})
	r := ts.raw(t)
	b := be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	b = appendOption(b, optInfo, goRequest{}.append(nil))
	b = appendOption(b, optExportName, nil)
	h := requestHeader{cmd: cmdRead, cookie: 5, length: 4096}
	for range 300 { // more than the handshake's buffer holds
		b = h.append(b)
	}
	go func() { _, _ = r.conn.Write(b) }()
	require.Equal(t, []repType{repInfo, repAck}, r.replies(optInfo))
	r.read(exportNameReplyBytes)
	for range 300 {
		r.expect(h, 0)
	}
}

// A client that gives up and does not wait for the answer harms nobody.
func TestAbortWithoutWaiting(t *testing.T) {
	ts := serve(t, Options{}, Export{Device: newMemDevice(4096)})
	r := ts.options(t)
	r.send(appendOption(nil, optAbort, nil))
	_ = r.conn.Close()
	eventually(t, "gone", func() bool { return ts.Stats().Connections == 0 })
	require.NoError(t, ts.dial(t, ClientOptions{}).Flush(t.Context()))
}

// SET_META_CONTEXT replaces what was selected before, also when it fails or asks
// for nothing.
func TestLastSetMetaCounts(t *testing.T) {
	ts := serve(t, Options{}, Export{Name: "x", Device: newMemDevice(4096)})
	for name, last := range map[string][]byte{
		"no query": metaRequest{"x", nil}.append(nil), "unknown": metaRequest{"x", []string{"base:other", "a:b"}}.append(nil),
		"malformed": {1}, "other export": metaRequest{"y", []string{contextAllocation}}.append(nil),
	} {
		r := ts.options(t)
		r.negotiate(true, "x")
		types := r.option(optSetMeta, last)
		require.Len(t, types, 1, name)
		r.enter(optGo, flagFixedNewstyle|flagNoZeroes)
		r.ask(requestHeader{cmd: cmdBlockStatus, length: 512}, nil, EINVAL)
	}
}

// Listing twice is no way to get options for ever.
func TestListDoesNotLiftTheLimit(t *testing.T) {
	ts := serve(t, Options{}, Export{Name: "x", Device: newMemDevice(4096)})
	r := ts.options(t)
	for range 2 * optionsMax {
		require.Equal(t, []repType{repServer, repAck}, r.option(optList, nil))
	}
	r.send(appendOption(nil, optList, nil))
	r.closed()
}
