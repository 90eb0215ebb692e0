package qcow2

import (
	"fmt"
	"sync"
	"sync/atomic"

	"tidemark/internal/lockorder"
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
