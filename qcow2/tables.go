package qcow2

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"tidemark/internal/lockorder"
	"tidemark/internal/mutant"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// maxSliceBytes is the unit in which tables are read, cached and written: one
// page, or a cluster where that is smaller.
const maxSliceBytes = 4 << 10

// tables are the L1 table and the cache of L2 slices.
type tables struct {
	dir directory // lock-free lookup of what is in cache
	// toCome is how many L2 tables the disk does not have, or has to copy.
	toCome atomic.Int64

	mu      lockorder.Mutex // guards what follows
	l1      []format.L1Entry
	l1Dirty map[int]struct{}     // numbers of 512-byte sectors of the L1 table
	cache   []*slice             // all slices of dir, in no order
	hand    int                  // of the replacement clock
	max     int64                // bytes of slices and of dir
	bytes   int64                // of the slices in cache
	loading map[int64]*sliceLoad // by number
	seen    sliceSet             // slices that were validated when they were loaded
	bad     int                  // slices with bad entries
	// mostDirty is how many slices may be dirty before writers wait. It does not change.
	mostDirty int64
}

// A sliceSet is a set of numbers of slices.
type sliceSet []uint64

func (s *sliceSet) add(n int64) {
	for int64(len(*s)) <= n/64 {
		*s = append(*s, 0)
	}
	(*s)[n/64] |= 1 << (n % 64)
}

func (s sliceSet) has(n int64) bool { return n/64 < int64(len(s)) && s[n/64]>>(n%64)&1 != 0 }

// A sliceLoad is one read of a slice, for all who want it.
type sliceLoad struct {
	done sync.WaitGroup
	s    *slice
	err  error
}

// sliceBits is the binary logarithm of the entries of an L2 slice.
func (im *Image) sliceBits() uint {
	if im.geo.ExtendedL2 {
		return min(im.geo.ClusterBits, 12) - 4
	}
	return min(im.geo.ClusterBits, 12) - 3
}

func (im *Image) sliceBytes() int64 { return min(im.geo.ClusterSize(), maxSliceBytes) }

// sliceOf is the number of the slice that has guest cluster gc, and the place of
// its entry in it.
func (im *Image) sliceOf(gc int64) (n int64, i int) {
	bits := im.sliceBits()
	return gc >> bits, int(gc & (1<<bits - 1))
}

// l1Index is the L1 entry under which guest cluster gc is.
func (im *Image) l1Index(gc int64) int64 { return gc / int64(im.geo.L2Entries()) }

// inTable is where slice n begins in its L2 table, bytes.
func (im *Image) inTable(n int64) int64 {
	return n * im.sliceBytes() & (im.geo.ClusterSize() - 1)
}

// loadL1 reads the L1 table and validates it.
func (im *Image) loadL1() error {
	l1, err := im.readL1(im.header.L1Offset, int64(im.header.L1Size))
	im.tab.l1 = l1
	for _, e := range l1 {
		if !e.Copied() {
			im.tab.toCome.Add(1)
		}
	}
	return err
}

// readL1 reads and validates n entries of an L1 table, the image's or a
// snapshot's.
func (im *Image) readL1(off, n int64) ([]format.L1Entry, error) {
	b := make([]byte, n*8)
	if _, err := readFull(im.file, b, off); err != nil {
		return nil, fmt.Errorf("read L1 table: %w", err)
	}
	l1 := make([]format.L1Entry, n)
	format.DecodeTable(l1, b)
	for i, e := range l1 {
		if !e.Valid() || !im.inFile(e.Offset()) {
			return nil, &format.CorruptError{What: fmt.Sprintf("L1 entry %d", i), Off: off + int64(i)*8,
				Want: "the offset of a cluster inside the file", Got: fmt.Sprintf("0x%016x", uint64(e))}
		}
	}
	return l1, nil
}

// inFile reports whether a cluster at off is aligned and begins inside the file;
// 0, "none", is fine. The last cluster of a file may be incomplete.
func (im *Image) inFile(off int64) bool {
	return off&(im.geo.ClusterSize()-1) == 0 && off < im.file.Size()
}

// slice returns the slice that maps guest cluster gc, nil if there is no L2 table
// for it. It may read the file.
func (im *Image) slice(gc int64) (*slice, error) {
	if s := im.sliceNow(gc); s != nil {
		return s, nil
	}
	n, _ := im.sliceOf(gc)
	return im.loadSlice(n, false)
}

// sliceNow returns the slice that maps guest cluster gc if it is in the cache.
func (im *Image) sliceNow(gc int64) *slice {
	n, _ := im.sliceOf(gc)
	s := im.tab.dir.get(n)
	if s != nil && !s.used.Load() {
		s.used.Store(true)
	}
	return s
}

// warm has the processor load the entry of the guest cluster at off, which may lie
// outside of the disk, if its slice is in memory. On a large disk no cache of a core has
// the entry, and a request has other things to do before it looks at it.
func (im *Image) warm(off int64) {
	n, i := im.sliceOf(off >> im.geo.ClusterBits)
	if s := im.tab.dir.get(n); s != nil {
		s.prefetch(i)
	}
}

