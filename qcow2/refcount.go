package qcow2

import (
	"errors"
	"fmt"
	"slices"

	"tidemark/internal/block"
	"tidemark/internal/lockorder"
	"tidemark/internal/mutant"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// refcounts are the reference counts of the host clusters. The in-memory copy of
// a block is its next image on disk: a count is lowered in it only when that
// may be written (rule 3).
type refcounts struct {
	// metadata lists the clusters that held metadata at open, sorted. It does not
	// change.
	metadata []int64

	mu lockorder.Mutex // guards what follows; refcount blocks are read under it
	// table is the refcount table, without the sectors at its end that are empty;
	// room is how many entries it has on disk.
	table  []format.RefcountTableEntry
	room   int64
	slices *countCache
	// cursor: the clusters below are known to be counted.
	cursor int64
}

// entriesPerSector is how many entries of a table a sector has.
const entriesPerSector = format.SectorSize / 8

// setTable takes a table of that size on disk.
func (r *refcounts) setTable(table []format.RefcountTableEntry) {
	r.room = int64(len(table))
	used := len(table)
	for used > 0 && table[used-1] == 0 {
		used--
	}
	used = min((used+entriesPerSector-1)/entriesPerSector*entriesPerSector, len(table))
	r.table = slices.Clone(table[:used])
}

// sectorOf returns a copy of the entries that are in one sector with entry b, and the
// first of them. Its caller holds mu.
func (r *refcounts) sectorOf(b int64) (first int64, entries []format.RefcountTableEntry) {
	first = b / entriesPerSector * entriesPerSector
	for int64(len(r.table)) < first+entriesPerSector {
		r.table = append(r.table, 0)
	}
	return first, slices.Clone(r.table[first : first+entriesPerSector])
}

func (im *Image) loadRefcountTable() error {
	h := im.header
	b := make([]byte, int64(h.RefcountTableClusters)*im.geo.ClusterSize())
	if _, err := readFull(im.file, b, h.RefcountTableOffset); err != nil {
		return fmt.Errorf("read refcount table: %w", err)
	}
	im.refs.slices = newCountCache(im.opts.CacheBytes / countShare)
	table := make([]format.RefcountTableEntry, len(b)/8)
	format.DecodeTable(table, b)
	im.refs.setTable(table)
	for i, e := range im.refs.table {
		if !e.Valid() || !im.inFile(e.Offset()) {
			return &format.CorruptError{What: fmt.Sprintf("refcount table entry %d", i), Off: h.RefcountTableOffset + int64(i)*8,
				Want: "the offset of a cluster inside the file", Got: fmt.Sprintf("0x%016x", uint64(e))}
		}
	}
	return nil
}

// lastCounted returns the cluster behind the last one whose count is not 0.
func (im *Image) lastCounted() (int64, error) {
	per := im.geo.RefcountsPerBlock()
	block := make([]byte, im.geo.ClusterSize())
	for i, e := range slices.Backward(im.refs.table) {
		if e == 0 {
			continue
		}
		if _, err := readFull(im.file, block, e.Offset()); err != nil {
			return 0, fmt.Errorf("read refcount block: %w", err)
		}
		if n := format.Counted(block, im.geo.RefcountOrder); n > 0 {
			return int64(i)*per + n, nil
		}
	}
	return 0, &format.CorruptError{What: "refcount table", Off: im.header.RefcountTableOffset, Want: "a count for the header", Got: "none"}
}

// refSliceBytes and refSliceBits are the size of a slice of a refcount block
// and the binary logarithm of the number of counts in it.
func (im *Image) refSliceBytes() int64 { return min(im.geo.ClusterSize(), maxSliceBytes) }
func (im *Image) refSliceBits() uint   { return min(im.geo.ClusterBits, 12) + 3 - im.geo.RefcountOrder }

// hasBlockLocked reports whether there is a refcount block for cluster c.
func (im *Image) hasBlockLocked(c int64) bool {
	b := c / im.geo.RefcountsPerBlock()
	return b < int64(len(im.refs.table)) && im.refs.table[b] != 0
}

// refSliceLocked returns the slice that counts cluster c, nil if there is no
// block for it.
func (im *Image) refSliceLocked(c int64) (*countSlice, error) {
	n := c >> im.refSliceBits()
	if s := im.refs.slices.get(n); s != nil {
		return s, nil
	}
	if !im.hasBlockLocked(c) {
		return nil, nil
	}
	per := im.geo.RefcountsPerBlock()
	s := &countSlice{data: make([]byte, im.refSliceBytes())}
	s.off = im.refs.table[c/per].Offset() + c%per>>im.refSliceBits()*im.refSliceBytes()
	if _, err := readFull(im.file, s.data, s.off); err != nil {
		return nil, fmt.Errorf("read refcount block: %w", err)
	}
	im.refs.slices.put(n, s)
	return s, nil
}

func (im *Image) refcountLocked(c int64) (uint64, error) {
	s, err := im.refSliceLocked(c)
	if s == nil || err != nil {
		return 0, err
	}
	return format.Refcount(s.data, im.geo.RefcountOrder, im.inRefSlice(c)), nil
}

func (im *Image) inRefSlice(c int64) int { return int(c & (1<<im.refSliceBits() - 1)) }

// setRefcountsLocked sets the counts of a run whose blocks exist.
func (im *Image) setRefcountsLocked(r run, v uint64) error {
	for c := r.at; c < r.at+r.n; c++ {
		s, err := im.refSliceLocked(c)
		if err != nil {
			return err
		}
		if s == nil {
			return &format.CorruptError{What: fmt.Sprintf("refcount block of cluster %d", c), Off: -1, Want: "one", Got: "none"}
		}
		format.SetRefcount(s.data, im.geo.RefcountOrder, im.inRefSlice(c), v)
		im.refs.slices.markDirty(s)
	}
	return nil
}

// writeRefcounts writes the dirty slices, each durably if that is asked for. One at
// a time, so that an older copy never overwrites a newer one.
func (im *Image) writeRefcounts(durable bool) error {
	im.refcountIO.Lock()
	defer im.refcountIO.Unlock()
	return im.writeRefcountsLocked(durable)
}

// writeRefcountsLocked needs refcountIO.
func (im *Image) writeRefcountsLocked(durable bool) error {
	im.refs.mu.Lock()
	writes, finish := im.refs.slices.stage()
	im.refs.mu.Unlock()
	err := writeStaged(im.writer(durable), writes)
	im.refs.mu.Lock()
	finish(err)
	im.refs.mu.Unlock()
	if err != nil {
		return fmt.Errorf("write reference counts: %w", err)
	}
	return nil
}

// addBlock makes cluster c, which is zeroed and lies at the image's end, the
// refcount block for block number b: the block, durably, and then its entry,
// durably (R3). Writes that are durable by themselves wait for nothing else: a Sync
// would for all that guests have written. The block counts itself, or is counted by
// a block that exists.
func (im *Image) addBlock(b, c int64) error {
	per, cs := im.geo.RefcountsPerBlock(), im.geo.ClusterSize()
	data := make([]byte, cs)
	if c/per == b {
		format.SetRefcount(data, im.geo.RefcountOrder, int(c%per), 1)
	} else if err := im.countRun(run{at: c, n: 1}, true); err != nil {
		return err
	}
	undo := func(err error) error {
		if c/per == b {
			return err
		}
		return im.uncount([]run{{at: c, n: 1}}, err)
	}
	if _, err := im.writer(!mutant.On("refcount-block-unsynced"))(data, c*cs); err != nil {
		return undo(fmt.Errorf("write refcount block: %w", err))
	}
	im.mu.Lock()
	tableOff := im.header.RefcountTableOffset
	im.mu.Unlock()
	im.refs.mu.Lock()
	first, entries := im.refs.sectorOf(b)
	im.refs.mu.Unlock()
	entries[b-first] = format.RefcountTableEntry(c * cs)
	sector := make([]byte, format.SectorSize)
	format.EncodeTable(sector, entries)
	if _, err := im.writer(!mutant.On("refcount-entry-unsynced"))(sector, tableOff+first*8); err != nil {
		// The storage may have no space for that part of the table, where it was a
		// hole; nothing has changed then (rule 14).
		err = fmt.Errorf("write refcount table: %w", err)
		if errors.Is(err, block.ErrNoSpace) {
			return undo(err)
		}
		return im.poison(err)
	}
	im.refs.mu.Lock()
	im.refs.table[b] = format.RefcountTableEntry(c * cs)
	im.refs.mu.Unlock()
	im.mu.Lock()
	im.alloc.end = max(im.alloc.end, c+1)
	im.mu.Unlock()
	steps.At("R3")
	return nil
}

// countRun sets the counts of r to 1, in memory and on disk, durably if that is
// asked for. If there is no space for that, nothing has changed. Nobody else writes
// counts meanwhile: a commit that took them from here would not do so durably.
func (im *Image) countRun(r run, durable bool) error {
	im.refcountIO.Lock()
	defer im.refcountIO.Unlock()
	im.refs.mu.Lock()
	err := im.setRefcountsLocked(r, 1)
	im.refs.mu.Unlock()
	if err == nil {
		err = im.writeRefcountsLocked(durable)
	}
	if err != nil {
		im.refs.mu.Lock()
		undo := im.setRefcountsLocked(r, 0)
		im.refs.mu.Unlock()
		if undo != nil {
			return im.poison(undo)
		}
	}
	return err
}

// growRefcountTable makes room for block number b: new table, and blocks for
// what is itself not covered, at the image's end; Sync; switch the header. The
// caller holds allocating.
func (im *Image) growRefcountTable(b int64) error {
	cs := im.geo.ClusterSize()
	im.mu.Lock()
	at := im.alloc.end
	old := run{im.header.RefcountTableOffset / cs, int64(im.header.RefcountTableClusters)}
	im.mu.Unlock()
	im.refs.mu.Lock()
	table := slices.Clone(im.refs.table) // it becomes larger below
	blocksN, tableN := im.planTableLocked(at, b)
	im.refs.mu.Unlock()

	area := run{at, blocksN + tableN}
	if err := im.growFile(area); err != nil {
		return err
	}
	return im.fatalUnlessNoSpace(im.buildRefcountTable(table, old, at, blocksN, tableN))
}

// buildRefcountTable writes the new table, a copy of table that is larger, and
// the new blocks at cluster at, and switches to it.
func (im *Image) buildRefcountTable(table []format.RefcountTableEntry, old run, at, blocksN, tableN int64) error {
	per, cs := im.geo.RefcountsPerBlock(), im.geo.ClusterSize()
	area := run{at, blocksN + tableN}
	table = append(table, make([]format.RefcountTableEntry, tableN*cs/8-int64(len(table)))...)
	blocks := map[int64][]byte{}
	var counted []run // in blocks that exist
	next := at
	for c := area.at; c < area.at+area.n; c++ {
		i := c / per
		if table[i] == 0 {
			table[i] = format.RefcountTableEntry(next * cs)
			blocks[next] = make([]byte, cs)
			next++
		}
		if data := blocks[table[i].Offset()/cs]; data != nil {
			format.SetRefcount(data, im.geo.RefcountOrder, int(c%per), 1)
		} else if err := im.countRun(run{at: c, n: 1}, false); err != nil {
			return im.uncount(counted, err)
		} else {
			counted = appendRun(counted, run{at: c, n: 1})
		}
	}
	data := make([]byte, tableN*cs)
	format.EncodeTable(data, table)
	tableOff := (at + blocksN) * cs
	blocks[at+blocksN] = data
	for c, data := range blocks {
		if _, err := im.file.WriteAt(data, c*cs); err != nil {
			return im.uncount(counted, fmt.Errorf("write refcount blocks and table: %w", err))
		}
	}
	if err := im.syncUnless(mutant.On("refcount-table-switched-unsynced")); err != nil {
		return err
	}
	err := im.switchHeader(func(h *format.Header) {
		h.RefcountTableOffset, h.RefcountTableClusters = tableOff, uint32(tableN)
	})
	if err != nil {
		return err
	}
	im.refs.mu.Lock()
	im.refs.setTable(table)
	im.refs.mu.Unlock()
	im.mu.Lock()
	im.alloc.end = area.at + area.n
	im.gone = append(im.gone, old)
	im.mu.Unlock()
	return nil
}

// planTableLocked returns how many clusters a table takes that has room for
// block number b and grows by half, and how many blocks must stand beside it so
// that all of it is counted: a fixed point.
func (im *Image) planTableLocked(at, b int64) (blocksN, tableN int64) {
	per := im.geo.RefcountsPerBlock()
	have := im.refs.room
	tableN = im.geo.Clusters(max(b+1, have+have/2) * 8)
	for {
		last := (at + blocksN + tableN - 1) / per
		missing := int64(0)
		for i := at / per; i <= last; i++ {
			if !im.hasBlockLocked(i * per) {
				missing++
			}
		}
		needed := max(tableN, im.geo.Clusters((last+1)*8))
		if missing == blocksN && needed == tableN {
			return blocksN, tableN
		}
		blocksN, tableN = missing, needed
	}
}

// uncountLocked lowers the count of cluster c.
func (im *Image) uncountLocked(c int64) error {
	n, err := im.refcountLocked(c)
	if err != nil {
		return err
	}
	if n == 0 {
		return &format.CorruptError{What: "reference count of the cluster", Off: c << im.geo.ClusterBits, Want: "at least 1, as an entry named it", Got: "0"}
	}
	return im.setRefcountsLocked(run{at: c, n: 1}, n-1)
}
