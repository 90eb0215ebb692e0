package nbd

// inbox is what a connection has received and not yet used. While it waits for
// the client it keeps inboxBytes, or one request that has begun; a large buffer
// is borrowed while there is more. Only the reader uses it.
type inbox struct {
	from stream
	pool *buffers

	base  []byte
	large *buffer // used instead of base; nil
	r, w  int     // the unread part
	more  bool    // the last read filled all the room: there may be more
}

// newInbox begins with what was received before.
func newInbox(from stream, pool *buffers, before []byte) *inbox {
	in := &inbox{from: from, pool: pool, base: make([]byte, inboxBytes)}
	in.w = copy(in.base, before) // handshakeReaderBytes at most
	return in
}

func (in *inbox) memory() []byte {
	if in.large != nil {
		return in.large.data
	}
	return in.base
}

func (in *inbox) unread() []byte { return in.memory()[in.r:in.w] }
func (in *inbox) skip(n int)     { in.r += n }

// fill waits until something has been added. What is unread is the beginning of a
// request of need bytes, need <= batchBytes.
func (in *inbox) fill(need int) error {
	if in.more {
		in.move(batchBytes)
		n, err := in.from.readNow(in.memory()[in.w:])
		if n > 0 || err != nil {
			return in.took(n, err)
		}
	}
	in.move(need)
	return in.took(in.from.Read(in.memory()[in.w:]))
}

func (in *inbox) took(n int, err error) error {
	in.w += n
	in.more = in.w == len(in.memory())
	return err
}

// move makes room for n bytes, with what is unread at the start: in base if they
// fit there, otherwise in a large buffer.
func (in *inbox) move(n int) {
	old, unread := in.large, in.unread()
	switch {
	case n <= len(in.base):
		in.large = nil
	case old == nil:
		in.large = in.pool.get(batchBytes)
	}
	in.r, in.w = 0, copy(in.memory(), unread)
	if old != in.large {
		in.pool.put(old)
	}
}

// readFull fills p, first with what is unread, and tells how much of it came.
func (in *inbox) readFull(p []byte) (int, error) {
	got := copy(p, in.unread())
	in.skip(got)
	in.more = in.more && in.r < in.w
	for got < len(p) {
		n, err := in.from.Read(p[got:])
		if got += n; err != nil {
			return got, err
		}
	}
	return got, nil
}

// discard drops n bytes.
func (in *inbox) discard(n uint32) error {
	for {
		have := min(uint32(len(in.unread())), n)
		in.skip(int(have))
		if n -= have; n == 0 {
			return nil
		}
		if err := in.fill(requestBytes); err != nil {
			return err
		}
	}
}

// drain receives until the stream ends, and forgets.
func (in *inbox) drain() {
	for {
		if _, err := in.from.Read(in.base); err != nil {
			return
		}
	}
}

// lose forgets the large buffer without giving it back, because somebody may still
// use it.
func (in *inbox) lose() { in.large, in.r, in.w = nil, 0, 0 }

// free gives back what is borrowed.
func (in *inbox) free() {
	in.pool.put(in.large)
	in.lose()
}