// loadSlice gets slice n into the cache, and pins it there if asked to.
func (im *Image) loadSlice(n int64, pin bool) (*slice, error) {
	t := &im.tab
	for {
		t.mu.Lock()
		if s := t.dir.get(n); s != nil {
			if pin {
				s.pins++
			}
			t.mu.Unlock()
			return s, nil
		}
		e := t.l1[im.l1Index(n<<im.sliceBits())]
		if e == 0 {
			t.mu.Unlock()
			return nil, nil
		}
		l := t.loading[n]
		if l == nil {
			l = &sliceLoad{}
			l.done.Add(1)
			t.loading[n] = l
			t.mu.Unlock()
			im.readSlice(n, e, l)
		} else {
			t.mu.Unlock()
			l.done.Wait()
		}
		if l.err != nil || !pin {
			return l.s, l.err
		}
	}
}

// readSlice does one load and tells who waits for it.
func (im *Image) readSlice(n int64, e format.L1Entry, l *sliceLoad) {
	off := e.Offset() + im.inTable(n)
	bits := min(im.geo.ClusterBits, 12)
	buf := getBuffer(bits)
	defer putBuffer(bits, buf)
	_, err := readFull(im.file, *buf, off)
	pairs := make([]format.L2Pair, 1<<im.sliceBits())
	im.geo.DecodeL2(pairs, *buf)
	s := im.newSlice(n, off, formOf(pairs, im.geo))
	s.shared.Store(!e.Copied())
	t := &im.tab
	t.mu.Lock()
	if err != nil {
		err = fmt.Errorf("read L2 table: %w", err)
	} else {
		err = im.fillSliceLocked(s, pairs)
	}
	if err == nil {
		im.addSliceLocked(s)
		l.s = s
	}
	l.err = err
	delete(t.loading, n)
	t.mu.Unlock()
	l.done.Done()
}

// addSliceLocked puts s into the cache; when that is full, slices leave it that
// were not used since the clock's hand passed them. If all are needed, the cache
// grows.
func (im *Image) addSliceLocked(s *slice) {
	t := &im.tab
	for tries := 2 * len(t.cache); t.fullLocked(s) && tries > 0; tries-- {
		t.hand = (t.hand + 1) % len(t.cache)
		old := t.cache[t.hand]
		t.countLocked(old) // it may have become wide
		if old.used.Swap(false) || old.pins > 0 || !im.evict(old) {
			continue
		}
		t.bytes -= old.counted
		last := len(t.cache) - 1
		t.cache[t.hand], t.cache[last] = t.cache[last], nil
		t.cache = t.cache[:last]
		if last > 0 {
			t.hand %= last
		}
	}
	s.epoch.Store(im.dirty.commits.Load())
	t.cache = append(t.cache, s)
	t.dir.set(s.n, s)
	t.countLocked(s)
}

// minSlices are in the cache whatever they take.
const minSlices = 16

// fullLocked reports whether one has to leave the cache for s.
func (t *tables) fullLocked(s *slice) bool {
	return len(t.cache) >= minSlices && t.bytes+t.dir.bytes()+s.bytes() > t.max
}

// countLocked counts what s takes now instead of what it took when that was done last.
func (t *tables) countLocked(s *slice) {
	now := s.bytes()
	t.bytes += now - s.counted
	s.counted = now
}

func (im *Image) boundCache() {
	im.tab.mu.Lock()
	defer im.tab.mu.Unlock()
	im.boundCacheLocked()
}

// otherShare: of the memory for metadata one part in so many is for what is in use for
// a while: counts that are dirty, lists of clusters, buffers.
const otherShare = 8

// boundCacheLocked sets what slices and directory may take: what the other metadata
// leaves of Options.CacheBytes, and half of it at least.
func (im *Image) boundCacheLocked() {
	slices := int64(len(im.tab.l1)) << (im.geo.ClusterBits - min(im.geo.ClusterBits, 12))
	im.refs.mu.Lock()
	words := len(im.tab.l1) + len(im.refs.metadata) + len(im.refs.table)
	im.refs.mu.Unlock()
	rest := im.opts.CacheBytes/countShare + int64(words)*8 + slices/8 // one bit each in seen
	rest += im.opts.CacheBytes / otherShare
	im.tab.max = max(im.opts.CacheBytes-rest, im.opts.CacheBytes/2)
}

// evict takes s out of the directory unless it is needed.
func (im *Image) evict(s *slice) bool {
	if !s.mu.TryLock() {
		return false
	}
	defer s.mu.Unlock()
	// One with bad entries stays: loaded again, they might look good.
	if s.dirty || s.writing || s.bad != nil {
		return false
	}
	s.dead = true
	im.tab.dir.remove(s.n)
	return true
}

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
	if c == 0 {
		im.mu.Lock()
		at, n := im.alloc.takeTable(im.tab.toCome.Load(), ch.frees)
		im.mu.Unlock()
		if n == 0 {
			return false, nil
		}
		c = at
	}
	t := &im.tab
	t.mu.Lock()
	defer t.mu.Unlock()
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
