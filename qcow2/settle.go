package qcow2

import (
	"fmt"
	"math"
	"slices"

	"tidemark/internal/mutant"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// Settling gives back what a writer that died has left counted and nobody refers to:
// what it had reserved, what it had unlinked and not freed. That a writer died is
// seen from the list of what it had reserved (format.ExtReserved), which a clean end
// empties, and from its ring. Every cluster is a suspect then, and it is innocent as
// soon as anything refers to it. Open serves at once; the tables are read in the
// background:
//
//	S1  innocent from the start: metadata at open
//	S2  read every L2 table; what an entry names is innocent. So is what a
//	    request unlinks meanwhile (D1, W2, X3): its count is the commit's
//	    business; and what is counted 0 and chosen (R1)
//	S3  Sync: what was read is durable, or an entry that only the host's cache
//	    had lost could come back after the cluster was reused (I4)
//	S4  holding allocating, count 0 the suspects that are left and counted 1.
//	    They are proven to be free: no entry, right or wrong, names them, so
//	    that they may become tables (rule 17). As many as there are tables to
//	    come that find no place at the image's end become ready for that
//
// Nobody can begin to refer to a suspect: while it is counted it is not chosen,
// and it is not ready. A process that ends before S4 keeps the list.
//
// Where somebody unknown may own clusters, an extension or a feature, only what the
// list has is suspect: it is ours (rule 15). An image whose tables to come have no
// room at its end is settled too, whoever wrote it: it must be proven what they may
// have (rule 18).

// maxSuspects bounds the memory for suspects: 32 MiB.
const maxSuspects = 1 << 28

// findSuspects decides who is suspect (S1).
func (im *Image) findSuspects() {
	im.owed = im.readListed()
	ranges := im.owed
	if (WriterDied(im.header) || im.lacksRoom()) && !im.unknownOwners() && im.alloc.openEnd <= maxSuspects {
		ranges = []format.ClusterRange{{At: 1, N: im.alloc.openEnd - 1}}
	}
	if len(ranges) == 0 {
		return
	}
	im.suspects = newClusterSet(ranges)
	for _, c := range im.refs.metadata {
		im.suspects.remove(c)
	}
	steps.At("S1")
}

// WriterDied reports whether an image that nobody has open for writing has what a writer
// that died had reserved, or had completed: h is its header. Who opens it for writing takes
// care of that (see Settled).
func WriterDied(h *format.Header) bool {
	if h.Autoclear&format.AutoclearRedo != 0 {
		return true
	}
	e, ok := h.FindExtension(format.ExtReserved)
	if !ok {
		return false
	}
	ranges, err := format.DecodeReserved(e.Data, math.MaxInt64)
	return err == nil && len(ranges) > 0
}

// readListed reads what the image lists as reserved. A list that cannot be read is
// none: leaks do no harm.
func (im *Image) readListed() []format.ClusterRange {
	e, ok := im.header.FindExtension(format.ExtReserved)
	if !ok {
		return nil
	}
	ranges, err := format.DecodeReserved(e.Data, im.alloc.openEnd)
	if err != nil {
		im.log.Warn("list of reserved clusters cannot be used; what a writer that died had reserved may stay leaked until it is checked", "error", err)
		return nil
	}
	return ranges
}

// lacksRoom reports whether the tables that are to come, and the refcount blocks, may
// find no room between the image's end and its bound.
func (im *Image) lacksRoom() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.alloc.end+im.tab.toCome.Load()+im.blocksToComeLocked() > im.alloc.bound
}

// unknownOwners reports whether something that is unknown here may own clusters.
func (im *Image) unknownOwners() bool {
	known := []format.ExtensionType{format.ExtBackingFormat, format.ExtFeatureNames, format.ExtReserved, format.ExtRedo, format.ExtPadding}
	if im.header.Compatible&^format.CompatLazyRefcounts != 0 {
		return true
	}
	for _, e := range im.header.Extensions {
		if !slices.Contains(known, e.Type) {
			return true
		}
	}
	return false
}

// startSettling begins to settle what findSuspects has found.
func (im *Image) startSettling() {
	im.settled = make(chan struct{})
	if im.suspects == nil {
		close(im.settled)
		return
	}
	im.tasks.Add(1)
	go func() {
		defer im.tasks.Done()
		defer close(im.settled)
		if err := im.settle(); err != nil && im.ctx.Err() == nil {
			im.log.Warn("reserved clusters of a writer that died stay leaked until they are checked", "error", err)
		}
	}()
}

// Settled is closed when what Open began by itself has ended: what a writer that
// died had reserved is given back then.
func (im *Image) Settled() <-chan struct{} { return im.settled }

func (im *Image) settle() error {
	tables, err := im.allTables()
	if err != nil {
		return err
	}
	entries, b := make([]format.L2Pair, im.geo.L2Entries()), make([]byte, im.geo.ClusterSize())
	for i, off := range tables { // S2
		im.tellSettling(i, len(tables))
		if err := im.ctx.Err(); err != nil {
			return err
		}
		if _, err := readFull(im.file, b, off); err != nil {
			return fmt.Errorf("read L2 table: %w", err)
		}
		im.geo.DecodeL2(entries, b)
		if !mutant.On("settle-acquits-nobody") {
			im.acquit(entries)
		}
	}
	steps.At("S2")
	if err := im.syncUnless(mutant.On("settled-unsynced")); err != nil {
		return err
	}
	steps.At("S3")
	if err := im.allocating.acquire(im.ctx); err != nil {
		return err
	}
	defer im.allocating.release()
	return im.convict()
}

// tellSettling tells how many tables of so many have been read.
func (im *Image) tellSettling(read, of int) {
	if im.opts.Settling != nil {
		im.opts.Settling(int64(read)*im.geo.L2Coverage(), int64(of)*im.geo.L2Coverage())
	}
}

