package qcow2

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"tidemark/internal/block"
	"tidemark/qcow2/format"
)

// maxSliceBytes is the unit in which tables are read, cached and written: one
// page, or a cluster where that is smaller.
const maxSliceBytes = 4 << 10

// A slice is a part of an L2 table or of a refcount block in memory.
type slice[T any] struct {
	data []T
	off  int64 // in the file, bytes
	// bad holds, by their index, elements that must not be used and that data
	// holds a mark for; they are written back as they were.
	bad map[int]T
	// dirty: changed since it was last copied for writing. writing: copied, and
	// not written yet. Only a slice that is neither may leave the cache: reading
	// it again would find the past.
	dirty, writing bool
}

// A sliceCache holds slices by number. Its owner's lock guards it.
type sliceCache[T any] struct {
	m     map[int64]*slice[T]
	dirty map[*slice[T]]struct{}
	max   int64 // elements
}

func newSliceCache[T any](maxElements int64) *sliceCache[T] {
	return &sliceCache[T]{m: map[int64]*slice[T]{}, dirty: map[*slice[T]]struct{}{}, max: maxElements}
}

func (c *sliceCache[T]) get(n int64) *slice[T] { return c.m[n] }

// put adds a slice and, when the cache is full, drops some that are clean. Which
// ones is left to the map's order: random replacement.
func (c *sliceCache[T]) put(n int64, s *slice[T]) {
	for k, old := range c.m {
		if int64(len(c.m)+1)*int64(len(s.data)) <= c.max {
			break
		}
		// One with bad elements stays: loaded again, they might look good.
		if !old.dirty && !old.writing && old.bad == nil {
			delete(c.m, k)
		}
	}
	c.m[n] = s
}

func (c *sliceCache[T]) markDirty(s *slice[T]) {
	s.dirty = true
	c.dirty[s] = struct{}{}
}

// A staged write is a copy of a piece of metadata on its way to the file.
type staged struct {
	off  int64
	data []byte
}

// stage copies the dirty slices, in the order of the file, and makes them clean
// but not evictable. finish is told how writing the copies ended: they are
// evictable then, or dirty again, so that nobody takes them for written.
func (c *sliceCache[T]) stage(encode func(*slice[T]) []byte) (writes []staged, finish func(error)) {
	taken := make([]*slice[T], 0, len(c.dirty))
	for s := range c.dirty {
		s.dirty, s.writing = false, true
		taken = append(taken, s)
		writes = append(writes, staged{s.off, encode(s)})
	}
	clear(c.dirty)
	slices.SortFunc(writes, func(a, b staged) int { return cmp.Compare(a.off, b.off) })
	return writes, func(err error) {
		for _, s := range taken {
			s.writing = false
			if err != nil {
				c.markDirty(s)
			}
		}
	}
}

func writeStaged(f block.File, writes []staged) error {
	for _, w := range writes {
		if _, err := f.WriteAt(w.data, w.off); err != nil {
			return err
		}
	}
	return nil
}

// sliceBits is the binary logarithm of the entries of an L2 slice.
func (im *Image) sliceBits() uint {
	return min(im.geo.ClusterBits, 12) - 3
}

// loadL1 reads the L1 table and validates it.
func (im *Image) loadL1() error {
	h := im.header
	b := make([]byte, int64(h.L1Size)*8)
	if _, err := readFull(im.file, b, h.L1Offset); err != nil {
		return fmt.Errorf("read L1 table: %w", err)
	}
	im.l1 = make([]format.L1Entry, h.L1Size)
	format.DecodeTable(im.l1, b)
	for i, e := range im.l1 {
		if !e.Valid() || !im.inFile(e.Offset()) {
			return &format.CorruptError{What: fmt.Sprintf("L1 entry %d", i), Off: h.L1Offset + int64(i)*8,
				Want: "the offset of a cluster inside the file", Got: fmt.Sprintf("0x%016x", uint64(e))}
		}
		if !im.opts.ReadOnly && e != 0 && !e.Copied() {
			return &format.CorruptError{What: fmt.Sprintf("L1 entry %d", i), Off: h.L1Offset + int64(i)*8,
				Want: "an L2 table that nothing else refers to, as there are no snapshots", Got: fmt.Sprintf("0x%016x", uint64(e))}
		}
	}
	return nil
}

