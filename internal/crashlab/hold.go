package crashlab

import (
	"encoding/binary"
	"sync"
	"time"

	"tidemark/internal/block"
)

// holdMost is how long a slow write is held if the other clients do not end: they may
// wait for it, as those do who copy the same cluster.
const holdMost = 200 * time.Millisecond

// A holder is a File that holds writes of some versions, as a slow disk does, until
// nobody else has anything to do.
type holder struct {
	block.File
	mu sync.Mutex // guards what follows
	// versions are to be held, active is how many clients are neither held nor at
	// their end, and free is closed, once, when there are none.
	versions map[version]bool
	active   int
	freed    bool
	free     chan struct{}
	holds    chan struct{} // is told of every write that is held
}

func newHolder(f block.File) *holder { return &holder{File: f} }

// start begins a stretch of a number of clients.
func (h *holder) start(clients int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.versions, h.active, h.freed = map[version]bool{}, clients, false
	h.free, h.holds = make(chan struct{}), make(chan struct{}, clients)
}

// hold asks for the next write of a version to be held.
func (h *holder) hold(v version) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.versions[v] = true
}

// end notes that a client has nothing more to do.
func (h *holder) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lessLocked()
}

func (h *holder) lessLocked() {
	if h.active--; h.active == 0 && !h.freed {
		h.freed = true
		close(h.free)
	}
}

// wait waits until a write is held, or none is going to be.
func (h *holder) wait(ended <-chan struct{}) {
	select {
	case <-h.holds:
	case <-ended:
	}
}

// pass holds a write if it is of a version that is to be held.
func (h *holder) pass(p []byte) {
	h.mu.Lock()
	found := false
	for i := 0; i+sector <= len(p) && len(h.versions) > 0 && !found; i += sector {
		v := version(binary.BigEndian.Uint32(p[i:]))
		found = h.versions[v]
		delete(h.versions, v)
	}
	if !found || h.freed {
		h.mu.Unlock()
		return
	}
	h.lessLocked()
	free := h.free
	h.mu.Unlock()
	select {
	case h.holds <- struct{}{}:
	default: // nobody waits for so many
	}
	select {
	case <-free:
	case <-time.After(holdMost):
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.active++
}

// WriteAt is described at block.File.
func (h *holder) WriteAt(p []byte, off int64) (int, error) {
	h.pass(p)
	return h.File.WriteAt(p, off)
}

// WriteAtSync is described at block.File.
func (h *holder) WriteAtSync(p []byte, off int64) (int, error) {
	h.pass(p)
	return h.File.WriteAtSync(p, off)
}
