package qcow2

import (
	"maps"
	"slices"
	"sync"
)

// WaitIdle waits until the engine does nothing by itself.
func (im *Image) WaitIdle() { im.tasks.Wait() }

// Published reports whether anybody can see an entry of guest cluster gc that names
// a host cluster.
func (im *Image) Published(gc int64) bool {
	n, i := im.sliceOf(gc)
	s := im.tab.dir.get(n)
	return s != nil && s.load(i).Entry.Offset() != 0
}

// LogHead is up to where the redo ring is filled.
func (im *Image) LogHead() uint64 { return im.logHead() }

// CountDurably counts host cluster c, as a reservation does.
func (im *Image) CountDurably(c int64) error { return im.countRun(run{at: c, n: 1}, true) }

// WriteCounts writes reference counts, as a commit does.
func (im *Image) WriteCounts() error { return im.writeRefcounts(false) }

// ForgetDecoders empties the pool of zstd decoders. They hold channels, which must not
// cross the border of a testing/synctest bubble.
func ForgetDecoders() { unzstds = sync.Pool{} }

// Evict drops everything from the caches that is not needed there.
func (im *Image) Evict() {
	t := &im.tab
	t.mu.Lock()
	t.cache = slices.DeleteFunc(t.cache, func(s *slice) bool { return s.pins == 0 && im.evict(s) })
	t.bytes = 0
	for _, s := range t.cache {
		t.bytes += s.counted
	}
	t.hand = 0
	t.mu.Unlock()
	im.refs.mu.Lock()
	defer im.refs.mu.Unlock()
	maps.DeleteFunc(im.refs.slices.m, func(_ int64, s *countSlice) bool { return !s.dirty && !s.writing })
}
