package qcow2

import "tidemark/qcow2/format"

// SetPair makes p the entry of guest cluster gc, whose slice is in memory, as a
// request does.
func (im *Image) SetPair(gc int64, p format.L2Pair) {
	n, i := im.sliceOf(gc)
	s := im.tab.dir.get(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	im.markDirtyLocked(s)
	s.storeLocked(i, p)
}

// Pair is the entry of guest cluster gc as a request sees it.
func (im *Image) Pair(gc int64) format.L2Pair {
	n, i := im.sliceOf(gc)
	return im.tab.dir.get(n).load(i)
}

// StagedPairs are the entries that a commit would write now, of all dirty slices. It
// writes nothing.
func (im *Image) StagedPairs() (pairs []format.L2Pair) {
	im.tableIO.Lock()
	defer im.tableIO.Unlock()
	p := im.stage(false)
	for _, w := range append(p.whole, p.tables...) {
		some := make([]format.L2Pair, len(w.data)/im.geo.L2EntryBytes())
		im.geo.DecodeL2(some, w.data)
		pairs = append(pairs, some...)
	}
	for _, s := range p.slices {
		s.mu.Lock()
		s.writing = false
		s.mu.Unlock()
	}
	im.dirty.count.Add(-int64(len(p.slices)))
	return pairs
}