// inFile reports whether a cluster at off is aligned, not the header's, and
// begins inside the file; 0, "none", is fine. The last cluster of a file may be
// incomplete.
func (im *Image) inFile(off int64) bool {
	return off&(im.geo.ClusterSize()-1) == 0 && off < im.file.Size()
}

// checkMetadataOverlap refuses an image whose metadata clusters overlap each
// other: writing it would destroy it. What data entries name is checked against
// the same list when they are loaded.
func (im *Image) checkMetadataOverlap() error {
	cs := im.geo.ClusterSize()
	var list []int64
	add := func(off, n int64) {
		for c := off; c < off+n; c += cs {
			list = append(list, c/cs)
		}
	}
	add(0, cs)
	add(im.header.L1Offset, int64(im.header.L1Size)*8)
	add(im.header.RefcountTableOffset, int64(im.header.RefcountTableClusters)*cs)
	for _, e := range im.l1 {
		if e != 0 {
			add(e.Offset(), cs)
		}
	}
	for _, e := range im.refs.table {
		if e != 0 {
			add(e.Offset(), cs)
		}
	}
	slices.Sort(list)
	for i := 1; i < len(list); i++ {
		if list[i] == list[i-1] {
			return &format.CorruptError{What: "metadata", Off: list[i] * cs, Want: "one owner for each cluster", Got: "two"}
		}
	}
	im.refs.metadata = list
	return nil
}

// l2SliceLocked returns the slice that maps guest cluster gc, nil if there is
// no L2 table for it.
func (im *Image) l2SliceLocked(gc int64) (*slice[format.L2Entry], error) {
	n := gc >> im.sliceBits()
	if s := im.l2.get(n); s != nil {
		return s, nil
	}
	e := im.l1[gc>>(im.geo.ClusterBits-3)]
	if e == 0 {
		return nil, nil
	}
	s := im.newL2Slice(n, e)
	b := make([]byte, len(s.data)*8)
	if _, err := readFull(im.file, b, s.off); err != nil {
		return nil, fmt.Errorf("read L2 table: %w", err)
	}
	format.DecodeTable(s.data, b)
	if err := im.validateLocked(n, s); err != nil {
		return nil, err
	}
	im.l2.put(n, s)
	return s, nil
}

// newL2Slice makes slice number n, empty, of the L2 table that e names.
func (im *Image) newL2Slice(n int64, e format.L1Entry) *slice[format.L2Entry] {
	bits := im.sliceBits()
	inTable := n & (1<<(im.geo.ClusterBits-3-bits) - 1)
	return &slice[format.L2Entry]{data: make([]format.L2Entry, 1<<bits), off: e.Offset() + inTable<<(bits+3)}
}

// badEntry stands in memory for an L2 entry that must not be used. It is itself
// invalid.
const badEntry format.L2Entry = 3 << 62

// validateLocked checks the entries of a slice that came from the file and marks
// those that must not be used: only their clusters are out of reach then. The
// first time, host offsets must lie below the image's end at open, so that no
// entry becomes valid because the file grows; later, what this process
// allocated is allowed too (rule 17).
func (im *Image) validateLocked(n int64, s *slice[format.L2Entry]) error {
	_, again := im.seen[n]
	end := im.alloc.openEnd
	switch {
	case im.opts.ReadOnly:
		end = im.geo.Clusters(im.file.Size())
	case again:
		end = im.alloc.end
	}
	for i, e := range s.data {
		k := e.Kind(im.geo)
		ok := k != format.Invalid
		if ok && (k == format.Data || k == format.ZeroAllocated) {
			c := e.Offset() >> im.geo.ClusterBits
			_, meta := slices.BinarySearch(im.refs.metadata, c)
			ok = c < end && !meta
		}
		if !ok {
			if s.bad == nil {
				s.bad = map[int]format.L2Entry{}
			}
			s.bad[i], s.data[i] = e, badEntry
		}
	}
	if s.bad != nil {
		if im.badSlices++; im.badSlices > maxBadSlices {
			return &format.CorruptError{What: "L2 table", Off: s.off, Want: "entries that name data clusters inside the image", Got: "too many tables with others"}
		}
	}
	im.seen[n] = struct{}{}
	return nil
}

