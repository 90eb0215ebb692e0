package crashlab

import (
	"encoding/binary"
	"sync"
	"time"

	"tidemark/internal/block"
)

// holdMost is how long something slow is held if the clients do not end: they may wait
// for it, as those do who copy the same cluster.
const holdMost = 200 * time.Millisecond

// A holder is a File that holds chosen operations, as a slow disk does, until nobody
// has anything else to do.
type holder struct {
	block.File
	most time.Duration // holdMost, but in tests
	mu   sync.Mutex    // guards what follows
	// What is to be held: writes of versions, and how many syncs and discards.
	versions        map[version]bool
	syncs, discards int
	// active is how many clients are neither held nor at their end, and free is
	// closed, once, when there are none.
	active int
	freed  bool
	free   chan struct{}
	holds  chan struct{} // is told of what is held
}

func newHolder(f block.File) *holder { return &holder{File: f, most: holdMost} }

// start begins a stretch of a number of clients.
func (h *holder) start(clients int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.versions, h.syncs, h.discards = map[version]bool{}, 0, 0
	h.active, h.freed = clients, false
	h.free, h.holds = make(chan struct{}), make(chan struct{}, clients)
}

// hold asks for what a request of some kind has the File do to be held: of a write,
// what has its version.
func (h *holder) hold(k Kind, v version) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch k {
	case Write, WriteFUA, WriteLater:
		h.versions[v] = true
	case Flush:
		h.syncs++
	case ZeroUnmap, Discard:
		h.discards++
	}
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

// wait waits until something is held, or the request that asks for it has ended.
func (h *holder) wait(ended <-chan struct{}) {
	select {
	case <-h.holds:
	case <-ended:
	}
}

// pass holds an operation if wanted says so; a client waits for it, or nobody.
func (h *holder) pass(client bool, wanted func() bool) {
	h.mu.Lock()
	if h.freed || !wanted() {
		h.mu.Unlock()
		return
	}
	if client {
		h.lessLocked()
	}
	free := h.free
	h.mu.Unlock()
	select {
	case h.holds <- struct{}{}:
	default: // nobody waits for so many
	}
	select {
	case <-free:
	case <-time.After(h.most):
	}
	if client {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.active++
	}
}

func (h *holder) passWrite(p []byte) {
	h.pass(true, func() (found bool) {
		for i := 0; i+sector <= len(p) && len(h.versions) > 0 && !found; i += sector {
			v := version(binary.BigEndian.Uint32(p[i:]))
			found = h.versions[v]
			delete(h.versions, v)
		}
		return found
	})
}

// WriteAt is described at block.File.
func (h *holder) WriteAt(p []byte, off int64) (int, error) {
	h.passWrite(p)
	return h.File.WriteAt(p, off)
}

// WriteAtSync is described at block.File.
func (h *holder) WriteAtSync(p []byte, off int64) (int, error) {
	h.passWrite(p)
	return h.File.WriteAtSync(p, off)
}

// Sync is described at block.File.
func (h *holder) Sync() error {
	h.pass(true, func() bool {
		if h.syncs == 0 {
			return false
		}
		h.syncs--
		return true
	})
	return h.File.Sync()
}

// Discard is described at block.File.
func (h *holder) Discard(off, n int64) error {
	h.pass(false, func() bool {
		if h.discards == 0 {
			return false
		}
		h.discards--
		return true
	})
	return h.File.Discard(off, n)
}
