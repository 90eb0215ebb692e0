package nbd

import (
	"sync"
	"time"
)

// budget bounds what one connection has in progress: requests and the bytes of
// their buffers. Only the connection's reader waits for it. What it has above
// ownBytes counts in the pool of all connections too.
type budget struct {
	pool     *pool
	bytesMax int
	crowded  func() // called now and then while the pool is waited for

	mu       sync.Mutex // guards the rest
	changed  sync.Cond
	requests int
	bytes    int
	closed   bool
}

func newBudget(p *pool, bytesMax int, crowded func()) *budget {
	b := &budget{pool: p, bytesMax: bytesMax, crowded: crowded}
	b.changed.L = &b.mu
	return b
}

// acquire waits until a request of n bytes has its place. It reports false
// when the budget was closed.
func (b *budget) acquire(n int) bool {
	shared, ok := b.wait(n)
	if !ok {
		return false
	}
	if shared > 0 && !b.pool.try(shared) && !b.waitForPool(shared) {
		b.add(-1, -n) // the pool never had it
		return false
	}
	return true
}

// waitForPool waits, and tells crowded of it, until there are n bytes or the budget
// was closed.
func (b *budget) waitForPool(n int) bool {
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		tick := time.NewTicker(crowdedGrace)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				b.crowded()
			case <-ended:
				return
			}
		}
	}()
	return b.pool.acquire(n, b.isClosed)
}

// shares reports whether it has something that the pool counts.
func (b *budget) shares() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes > ownBytes
}

// tryAcquire takes the place of a request of n bytes if there is one.
func (b *budget) tryAcquire(n int) bool {
	shared, ok := b.tryOwn(n)
	if ok && shared > 0 && !b.pool.try(shared) {
		b.add(-1, -n) // the pool never had it
		return false
	}
	return ok
}

func (b *budget) tryOwn(n int) (shared int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed || !b.fitsLocked(n) {
		return 0, false
	}
	return b.addLocked(1, n), true
}

// one reports whether one request is in progress.
func (b *budget) one() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests == 1
}

func (b *budget) fitsLocked(n int) bool { return b.requests < inFlightMax && b.bytes+n <= b.bytesMax }

// wait waits for the connection's own limits, and returns what remains to be
// had from the pool.
func (b *budget) wait(n int) (shared int, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.closed && !b.fitsLocked(n) {
		b.changed.Wait()
	}
	if b.closed {
		return 0, false
	}
	return b.addLocked(1, n), true
}

// release gives the place of a request of n bytes back.
func (b *budget) release(n int) { b.pool.add(b.add(-1, -n)) }

// retake takes a place without waiting, for a request that stopped being held:
// it has its buffer already. The budget is exceeded by at most the payloads of
// the requests that a connection may hold.
func (b *budget) retake(n int) { b.pool.add(b.add(1, n)) }

func (b *budget) add(requests, bytes int) (shared int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.addLocked(requests, bytes)
}

// addLocked changes what is in progress, and returns by how much the part that
// the pool counts changes with it.
func (b *budget) addLocked(requests, bytes int) (shared int) {
	before := max(b.bytes-ownBytes, 0)
	b.requests += requests
	b.bytes += bytes
	if requests < 0 {
		b.changed.Signal()
	}
	return max(b.bytes-ownBytes, 0) - before
}

func (b *budget) isClosed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closed
}

// close ends every wait, now and later.
func (b *budget) close() {
	b.mu.Lock()
	b.closed = true
	b.changed.Broadcast()
	b.mu.Unlock()
	b.pool.wake()
}

// pool bounds the bytes that all connections of a server have together.
type pool struct {
	limit int64

	mu      sync.Mutex // guards used
	changed sync.Cond
	used    int64
}

// newPool returns a pool that is large enough for any one request, without which
// it would wait for ever.
func newPool(limit int64) *pool {
	p := &pool{limit: max(limit, payloadBytesMax)}
	p.changed.L = &p.mu
	return p
}

// acquire waits until there are n bytes, or until given up.
func (p *pool) acquire(n int, givenUp func() bool) bool {
	if n <= 0 {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.used+int64(n) > p.limit {
		if givenUp() {
			return false
		}
		p.changed.Wait()
	}
	p.used += int64(n)
	return true
}

// try takes n bytes if there are as many.
func (p *pool) try(n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used+int64(n) > p.limit {
		return false
	}
	p.used += int64(n)
	return true
}

// add takes n bytes, whatever the limit says, or gives -n back.
func (p *pool) add(n int) {
	if n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used += int64(n)
	p.changed.Broadcast()
}

func (p *pool) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed.Broadcast()
}
