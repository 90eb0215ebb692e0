package nbd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
)

// This file reads what a server sends in transmission. The server may be broken
// or hostile: every length is compared with what was asked for before anything
// is read, and an error that is returned here ends the connection.

func (c *Client) readReplies() error {
	r := bufio.NewReaderSize(c.conn, clientReaderBytes)
	var b [extChunkBytes]byte
	for {
		if _, err := io.ReadFull(r, b[:4]); err != nil {
			return err
		}
		var err error
		switch m := be.Uint32(b[:]); {
		case m == magicSimple && !c.extended:
			err = c.readSimple(r, b[:simpleBytes-4])
		case m == magicChunk && c.structured && !c.extended, m == magicExtChunk && c.extended:
			err = c.readChunk(r, b[:chunkHeaderBytes(c.extended)-4])
		default:
			err = fmt.Errorf("reply magic %#x: %w", m, errSyntax)
		}
		if err != nil {
			return err
		}
	}
}

// find returns the call that a reply belongs to, and marks it as being read.
func (c *Client) find(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[cookie]
	if k == nil {
		return nil, fmt.Errorf("a reply to cookie %d, which nobody waits for: %w", cookie, errSyntax)
	}
	if k.abandoned {
		k.p = nil
	} else {
		c.reading = k
	}
	return k, nil
}

func (c *Client) doneReading() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading = nil
}

// readSimple reads a simple reply; b is room for what follows the magic.
func (c *Client) readSimple(r io.Reader, b []byte) error {
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	k, err := c.find(be.Uint64(b[4:]))
	if err != nil {
		return err
	}
	defer c.doneReading()
	isRead := k.header.cmd == cmdRead
	if isRead && c.structured || len(k.covered.runs) > 0 || len(k.descriptors) > 0 {
		return fmt.Errorf("a simple reply to command %d where a structured one belongs: %w", k.header.cmd, errSyntax)
	}
	if e := Errno(be.Uint32(b)); e != 0 {
		c.finish(k, &Error{Errno: e})
		return nil
	}
	if k.header.cmd == cmdBlockStatus {
		return fmt.Errorf("a simple reply to BLOCK_STATUS: %w", errSyntax)
	}
	if isRead {
		if err := k.fill(r, 0, k.header.length); err != nil {
			return err
		}
	}
	c.finish(k, nil)
	return nil
}

// fill reads n bytes of data for offset at (in the call's memory).
func (k *call) fill(r io.Reader, at, n uint64) error {
	if k.p == nil {
		_, err := io.CopyN(io.Discard, r, int64(n))
		return err
	}
	_, err := io.ReadFull(r, k.p[at:at+n])
	return err
}

// readChunk reads one chunk of a structured reply; b is room for what follows
// the magic.
func (c *Client) readChunk(r io.Reader, b []byte) error {
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	h := parseChunk(b)
	if c.extended {
		h = parseExtChunk(b)
	}
	k, err := c.find(h.cookie)
	if err != nil {
		return err
	}
	defer c.doneReading()
	if c.extended && h.offset != k.header.offset {
		return fmt.Errorf("a chunk for offset %d in the reply to a request at %d: %w", h.offset, k.header.offset, errSyntax)
	}
	if err := k.chunk(r, h, c.contextID); err != nil {
		return err
	}
	if h.flags&chunkDone == 0 {
		return nil
	}
	err = k.conclude()
	if err != nil && !errors.As(err, new(*Error)) {
		return err
	}
	c.finish(k, err)
	return nil
}

// chunk reads the payload of one chunk.
func (k *call) chunk(r io.Reader, h chunkHeader, contextID uint32) error {
	wrong := func() error {
		return fmt.Errorf("chunk type %d of %d bytes in the reply to command %d: %w", h.typ, h.length, k.header.cmd, errSyntax)
	}
	switch {
	case h.typ == chunkNone:
		if h.length != 0 || h.flags&chunkDone == 0 {
			return wrong()
		}
		return nil
	case h.typ == chunkOffsetData && k.header.cmd == cmdRead && h.length > offsetDataBytes:
		return k.dataChunk(r, h.length-offsetDataBytes)
	case h.typ == chunkOffsetHole && k.header.cmd == cmdRead && h.length == offsetHoleBytes:
		return k.holeChunk(r)
	case h.typ == k.statusType() && k.header.cmd == cmdBlockStatus && k.descriptors == nil &&
		h.length <= statusExtBytes+descriptorExtBytes*clientDescriptorsMax:
		return k.statusChunk(r, uint32(h.length), contextID)
	case h.typ.isError() && h.length <= errorBytes+stringBytesMax+8:
		return k.errorChunk(r, uint32(h.length))
	}
	return wrong()
}

