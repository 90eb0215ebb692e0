package nbd

import (
	"sync"
	"sync/atomic"
	"time"
)

// outbox is where the replies of a connection leave. Whoever has something to
// send and finds nobody writing gets the turn, and goes on until there is nothing
// left: what comes in the meantime leaves together.
//
//	reader    offer  a batch of replies; never waits
//	off-load  post   a short reply; waits for room in the queue only
//	          send   a long one; waits until it has been written
//
// A failure ends the connection, so none of them returns one.
type outbox struct {
	to      stream
	pool    *buffers
	allowed func(n int) time.Duration // how long a message of n bytes may take
	late    func()                    // called when one took longer
	broken  func(error)               // called when the stream failed
	later   func(func())              // runs something that may wait

	mu      sync.Mutex // guards what follows
	changed sync.Cond
	busy    bool    // somebody has the turn
	waiting int     // in send, for the turn
	ending  bool    // nothing more is taken in
	closed  bool    // nothing more is written
	queue   []byte  // what was posted
	spare   []byte  // memory for the next queue
	batch   replies // what was offered

	// full: there is a batch. Only offer, and so only the reader, sets it.
	full atomic.Bool

	// What follows belongs to whoever has the turn: what is being written, how
	// much of it has been, and the clock of a write that waits.
	out   replies
	posts []byte
	sent  int
	clock *time.Timer
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

// post takes a reply of at most postBytesMax.
func (o *outbox) post(b []byte) {
	o.mu.Lock()
	for !o.ending && len(o.queue)+len(b) > queueBytes {
		o.changed.Wait()
	}
	if o.ending {
		o.mu.Unlock()
		return
	}
	o.queue = append(o.queue, b...)
	mine := o.takeTurnLocked()
	o.mu.Unlock()
	if mine && !o.writeNow() {
		o.writeRest()
	}
}

// send writes one message behind what is there already.
func (o *outbox) send(header, payload []byte) {
	if !o.waitForTurn() {
		return
	}
	if o.writePending() && o.write(header, payload) && o.next() {
		o.writeRest()
	}
}

// finish takes nothing more in, and waits until what is there has been written.
func (o *outbox) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ending = true
	o.changed.Broadcast()
	for !o.closed && (o.busy || o.waiting > 0) {
		o.changed.Wait()
	}
	o.closed = true
}

// close ends it at once. Who writes is ended by closing the stream.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ending, o.closed = true, true
	o.changed.Broadcast()
}

// takeTurnLocked reports whether the caller has the turn now, with everything
// that is there to be written.
func (o *outbox) takeTurnLocked() bool {
	if o.busy || o.waiting > 0 { // who waits will write it
		return false
	}
	o.busy = true
	o.takeLocked()
	return true
}

func (o *outbox) waitForTurn() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ending {
		return false
	}
	o.waiting++
	for o.busy && !o.closed {
		o.changed.Wait()
	}
	o.waiting--
	if o.closed {
		o.changed.Broadcast()
		return false
	}
	o.busy = true
	o.takeLocked()
	return true
}

// takeLocked makes what is there what is being written.
func (o *outbox) takeLocked() {
	o.posts, o.queue, o.spare = o.queue, o.spare[:0], nil
	o.out, o.batch, o.sent = o.batch, replies{}, 0
	o.full.Store(false)
	if len(o.posts) > 0 {
		o.changed.Broadcast() // there is room in the queue
	}
}

// next ends what was being written and takes what has come in the meantime. It
// gives the turn up and reports false if that is nothing, or if somebody waits for
// the turn, who will go on.
func (o *outbox) next() bool {
	o.out.free(o.pool)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.spare, o.posts = o.posts[:0], nil
	if o.closed || o.waiting > 0 || len(o.queue) == 0 && o.batch.n == 0 {
		o.busy = false
		o.changed.Broadcast()
		return false
	}
	o.takeLocked()
	return true
}

// pending is what is left of what is being written.
func (o *outbox) pending() (posts, batch []byte) {
	return advance(o.posts, o.out.bytes(), o.sent)
}

// writeNow writes without waiting. It reports false, still with the turn, when the
// stream takes no more at present.
func (o *outbox) writeNow() bool {
	for {
		posts, batch := o.pending()
		n, err := o.to.writeNow(posts, batch)
		if err != nil {
			o.fail(err)
			return true
		}
		if o.sent += n; n < len(posts)+len(batch) {
			return false
		}
		if !o.next() {
			return true
		}
	}
}

// writeRest goes on, waiting.
func (o *outbox) writeRest() {
	for o.writePending() && o.next() {
	}
}

func (o *outbox) writePending() bool {
	posts, batch := o.pending()
	return len(posts)+len(batch) == 0 || o.write(posts, batch)
}

// write writes one message in its time. It reports false if the stream failed.
func (o *outbox) write(header, payload []byte) bool {
	allowed := o.allowed(len(header) + len(payload))
	if o.clock == nil {
		o.clock = time.AfterFunc(allowed, o.late)
	} else {
		o.clock.Reset(allowed)
	}
	err := o.to.write(header, payload)
	o.clock.Stop()
	if err != nil {
		o.fail(err)
	}
	return err == nil
}

// fail ends the connection. Part of a message may be on its way: the next one
// would be taken for the rest of it.
func (o *outbox) fail(err error) {
	o.close()
	o.broken(err)
	o.next() // gives the turn up
}
