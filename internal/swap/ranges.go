package swap

import "sync"

// ranges are the parts of a disk that somebody changes. Who wants one that overlaps
// another waits until that is free.
type ranges struct {
	mu     sync.Mutex // guards held
	held   map[*held]struct{}
	wanted int64 // how often somebody has asked
}

type held struct {
	off, end int64
	free     chan struct{} // closed when it is
}

// lock takes n bytes at off; unlock frees them.
func (r *ranges) lock(off, n int64) *held {
	h := &held{off, off + n, make(chan struct{})}
	r.mu.Lock()
	r.wanted++
	for {
		other := r.overlapLocked(h)
		if other == nil {
			break
		}
		r.mu.Unlock()
		<-other.free
		r.mu.Lock()
	}
	if r.held == nil {
		r.held = map[*held]struct{}{}
	}
	r.held[h] = struct{}{}
	r.mu.Unlock()
	return h
}

func (r *ranges) overlapLocked(h *held) *held {
	for o := range r.held {
		if o.off < h.end && h.off < o.end {
			return o
		}
	}
	return nil
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
