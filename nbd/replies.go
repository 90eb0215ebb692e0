package nbd

// replies are the encoded replies of a batch, in a borrowed buffer: a small one,
// and a large one when there are more. The zero value has none.
type replies struct {
	buf *buffer
	n   int // bytes
}

// replyBytes holds the simple replies of two batches at QEMU's and Linux's depths.
const replyBytes = 1 << bufferBitsMin

func (r *replies) bytes() []byte {
	if r.n == 0 {
		return nil
	}
	return r.buf.data[:r.n]
}

// room returns the next n bytes, or nil if a buffer does not have as many left.
// They belong to the replies when they have been added.
func (r *replies) room(n int, pool *buffers) []byte {
	end := r.n + n
	if end > batchBytes {
		return nil
	}
	if r.buf == nil || end > len(r.buf.data) {
		r.grow(end, pool)
	}
	return r.buf.data[r.n:end:end]
}

func (r *replies) grow(n int, pool *buffers) {
	size := replyBytes
	if n > size {
		size = batchBytes
	}
	buf := pool.get(size)
	copy(buf.data, r.bytes())
	pool.put(r.buf)
	r.buf = buf
}

func (r *replies) add(n int) { r.n += n }

// free gives the buffer back; what was in it is forgotten.
func (r *replies) free(pool *buffers) {
	pool.put(r.buf)
	*r = replies{}
}

// ---- Which reply a request gets under the terms of its connection ---------

func appendErrorReply(dst []byte, h requestHeader, e *Error, t terms) []byte {
	if t.structured {
		return appendErrorChunk(dst, h, e.Errno, cleanText(e.Text))
	}
	return appendSimple(dst, h.cookie, e.Errno)
}

// appendDoneReply answers a request that has succeeded without data. For a read of
// no bytes that must be structured if it was agreed.
func appendDoneReply(dst []byte, h requestHeader, t terms) []byte {
	if h.extended || h.cmd == cmdRead && t.structured {
		return chunkOf(h, chunkDone, chunkNone, 0).append(dst, h.extended)
	}
	return appendSimple(dst, h.cookie, 0)
}

// doneBytes is its length for what is no read.
func doneBytes(t terms) int {
	if t.extended {
		return extChunkBytes
	}
	return simpleBytes
}

// appendDataHeader is what stands before the data of a read.
func appendDataHeader(dst []byte, h requestHeader, t terms) []byte {
	if t.structured {
		return appendDataChunk(dst, h)
	}
	return appendSimple(dst, h.cookie, 0)
}

// dataHeaderBytes is its length.
func dataHeaderBytes(t terms) int {
	if t.structured {
		return chunkHeaderBytes(t.extended) + offsetDataBytes
	}
	return simpleBytes
}
