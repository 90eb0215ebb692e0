package nbd

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// outbox is where the replies of a connection leave. Nobody who has one waits for
// another: whoever finds nobody writing gets the turn, and goes on until there is
// nothing left; what comes in the meantime leaves together.
//
//	reader    offer  a batch of replies; does not write if that has to wait
//	off-load  put    a request with its reply, which is done when that has left
//	Device    add    the same, of a write that it had begun
//
// A failure ends the connection, so neither of them returns one. What is in an
// outbox is bounded by who fills it: the reader offers nothing while it is full,
// and a request has its place in the budget until it is done.
type outbox struct {
	to      stream
	pool    *buffers
	done    func(*request)            // of a request whose reply has left, or never will
	allowed func(n int) time.Duration // how long a message of n bytes may take
	late    func()                    // called when one took longer
	broken  func(error)               // called when the stream failed
	later   func(func())              // runs something that may wait

	mu          sync.Mutex // guards what follows
	changed     sync.Cond  // not busy any more, or closed
	busy        bool       // somebody has the turn
	ending      bool       // nothing more is taken in
	closed      bool       // finish does not wait any more
	batch       replies    // what was offered
	first, last *request   // what was put, linked by next

	transfer transfer // of a write that waits

	// full: there is a batch. Only offer, and so only the reader, sets it.
	full atomic.Bool

	turn turn
}

// turn belongs to whoever has it: what is being written, and what is over when it
// has been.
type turn struct {
	rest  [][]byte // of the message; in parts
	parts [messageParts][]byte
	batch replies
	first *request
	clock *time.Timer // of a write that waits
}

// offer takes the reader's replies. While it is full, nothing may be offered.
func (o *outbox) offer(r replies) {
	o.mu.Lock()
	if r.n == 0 || o.ending {
		o.mu.Unlock()
		r.free(o.pool)
		return
	}
	o.batch = r
	o.full.Store(true)
	mine := o.takeTurnLocked()
	o.mu.Unlock()
	if mine && !o.writeNow() {
		o.later(o.writeRest)
	}
}

// put takes a request that has been executed. It is not the caller's any more.
func (o *outbox) put(rq *request) {
	if o.add(rq) {
		runtime.Gosched() // requests that end together are answered together
		o.answer()
	}
}

// add is put for who may not wait, nor write. It reports whether the caller has the turn
// now, and has to see to it that somebody answers.
func (o *outbox) add(rq *request) (mine bool) {
	o.mu.Lock()
	if o.ending {
		o.mu.Unlock()
		o.done(rq)
		return false
	}
	defer o.mu.Unlock()
	if rq.next = nil; o.first == nil {
		o.first = rq
	} else {
		o.last.next = rq
	}
	o.last = rq
	mine = !o.busy
	o.busy = true
	return mine
}

// answer writes what is there. Its caller has the turn.
func (o *outbox) answer() {
	o.mu.Lock()
	mine := o.takeLocked()
	o.mu.Unlock()
	if mine && !o.writeNow() {
		o.writeRest()
	}
}

// finish takes nothing more in, and waits until what is there has been written.
func (o *outbox) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ending = true
	for !o.closed && o.busy {
		o.changed.Wait()
	}
	o.closed = true
}

// close takes nothing more in and waits for nothing. Who writes, as somebody does
// while there is something, is ended by closing the stream.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ending, o.closed = true, true
	o.changed.Broadcast()
}

// takeTurnLocked reports whether the caller has the turn now, with something to
// write.
func (o *outbox) takeTurnLocked() bool {
	if o.busy {
		return false
	}
	o.busy = true
	return o.takeLocked()
}

// takeLocked makes a message of what is there, or gives the turn up and reports
// false.
func (o *outbox) takeLocked() bool {
	if o.first == nil && o.batch.n == 0 {
		o.busy = false
		o.changed.Broadcast()
		return false
	}
	t := &o.turn
	t.rest = t.parts[:0]
	size := o.batch.n
	if size > 0 {
		t.batch, o.batch = o.batch, replies{}
		t.rest = append(t.rest, t.batch.bytes())
		o.full.Store(false)
	}
	t.first = o.first
	for end := &t.first; ; end = &(*end).next {
		rq := *end
		if rq == nil || len(t.rest)+2 > messageParts || size > messageBytes {
			o.first, *end = rq, nil
			return true
		}
		t.rest = append(t.rest, rq.reply)
		size += len(rq.reply) + len(rq.data)
		if len(rq.data) > 0 {
			t.rest = append(t.rest, rq.data)
		}
	}
}

// next is done with what has been written, and takes what has come since.
func (o *outbox) next() bool {
	o.doneWriting()
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.takeLocked()
}

func (o *outbox) doneWriting() {
	t := &o.turn
	t.batch.free(o.pool)
	clear(t.parts[:])
	t.rest = nil
	for rq := t.first; rq != nil; {
		next := rq.next
		o.done(rq)
		rq = next
	}
	t.first = nil
}

// writeNow writes without waiting. It reports false, still with the turn, when the
// stream takes no more at present.
func (o *outbox) writeNow() bool {
	for {
		n, err := o.to.writeNow(o.turn.rest)
		if err != nil {
			o.fail(err)
			return true
		}
		if o.turn.rest = advance(o.turn.rest, n); len(o.turn.rest) > 0 {
			return false
		}
		if !o.next() {
			return true
		}
	}
}

// writeRest goes on, waiting.
func (o *outbox) writeRest() {
	for {
		if err := o.write(o.turn.rest); err != nil {
			o.fail(err)
			return
		}
		if !o.next() {
			return
		}
	}
}

// write writes a message in its time.
func (o *outbox) write(message [][]byte) error {
	n := 0
	for _, part := range message {
		n += len(part)
	}
	t := &o.turn
	if t.clock == nil {
		t.clock = time.AfterFunc(o.allowed(n), o.late)
	} else {
		t.clock.Reset(o.allowed(n))
	}
	defer t.clock.Stop()
	o.transfer.begin(n)
	defer o.transfer.end()
	return o.to.write(message)
}

// fail ends the connection. Part of a message may be on its way: the next one
// would be taken for the rest of it. What has not left is done too.
func (o *outbox) fail(err error) {
	o.close()
	o.broken(err)
	o.doneWriting()
	o.mu.Lock()
	o.turn.first, o.first = o.first, nil
	o.turn.batch, o.batch = o.batch, replies{}
	o.mu.Unlock()
	o.doneWriting()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy = false
	o.changed.Broadcast()
}