// maxBadSlices bounds the memory for slices that cannot leave the cache because
// they have bad entries.
const maxBadSlices = 4096

// badEntryLocked describes a bad entry, that of guest cluster gc.
func (im *Image) badEntryLocked(gc int64) error {
	s := im.l2.get(gc >> im.sliceBits())
	i := int(gc & (1<<im.sliceBits() - 1))
	return &format.CorruptError{What: fmt.Sprintf("L2 entry of guest cluster %d", gc), Off: s.off + int64(i)*8,
		Want: "a data cluster inside the image that is no metadata", Got: fmt.Sprintf("0x%016x", uint64(s.bad[i]))}
}

// entryLocked returns the entry of guest cluster gc.
func (im *Image) entryLocked(gc int64) (format.L2Entry, error) {
	s, err := im.l2SliceLocked(gc)
	if s == nil || err != nil {
		return 0, err
	}
	e := s.data[gc&(1<<im.sliceBits()-1)]
	if e == badEntry {
		return 0, im.badEntryLocked(gc)
	}
	return e, nil
}

// addTableLocked makes the ready cluster c the L2 table for guest cluster gc.
func (im *Image) addTableLocked(gc, c int64) {
	i := gc >> (im.geo.ClusterBits - 3)
	im.l1[i] = format.NewL1Entry(c << im.geo.ClusterBits)
	im.l1Dirty[int(i*8/format.SectorSize)] = struct{}{}
	first := i << (im.geo.ClusterBits - 3) >> im.sliceBits()
	for n := first; n < first+1<<(im.geo.ClusterBits-3-im.sliceBits()); n++ {
		im.seen[n] = struct{}{}
	}
	// It reads zero on disk, so its slices need not be read.
	n := gc >> im.sliceBits()
	im.l2.put(n, im.newL2Slice(n, im.l1[i]))
}

func encodeL2(s *slice[format.L2Entry]) []byte {
	b := make([]byte, len(s.data)*8)
	format.EncodeTable(b, s.data)
	for i, e := range s.bad {
		format.EncodeTable(b[i*8:], []format.L2Entry{e})
	}
	return b
}

// writeTables writes the dirty L2 slices and L1 sectors, without a Sync (W4, D2,
// C2). One at a time, so that an older copy never overwrites a newer one; whoever
// had to wait may find that his changes were written by the one before him.
func (im *Image) writeTables() error {
	im.tableIO.Lock()
	defer im.tableIO.Unlock()
	return im.writeTablesLocked()
}

// writeTablesLocked needs tableIO.
func (im *Image) writeTablesLocked() error {
	im.mu.Lock()
	writes, finish := im.l2.stage(encodeL2)
	sectors := slices.Collect(maps.Keys(im.l1Dirty))
	writes = append(writes, im.stageL1Locked()...)
	im.mu.Unlock()
	err := writeStaged(im.file, writes)
	im.mu.Lock()
	finish(err)
	if err != nil {
		for _, n := range sectors {
			im.l1Dirty[n] = struct{}{}
		}
	}
	im.mu.Unlock()
	if err != nil {
		return im.poison(fmt.Errorf("write L2 and L1 tables: %w", err))
	}
	return nil
}

// stageL1Locked copies the dirty sectors of the L1 table.
func (im *Image) stageL1Locked() []staged {
	var writes []staged
	const per = format.SectorSize / 8
	for n := range im.l1Dirty {
		sector := make([]byte, format.SectorSize)
		format.EncodeTable(sector, im.l1[n*per:min((n+1)*per, len(im.l1))])
		writes = append(writes, staged{im.header.L1Offset + int64(n)*format.SectorSize, sector})
	}
	clear(im.l1Dirty)
	return writes
}
