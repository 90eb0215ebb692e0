package qcow2

import (
	"fmt"
	"slices"

	"tidemark/internal/mutant"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// ownSlice returns the slice for guest cluster gc in an L2 table that is the
// active disk's alone. It makes the table, or a copy of one that a snapshot
// shares, if there is none; nil without an error says that a cluster is missing
// for that.
func (im *Image) ownSlice(gc int64, ch *change) (*slice, error) {
	for {
		s, err := im.slice(gc)
		switch {
		case err != nil:
			return nil, err
		case s != nil && !s.shared.Load():
			return s, nil
		case s != nil:
			done, err := im.copyTable(im.l1Index(gc), 0, ch)
			if err != nil || !done {
				return nil, err
			}
		case !im.addTable(gc, ch):
			return nil, nil
		}
	}
}

// addTable makes a ready cluster the L2 table for guest cluster gc, unless there
// is one. It reports whether there is one now.
func (im *Image) addTable(gc int64, ch *change) bool {
	t := &im.tab
	t.mu.Lock()
	defer t.mu.Unlock()
	i := im.l1Index(gc)
	if t.l1[i] != 0 {
		return true
	}
	im.mu.Lock()
	c, n := im.alloc.takeTable(im.tab.toCome.Load(), ch.frees)
	im.mu.Unlock()
	if n == 0 {
		return false
	}
	ch.table(i, c)
	im.setL1Locked(i, c)
	for _, n := range im.slicesOfTable(i) {
		t.seen.add(n)
	}
	// It reads zero on disk, so its slices need not be read.
	n, _ = im.sliceOf(gc)
	im.addSliceLocked(im.newSlice(n, c<<im.geo.ClusterBits+im.inTable(n), form{}))
	steps.At("W2")
	return true
}

// setL1Locked makes cluster c the L2 table of L1 entry i.
func (im *Image) setL1Locked(i, c int64) {
	if !im.tab.l1[i].Copied() {
		im.tab.toCome.Add(-1)
	}
	im.tab.l1[i] = format.NewL1Entry(c << im.geo.ClusterBits)
	im.tab.l1Dirty[int(i*8/format.SectorSize)] = struct{}{}
}

// fillL1 writes zeroes over what reads zero of the L1 table on disk, once, so that the
// storage has space for it: in a file that was copied it may be a hole, and a commit
// that finds no space there is final (rule 14). Its caller holds allocating.
func (im *Image) fillL1() error {
	if im.l1Filled {
		return nil
	}
	im.tableIO.Lock() // so that nobody writes entries meanwhile
	defer im.tableIO.Unlock()
	im.mu.Lock()
	off, n := im.header.L1Offset, int64(im.header.L1Size)*8
	im.mu.Unlock()
	end := off + (n+format.SectorSize-1)/format.SectorSize*format.SectorSize // as entries are written
	for p := make([]byte, maxSliceBytes); off < end; off += int64(len(p)) {
		p = p[:min(int64(len(p)), end-off)]
		if _, err := readFull(im.file, p, off); err != nil {
			return im.poison(fmt.Errorf("read L1 table: %w", err))
		}
		if slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) {
			continue
		}
		if _, err := im.file.WriteAt(p, off); err != nil {
			return im.fatalUnlessNoSpace(fmt.Errorf("write what is empty of the L1 table: %w", err))
		}
	}
	im.l1Filled = true
	return nil
}

// slicesOfTable are the numbers of the slices of the L2 table of L1 entry i.
func (im *Image) slicesOfTable(i int64) []int64 {
	per := int64(1) << (im.geo.ClusterBits - min(im.geo.ClusterBits, 12))
	all := make([]int64, per)
	for k := range all {
		all[k] = i*per + int64(k)
	}
	return all
}

// copyTable replaces the L2 table of L1 entry i, which a snapshot shares, by a
// copy in cluster c, or in a ready one if c is 0. The entries stay as they are:
// what they name is shared as before. It reports false if no cluster is ready.
func (im *Image) copyTable(i, c int64, ch *change) (bool, error) {
	im.copying.lock()
	defer im.copying.release()
	pinned, err := im.pinTable(i)
	defer im.unpin(pinned)
	if err != nil {
		return false, err
	}
	if len(pinned) > 0 && !pinned[0].shared.Load() {
		return true, nil // somebody was faster
	}
	t := &im.tab
	t.mu.Lock()
	defer t.mu.Unlock()
	if c == 0 {
		im.mu.Lock()
		at, n := im.alloc.takeTable(im.tab.toCome.Load(), ch.frees)
		im.mu.Unlock()
		if n == 0 {
			return false, nil
		}
		c = at
	}
	old := t.l1[i].Offset() >> im.geo.ClusterBits
	ch.table(i, c)
	im.setL1Locked(i, c)
	for _, s := range pinned {
		s.mu.Lock()
		s.off = c<<im.geo.ClusterBits + im.inTable(s.n)
		s.whole = !mutant.On("copied-table-as-new")
		s.shared.Store(false)
		im.markDirtyLocked(s)
		s.mu.Unlock()
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.unlinkedLocked(old, 1)
	return true, nil
}

// pinTable gets all slices of the L2 table of L1 entry i into the cache and keeps
// them there until unpin.
func (im *Image) pinTable(i int64) ([]*slice, error) {
	var pinned []*slice
	for _, n := range im.slicesOfTable(i) {
		s, err := im.loadSlice(n, true)
		if err != nil {
			return pinned, err
		}
		pinned = append(pinned, s)
	}
	return pinned, nil
}

func (im *Image) unpin(pinned []*slice) {
	im.tab.mu.Lock()
	defer im.tab.mu.Unlock()
	for _, s := range pinned {
		s.pins--
	}
}
