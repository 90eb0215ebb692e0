package qcow2

import (
	"fmt"
	"slices"

	"tidemark/internal/mutant"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// Settling gives back what a writer that died had reserved. The clusters are
// listed in the image (format.ExtReserved), in ranges that may be too wide or
// torn: a cluster of them is a suspect, and it is innocent as soon as anything
// refers to it. Open serves at once; the tables are read in the background:
//
//	S1  innocent from the start: metadata at open
//	S2  read every L2 table; what an entry names is innocent. So is what a
//	    request unlinks meanwhile (D1, W2, X3): its count is the commit's
//	    business; and what is counted 0 and chosen (R1)
//	S3  Sync: what was read is durable, or an entry that only the host's cache
//	    had lost could come back after the cluster was reused (I4)
//	S4  holding allocating, count 0 the suspects that are left and counted 1
//
// Nobody can begin to refer to a suspect: while it is counted it is not chosen,
// and it is not ready. A process that ends before S4 keeps the list.

// A clusterSet is a set of host clusters within a few ranges.
type clusterSet struct {
	ranges []format.ClusterRange // sorted, apart
	in     [][]bool              // for each cluster of each range
}

func newClusterSet(ranges []format.ClusterRange) *clusterSet {
	s := &clusterSet{ranges: mergeRanges(ranges, len(ranges))}
	for _, r := range s.ranges {
		in := make([]bool, r.N)
		for i := range in {
			in[i] = true
		}
		s.in = append(s.in, in)
	}
	return s
}

// remove takes cluster c out, if it is in.
func (s *clusterSet) remove(c int64) {
	for i, r := range s.ranges {
		if c >= r.At && c < r.At+r.N {
			s.in[i][c-r.At] = false
		}
	}
}

// each calls f for every cluster that is in.
func (s *clusterSet) each(f func(c int64) error) error {
	for i, r := range s.ranges {
		for j, in := range s.in[i] {
			if !in {
				continue
			}
			if err := f(r.At + int64(j)); err != nil {
				return err
			}
		}
	}
	return nil
}

// mergeRanges sorts ranges, joins those that touch, and then those with the
// smallest gaps until at most n are left.
func mergeRanges(ranges []format.ClusterRange, n int) []format.ClusterRange {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b format.ClusterRange) int { return int(min(max(a.At-b.At, -1), 1)) })
	join := func(i int) { // i with the one behind it
		end := max(sorted[i].At+sorted[i].N, sorted[i+1].At+sorted[i+1].N)
		sorted[i].N = end - sorted[i].At
		sorted = slices.Delete(sorted, i+1, i+2)
	}
	gap := func(i int) int64 { return sorted[i+1].At - sorted[i].At - sorted[i].N }
	for i := 0; i+1 < len(sorted); {
		if gap(i) <= 0 {
			join(i)
		} else {
			i++
		}
	}
	for len(sorted) > n {
		least := 0
		for i := 1; i+1 < len(sorted); i++ {
			if gap(i) < gap(least) {
				least = i
			}
		}
		join(least)
	}
	return sorted
}

// findSuspects reads what the image lists as reserved. A list that cannot be read
// is none: leaks do no harm.
func (im *Image) findSuspects() {
	e, ok := im.header.FindExtension(format.ExtReserved)
	if !ok {
		return
	}
	ranges, err := format.DecodeReserved(e.Data, im.alloc.openEnd)
	if err != nil {
		im.log.Warn("list of reserved clusters cannot be used; what a writer that died had reserved stays leaked until it is checked", "error", err)
		return
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
	for _, off := range tables { // S2
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

// acquit takes what entries name out of the suspects.
func (im *Image) acquit(entries []format.L2Pair) {
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

// convict is S4.
func (im *Image) convict() error {
	im.mu.Lock()
	var guilty []int64
	_ = im.suspects.each(func(c int64) error {
		guilty = append(guilty, c)
		return nil
	})
	im.suspects = nil
	im.mu.Unlock()
	freed, err := im.uncountLeaks(guilty)
	if err != nil {
		return im.poison(err)
	}
	steps.At("S4")
	im.mu.Lock()
	im.freedLocked()
	im.mu.Unlock()
	im.log.Info("gave back what a writer that died had reserved", "bytes", freed<<im.geo.ClusterBits)
	if err := im.writeRefcounts(false); err != nil {
		return im.fatalUnlessNoSpace(err)
	}
	return im.fatalUnlessNoSpace(im.listReserved(nil, false))
}

// uncountLeaks counts those of the clusters 0 that are counted once.
func (im *Image) uncountLeaks(clusters []int64) (freed int64, err error) {
	im.refs.mu.Lock()
	defer im.refs.mu.Unlock()
	for _, c := range clusters {
		n, err := im.refcountLocked(c)
		if err != nil {
			return freed, err
		}
		if n != 1 {
			continue
		}
		if err := im.setRefcountsLocked(run{at: c, n: 1}, 0); err != nil {
			return freed, err
		}
		freed++
		im.refs.cursor = min(im.refs.cursor, c)
	}
	return freed, nil
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
		ranges = append(ranges, im.suspects.ranges...)
	}
	im.mu.Unlock()
	_, err := im.putExtension(format.ExtReserved, format.EncodeReserved(mergeRanges(ranges, format.MaxReservedRanges)), durable)
	if err != nil {
		return fmt.Errorf("list of reserved clusters: %w", err)
	}
	return nil
}
