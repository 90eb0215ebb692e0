package qcow2

import "sync"

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