func (k *call) dataChunk(r io.Reader, n uint64) error {
	var b [offsetDataBytes]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	at, err := k.place(be.Uint64(b[:]), n)
	if err != nil {
		return err
	}
	return k.fill(r, at, n)
}

func (k *call) holeChunk(r io.Reader) error {
	var b [offsetHoleBytes]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return err
	}
	n := uint64(be.Uint32(b[8:]))
	at, err := k.place(be.Uint64(b[:]), n)
	if err == nil && k.p != nil {
		clear(k.p[at : at+n])
	}
	return err
}

// place turns an offset in the export into one in the call's memory.
func (k *call) place(off, n uint64) (uint64, error) {
	if off < k.header.offset {
		return 0, fmt.Errorf("data at %d in the reply to a read at %d: %w", off, k.header.offset, errSyntax)
	}
	at := off - k.header.offset
	return at, k.covered.add(at, n)
}

// statusType is the type of chunk that describes extents.
func (k *call) statusType() chunkType {
	if k.header.extended {
		return chunkStatusExt
	}
	return chunkBlockStatus
}

func (k *call) statusChunk(r io.Reader, length, contextID uint32) error {
	b := make([]byte, length)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	parse := parseStatusChunk
	if k.header.extended {
		parse = parseStatusExtChunk
	}
	id, ds, err := parse(b)
	if err != nil {
		return err
	}
	if id != contextID {
		return fmt.Errorf("block status of context %d, expected %d: %w", id, contextID, errSyntax)
	}
	if k.header.flags.has(cmdFlagReqOne) && (len(ds) != 1 || ds[0].length > k.header.length) {
		return fmt.Errorf("%d descriptors where one was asked for: %w", len(ds), errSyntax)
	}
	sum := uint64(0)
	for i, d := range ds {
		if sum >= k.header.length {
			return fmt.Errorf("descriptor %d of %d is behind the request: %w", i, len(ds), errSyntax)
		}
		sum += d.length
	}
	k.descriptors = ds
	return nil
}

func (k *call) errorChunk(r io.Reader, length uint32) error {
	b := make([]byte, length)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	e, text, err := parseErrorChunk(b)
	if err != nil {
		return err
	}
	if k.failed == nil {
		k.failed = &Error{e, cleanText(text)}
	}
	return nil
}

// conclude checks a structured reply after its last chunk. The result is an
// *Error if the request failed, another error if the server did.
func (k *call) conclude() error {
	switch {
	case k.failed != nil:
		return k.failed
	case k.header.cmd == cmdRead && !k.covered.complete():
		return fmt.Errorf("the reply to a read of %d bytes is incomplete: %w", k.header.length, errSyntax)
	case k.header.cmd == cmdBlockStatus && k.descriptors == nil:
		return fmt.Errorf("the reply to BLOCK_STATUS has no descriptors: %w", errSyntax)
	}
	return nil
}

// coverage is the part of [0, end) that has arrived: sorted runs that neither
// touch nor overlap.
type coverage struct {
	end    uint64
	runs   [][2]uint64
	chunks int
}

// add covers [at, at+n), which must be new.
func (c *coverage) add(at, n uint64) error {
	if n == 0 || at > c.end || n > c.end-at {
		return fmt.Errorf("a chunk of %d bytes at %d in a reply of %d: %w", n, at, c.end, errSyntax)
	}
	if c.chunks++; c.chunks > clientChunksMax {
		return fmt.Errorf("more than %d chunks in one reply: %w", clientChunksMax, errSyntax)
	}
	i, _ := slices.BinarySearchFunc(c.runs, at, func(r [2]uint64, at uint64) int {
		if r[1] <= at {
			return -1
		}
		return 1
	})
	if i < len(c.runs) && c.runs[i][0] < at+n {
		return fmt.Errorf("a chunk of %d bytes at %d overlaps another: %w", n, at, errSyntax)
	}
	left, right := i > 0 && c.runs[i-1][1] == at, i < len(c.runs) && c.runs[i][0] == at+n
	switch {
	case left && right:
		c.runs[i-1][1] = c.runs[i][1]
		c.runs = slices.Delete(c.runs, i, i+1)
	case left:
		c.runs[i-1][1] = at + n
	case right:
		c.runs[i][0] = at
	default:
		c.runs = slices.Insert(c.runs, i, [2]uint64{at, at + n})
	}
	return nil
}

func (c *coverage) complete() bool {
	return c.end == 0 || len(c.runs) == 1 && c.runs[0] == [2]uint64{0, c.end}
}
