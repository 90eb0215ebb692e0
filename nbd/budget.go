package nbd

import "sync"

// budget bounds what one connection has in progress: requests and the bytes of
// their buffers. Only the connection's reader waits for it.
type budget struct {
	mu       sync.Mutex // guards the rest
	changed  sync.Cond
	requests int
	bytes    int
	closed   bool
}

func newBudget() *budget {
	b := &budget{}
	b.changed.L = &b.mu
	return b
}

// acquire waits until a request of n bytes has its place. It reports false
// when the budget was closed.
func (b *budget) acquire(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.closed && (b.requests >= inFlightMax || b.bytes+n > inFlightBytesMax) {
		b.changed.Wait()
	}
	if b.closed {
		return false
	}
	b.requests++
	b.bytes += n
	return true
}

// release gives the place of a request of n bytes back.
func (b *budget) release(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests--
	b.bytes -= n
	b.changed.Signal()
}

// retake takes a place without waiting, for a request that stopped being held:
// it has its buffer already. The budget is exceeded by at most the payloads of
// the requests that a connection may hold.
func (b *budget) retake(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.requests++
	b.bytes += n
}

// close ends every wait, now and later.
func (b *budget) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.changed.Broadcast()
}
