package nbd

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// fuzzLength bounds the inputs: what matters happens in the first headers, and
// a long run of valid requests only makes the fuzzer slow.
const fuzzLength = 4096

// Whatever a client sends, the server neither panics nor hangs. The clock is the
// bubble's, so a hang fails as a deadlock.
func FuzzServer(f *testing.F) {
	flags := be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes)
	join := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	enter := appendOption(nil, optGo, goRequest{"", []infoType{infoBlockSize, infoName}}.append(nil))
	meta := appendOption(nil, optSetMeta, metaRequest{"", []string{contextAllocation}}.append(nil))
	structured := join(flags, appendOption(nil, optStructuredReply, nil), meta, enter)
	request := func(c command, fl cmdFlags, off uint64, n uint32) []byte {
		return requestHeader{cmd: c, flags: fl, cookie: 7, offset: off, length: uint64(n)}.append(nil)
	}
	f.Add(flags)
	f.Add(join(flags, appendOption(nil, optExportName, nil), request(cmdRead, 0, 0, 512), request(cmdDisc, 0, 0, 0)))
	f.Add(join(flags, appendOption(nil, optList, nil), appendOption(nil, optAbort, nil)))
	f.Add(join(structured, request(cmdRead, cmdFlagDF, 0, 4096), request(cmdBlockStatus, cmdFlagReqOne, 0, 1<<16)))
	f.Add(join(structured, request(cmdWrite, cmdFlagFUA, 512, 4), []byte("data"), request(cmdFlush, 0, 0, 0)))
	f.Add(join(structured, request(cmdWriteZeroes, cmdFlagNoHole|cmdFlagFastZero, 0, 4096), request(cmdTrim, 0, 0, 1<<16), request(cmdCache, 0, 0, 1<<16)))
	f.Add(join(structured, request(cmdWrite, 0, 0, 0xffffffff), request(cmdRead, 0, 1<<63, 0xffffffff)))
	extended := join(flags, appendOption(nil, optExtendedHeaders, nil), meta, enter)
	wide := func(c command, fl cmdFlags, off, n uint64) []byte {
		return requestHeader{cmd: c, flags: fl, cookie: 7, offset: off, length: n, extended: true}.append(nil)
	}
	f.Add(join(extended, wide(cmdWriteZeroes, 0, 0, 1<<62), wide(cmdWrite, cmdFlagPayload, 0, 4), []byte("data"), wide(cmdRead, 0, 0, 4)))
	f.Add(join(extended, wide(cmdBlockStatus, cmdFlagPayload, 0, 12), appendFilter(nil, 1<<16, 1), wide(cmdBlockStatus, 0, 0, 1<<16)))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > fuzzLength {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			srv := NewServer(Options{})
			if err := srv.AddExport(Export{Name: "x", Device: newMemDevice(64 << 10)}); err != nil {
				t.Fatal(err)
			}
			a, b := net.Pipe()
			srv.ServeConn(a)
			go func() { _, _ = io.Copy(io.Discard, b) }()
			_, _ = b.Write(in)
			synctest.Wait()
			_ = b.Close()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := srv.Shutdown(ctx); err != nil {
				t.Fatal(err)
			}
			if n := srv.Stats().Panics; n != 0 {
				t.Fatalf("%d panics", n)
			}
		})
	})
}

// Whatever a server sends, the client neither panics nor hangs nor believes it
// without a check.
func FuzzClient(f *testing.F) {
	const read, write, status = 1, 2, 4
	head := appendGreeting(nil, flagFixedNewstyle|flagNoZeroes)
	head = appendOptionReply(head, optStructuredReply, repAck, nil)
	head = appendOptionReply(head, optSetMeta, repMetaContext, appendMetaContext(nil, 3, contextAllocation))
	head = appendOptionReply(head, optSetMeta, repAck, nil)
	all := txHasFlags | txSendFlush | txSendFUA | txSendTrim | txSendWriteZeroes | txSendDF
	head = appendOptionReply(head, optGo, repInfo, appendInfoExport(nil, 64<<10, uint16(all)))
	head = appendOptionReply(head, optGo, repInfo, appendInfoBlockSize(nil, blockSizes{1, 4096, 32 << 20}))
	head = appendOptionReply(head, optGo, repAck, nil)
	seed := func(kind byte, b []byte) { f.Add(kind, append(head[:len(head):len(head)], b...)) }
	seed(0, nil)
	first := requestHeader{cookie: 1, length: 512}
	seed(read, append(appendDataChunk(nil, first), make([]byte, 512)...))
	hole := appendHoleChunk(nil, first)
	seed(read, hole)
	seed(read, appendErrorChunk(nil, first, EIO, "broken"))
	seed(write, appendSimple(nil, 1, ENOSPC))
	seed(status, appendStatusChunk(nil, first, chunkDone, 3, []descriptor{{256, stateHole}, {256, 0}}))
	bad := append([]byte(nil), hole...)
	binary.BigEndian.PutUint32(bad[28:], 0xffffffff)
	seed(read, bad)
	// The same with extended headers.
	const extended = 8
	ext := appendOptionReply(appendGreeting(nil, flagFixedNewstyle|flagNoZeroes), optExtendedHeaders, repAck, nil)
	ext = append(ext, head[greetingBytes+replyHeaderBytes:]...) // without STRUCTURED_REPLY
	first.extended = true
	f.Add(byte(extended|read), append(append(ext[:len(ext):len(ext)], appendDataChunk(nil, first)...), make([]byte, 512)...))
	f.Add(byte(extended|read), appendErrorChunk(ext[:len(ext):len(ext)], first, EIO, "broken"))
	f.Add(byte(extended|status), appendStatusChunk(ext[:len(ext):len(ext)], first, chunkDone, 3, []descriptor{{1 << 40, stateHole}}))
	f.Fuzz(func(t *testing.T, kind byte, in []byte) {
		if len(in) > fuzzLength {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, a) }()
			go func() {
				_, _ = a.Write(in)
				_ = a.Close()
			}()
			c, err := NewClient(t.Context(), b, ClientOptions{Extended: kind&extended != 0})
			if err != nil {
				return
			}
			i := c.Info()
			if i.Size < 0 || i.MinBlock < 1 || i.MaxTransfer < i.MinBlock || i.MaxTransfer > payloadBytesMax {
				t.Fatalf("believed %+v", i)
			}
			n := min(i.Size, 512)
			switch {
			case kind&read != 0:
				_ = c.ReadAt(t.Context(), make([]byte, n), 0, 0)
			case kind&write != 0:
				_ = c.WriteAt(t.Context(), make([]byte, n), 0, 0)
			case kind&status != 0:
				checkExtents(t, c, n)
			}
			_ = c.Close()
		})
	})
}

func checkExtents(t *testing.T, c *Client, n int64) {
	es, err := c.AppendExtents(t.Context(), nil, 0, n)
	if err != nil {
		return
	}
	at := int64(0)
	for _, e := range es {
		if e.Off != at || e.Len <= 0 {
			t.Fatalf("extents %+v", es)
		}
		at = e.End()
	}
	if at != n {
		t.Fatalf("extents %+v of %d bytes", es, n)
	}
}