// allTables are the offsets of the L2 tables of the disk and of its snapshots.
func (im *Image) allTables() ([]int64, error) {
	im.tab.mu.Lock()
	all := tableOffsets(nil, im.tab.l1)
	im.tab.mu.Unlock()
	for _, s := range im.snapshots {
		if mutant.On("settle-forgets-snapshots") {
			break
		}
		l1, err := im.readL1(s.L1Offset, int64(s.L1Size))
		if err != nil {
			return nil, fmt.Errorf("snapshot %q: %w", s.Name, err)
		}
		all = tableOffsets(all, l1)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// tableOffsets appends the offsets of the L2 tables that l1 names to dst.
func tableOffsets(dst []int64, l1 []format.L1Entry) []int64 {
	for _, e := range l1 {
		if e != 0 {
			dst = append(dst, e.Offset())
		}
	}
	return dst
}

// clearedLocked takes n clusters from c out of the suspects. Its caller holds mu.
func (im *Image) clearedLocked(c, n int64) {
	if im.suspects == nil {
		return
	}
	for end := c + n; c < end; c++ {
		im.suspects.remove(c)
	}
}

// acquitAtOnce bounds for how many entries mu is held.
const acquitAtOnce = 4096

// acquit takes what entries name out of the suspects.
func (im *Image) acquit(entries []format.L2Pair) {
	for some := range slices.Chunk(entries, acquitAtOnce) {
		im.acquitSome(some)
	}
}

func (im *Image) acquitSome(entries []format.L2Pair) {
	im.mu.Lock()
	defer im.mu.Unlock()
	bits := im.geo.ClusterBits
	for _, p := range entries {
		switch e := p.Entry; {
		case e == 0:
		case e.Kind(im.geo) == format.Compressed:
			off, n := e.CompressedRange(im.geo)
			im.clearedLocked(off>>bits, (off+n-1)>>bits-off>>bits+1)
		default: // also of a kind that must not be used
			im.clearedLocked(e.Offset()>>bits, 1)
		}
	}
}

// convict is S4. Counts that cannot be read stay as they are: the list stays too, so
// that the next process settles them.
func (im *Image) convict() error {
	im.mu.Lock()
	guilty := im.suspects
	im.suspects = nil // it is not shared with who unlinks any more
	im.mu.Unlock()
	freed, err := im.uncountLeaks(guilty)
	im.mu.Lock()
	if err != nil {
		im.suspects = guilty
		im.mu.Unlock()
		return err
	}
	im.owed, im.alloc.proven = nil, guilty
	im.mu.Unlock()
	kept, err := im.keepTables()
	im.mu.Lock()
	im.freedLocked() // also where no table could be kept
	im.mu.Unlock()
	if err != nil {
		return err
	}
	steps.At("S4")
	im.log.Info("gave back what a writer that died had left", "bytes", freed<<im.geo.ClusterBits, "kept", kept<<im.geo.ClusterBits)
	if err := im.writeRefcounts(false); err != nil {
		return im.fatalUnlessNoSpace(err)
	}
	return im.fatalUnlessNoSpace(im.listReserved(nil, false))
}

// uncountLeaks counts those of the clusters 0 that are counted once. What is counted
// more often stays, and leaves the set: who knows why.
func (im *Image) uncountLeaks(guilty *clusterSet) (freed int64, err error) {
	for c := range guilty.all() {
		n, err := im.uncountLeak(c)
		switch {
		case err != nil:
			return freed, err
		case n == 1:
			freed++
		case n > 1:
			guilty.remove(c)
		}
	}
	return freed, nil
}

// uncountLeak counts cluster c 0 if it is counted once, and returns its count before.
func (im *Image) uncountLeak(c int64) (uint64, error) {
	im.refs.mu.Lock()
	defer im.refs.mu.Unlock()
	n, err := im.refcountLocked(c)
	if err != nil || n != 1 {
		return n, err
	}
	im.refs.cursor = min(im.refs.cursor, c)
	return n, im.setRefcountsLocked(run{at: c, n: 1}, 0)
}

// keepTables makes as many clusters ready for tables as are to come and have no room
// at the image's end: data could take them otherwise.
func (im *Image) keepTables() (int64, error) {
	im.mu.Lock()
	n := im.tab.toCome.Load() - clusters(im.alloc.tables) + im.blocksToComeLocked() - max(im.alloc.bound-im.alloc.end, 0)
	im.mu.Unlock()
	if n <= 0 {
		return 0, nil
	}
	runs, err := im.findFreeTables(n)
	if err != nil || len(runs) == 0 {
		return 0, err
	}
	n = clusters(runs)
	return n, im.makeReady(runs, n, false)
}

// listReserved writes the list of what is reserved, together with more, into the
// image, durably if asked to. What the list before said stays on it: requests may have
// taken clusters from it whose tables are not written yet. Its caller holds
// allocating, or has closed the image. An image that has no room for the list
// goes without.
func (im *Image) listReserved(more []run, durable bool) error {
	im.mu.Lock()
	now := slices.Concat(im.alloc.ready, im.alloc.tables, more)
	var ranges []format.ClusterRange
	for _, r := range slices.Concat(now, im.listed) {
		ranges = append(ranges, format.ClusterRange{At: r.at, N: r.n})
	}
	im.listed = now
	if im.suspects != nil {
		ranges = append(ranges, im.owed...)
	}
	im.mu.Unlock()
	_, err := im.putExtension(format.ExtReserved, format.EncodeReserved(mergeRanges(ranges, format.MaxReservedRanges)), durable)
	if err != nil {
		return fmt.Errorf("list of reserved clusters: %w", err)
	}
	return nil
}
