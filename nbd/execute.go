package nbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"tidemark/internal/block"
)

// serve executes one request of the off-load and makes its reply.
func (s *session) serve(rq *request) {
	switch {
	case s.dead.Load(): // nothing reaches the Device any more, and nobody reads an answer
		return
	case rq.failure != nil:
		s.replyError(rq, rq.failure)
		return
	}
	if mayWait(rq.header.cmd) {
		rq.space = newSpaceContext(s.ctx, rq.received, cmp.Or(s.export.Patience, s.srv.opts.Patience))
	}
	if err := s.execute(rq.context(), rq); err != nil {
		s.replyError(rq, translate(rq.header, err))
	}
}

func (s *session) replyError(rq *request, e *Error) {
	s.srv.counters.failures.Add(1)
	rq.reply, rq.data = appendErrorReply(nil, rq.header, e, s.terms), nil
}

// execute does what the request asks for, and makes its reply if it succeeds.
func (s *session) execute(ctx context.Context, rq *request) error {
	switch rq.header.cmd {
	case cmdBlockStatus:
		return s.blockStatus(rq)
	case cmdRead:
		if rq.action.n > 0 {
			return s.read(rq)
		}
	}
	if err := s.change(ctx, rq); err != nil {
		return err
	}
	rq.reply = appendDoneReply(rq.head[:0], rq.header, s.terms)
	return nil
}

// change does what has no data to answer.
func (s *session) change(ctx context.Context, rq *request) error {
	d, a := s.export.Device, rq.action
	if a.n == 0 && rq.header.cmd != cmdFlush {
		return nil
	}
	switch rq.header.cmd {
	case cmdWrite:
		return s.transfer(rq.buf.data, a.off, func(p []byte, off int64) error { return d.WriteAt(ctx, p, off, a.flags) })
	case cmdFlush:
		return d.Flush(ctx)
	case cmdTrim:
		return d.Discard(ctx, a.off, a.n, a.flags)
	case cmdWriteZeroes:
		return d.WriteZeroes(ctx, a.off, a.n, a.flags)
	case cmdCache:
		return s.cache(ctx, a)
	}
	return fmt.Errorf("command %d was accepted but not implemented", rq.header.cmd)
}

// transfer calls f for pieces of p that the Device is able to take at once. A
// client that did not ask for the sizes may send more than that.
func (s *session) transfer(p []byte, off int64, f func([]byte, int64) error) error {
	limit := len(p)
	if m := s.export.maxTransfer; m > 0 {
		limit = min(limit, m)
	}
	for len(p) > 0 {
		n := min(limit, len(p))
		if err := f(p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// cache reads and forgets, so that the page cache has it. More than the largest
// payload is not prefetched; the command promises nothing.
func (s *session) cache(ctx context.Context, a action) error {
	n := min(a.n, payloadBytesMax)
	buf := s.srv.buffers.get(int(min(n, cachePiece)))
	defer s.srv.buffers.put(buf)
	for end := a.off + n; a.off < end; {
		p := buf.data[:min(int64(len(buf.data)), end-a.off)]
		if err := s.readDevice(ctx, p, a); err != nil {
			return err
		}
		a.off += int64(len(p))
	}
	return nil
}

func (s *session) readDevice(ctx context.Context, p []byte, a action) error {
	return s.transfer(p, a.off, func(p []byte, off int64) error {
		return s.export.Device.ReadAt(ctx, p, off, 0)
	})
}

func (s *session) read(rq *request) error {
	a := rq.action
	if s.terms.structured && a.n > inlineBytesMax && s.isHole(rq) {
		rq.reply = appendHoleChunk(rq.head[:0], rq.header)
		return nil
	}
	rq.buf = s.srv.buffers.get(int(a.n))
	if err := s.readDevice(s.ctx, rq.buf.data, a); err != nil {
		return err
	}
	s.srv.counters.bytesOut.Add(uint64(a.n))
	rq.reply, rq.data = appendDataHeader(rq.head[:0], rq.header, s.terms), rq.buf.data
	return nil
}

// isHole asks whether all of a read is known to read zero. What the Device cannot
// tell at once, or not in one extent, is read.
func (s *session) isHole(rq *request) bool {
	a := rq.action
	if rq.extents == nil {
		rq.extents = make([]block.Extent, 0, 1)
	}
	es, err := s.export.Device.AppendExtents(s.ctx, rq.extents[:0], a.off, a.n)
	return err == nil && len(es) > 0 && es[0].Off <= a.off && es[0].End() >= a.off+a.n && es[0].State.Has(block.Zero)
}

// blockStatus answers with a chunk for each context.
func (s *session) blockStatus(rq *request) error {
	var b []byte
	for left := rq.action.contexts; left != 0; {
		one, rest := left.first()
		ds, err := s.describe(rq.action, one)
		if err != nil {
			return err
		}
		flags := uint16(0)
		if rest == 0 {
			flags = chunkDone
		}
		b = slices.Grow(b, extChunkBytes+statusExtBytes+descriptorExtBytes*len(ds))
		b = appendStatusChunk(b, rq.header, flags, one.id(), ds)
		left = rest
	}
	rq.reply = b
	return nil
}

// describe asks the Device for extents until the request is covered or the
// reply is long enough.
func (s *session) describe(a action, context contextSet) ([]descriptor, error) {
	d := describer{meaning: context.meaningOf(), pos: a.off, end: a.off + a.n, min: s.terms.minBlock, limit: extentsMax}
	if a.one {
		d.limit = 1
	}
	size := extentBatch
	if a.one { // only neighbours that look the same are of use
		size = extentBatchOne
	}
	extents := make([]block.Extent, 0, size)
	for next, batch, more := a.off, 0, true; more && batch < extentBatchesMax; batch++ {
		var err error
		extents, err = s.export.Device.AppendExtents(s.ctx, extents[:0], next, d.end-next)
		if err != nil {
			return nil, err
		}
		for _, e := range extents {
			if e.Off != next || e.Len <= 0 {
				return nil, fmt.Errorf("the device describes %d bytes at %d where %d was next", e.Len, e.Off, next)
			}
			next = e.End()
			if more = d.add(e); !more {
				break
			}
		}
		if len(extents) == 0 {
			return nil, errors.New("the device knows no extent here")
		}
	}
	if len(d.ds) == 0 { // all batches within one block
		d.ds = append(d.ds, descriptor{uint64(min(d.min, a.n)), 0})
	}
	return d.ds, nil
}
