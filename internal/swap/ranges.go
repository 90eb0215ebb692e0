package swap

import (
	"context"
	"sync"

	"tidemark/internal/block"
)

// ranges are the parts of a disk that somebody changes. Who wants one waits until those
// are free that overlap it and were wanted before: everybody has his turn, and nobody
// waits for who waits for him.
type ranges struct {
	mu     sync.Mutex // guards what follows
	held   map[*held]struct{}
	wanted int64 // how often somebody has asked
}

// A held range is one that somebody has, or waits for.
type held struct {
	off, end int64
	free     chan struct{} // closed when it is
}

// lock takes n bytes at off; unlock frees them. It waits as long as ctx allows: who has
// them may wait for space.
func (r *ranges) lock(ctx context.Context, off, n int64) (*held, error) {
	h := &held{off, off + n, make(chan struct{})}
	for _, o := range r.enter(h) {
		select {
		case <-o.free:
		case <-ctx.Done():
			r.unlock(h)
			return nil, block.SpaceError(ctx)
		}
	}
	return h, nil
}

// enter adds h, and returns those that go before it.
func (r *ranges) enter(h *held) (before []*held) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for o := range r.held {
		if o.off < h.end && h.off < o.end {
			before = append(before, o)
		}
	}
	if r.held == nil {
		r.held = map[*held]struct{}{}
	}
	r.held[h] = struct{}{}
	r.wanted++
	return before
}

func (r *ranges) unlock(h *held) {
	r.mu.Lock()
	delete(r.held, h)
	r.mu.Unlock()
	close(h.free)
}

// asked is how often somebody has asked for a range.
func (r *ranges) asked() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wanted
}
