package qcow2

import (
	"fmt"
	"slices"

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
//	    request unlinks meanwhile (D1, W2): its count is the commit's business
//	S3  Sync: what was read is durable, or an entry that only the host's cache
//	    had lost could come back after the cluster was reused (I4)
//	S4  holding allocating, count 0 the suspects that are left and counted 1
//
// Nobody can begin to refer to a suspect: it is counted, so it is not chosen, and
// it is not ready. A process that ends before S4 keeps the list.

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

// startSettling begins to settle what the image lists, if it lists anything. A
// list that cannot be read is none: leaks do no harm.
func (im *Image) startSettling() {
	im.settled = make(chan struct{})
	e, ok := im.header.FindExtension(format.ExtReserved)
	if ok && len(e.Data) == format.ReservedLen {
		im.listAt = e.Off
	}
	ranges, err := format.DecodeReserved(e.Data, im.alloc.openEnd)
	if ok && err != nil {
		im.log.Warn("list of reserved clusters cannot be used; what a writer that died had reserved stays leaked until it is checked", "error", err)
	}
	if !ok || err != nil || len(ranges) == 0 {
		close(im.settled)
		return
	}
	im.suspects = newClusterSet(ranges)
	for _, c := range im.refs.metadata { // S1
		im.suspects.remove(c)
	}
	steps.At("S1")
	im.tasks.Add(1)
	go func() {
		defer im.tasks.Done()
		defer close(im.settled)
		if err := im.settle(); err != nil && im.ctx.Err() == nil {
			im.log.Warn("reserved clusters of a writer that died stay leaked until they are checked", "error", err)
		}
	}()
}

// Settled is closed when nothing that Open began is still going on: what a writer
// that died had reserved is given back, or stays leaked.
func (im *Image) Settled() <-chan struct{} { return im.settled }

func (im *Image) settle() error {
	im.mu.Lock()
	tables := slices.Clone(im.l1)
	im.mu.Unlock()
	entries, b := make([]format.L2Entry, im.geo.L2Entries()), make([]byte, im.geo.ClusterSize())
	for _, e := range tables { // S2
		if err := im.ctx.Err(); err != nil {
			return err
		}
		if e == 0 {
			continue
		}
		if _, err := readFull(im.file, b, e.Offset()); err != nil {
			return fmt.Errorf("read L2 table: %w", err)
		}
		format.DecodeTable(entries, b)
		im.acquit(entries)
	}
	steps.At("S2")
	if err := im.sync("settle"); err != nil { // S3
		return err
	}
	steps.At("S3")
	if err := im.allocating.acquire(im.ctx); err != nil {
		return err
	}
	defer im.allocating.release()
	defer steps.At("S4")
	return im.convict()
}

// acquit takes what entries name out of the suspects.
func (im *Image) acquit(entries []format.L2Entry) {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, e := range entries {
		switch {
		case e == 0:
		case e.Kind(im.geo) == format.Compressed:
			off, n := e.CompressedRange(im.geo)
			for c := off >> im.geo.ClusterBits; c <= (off+n-1)>>im.geo.ClusterBits; c++ {
				im.suspects.remove(c)
			}
		default: // also of a kind that must not be used
			im.suspects.remove(e.Offset() >> im.geo.ClusterBits)
		}
	}
}

// convict is S4.
func (im *Image) convict() error {
	im.mu.Lock()
	freed := int64(0)
	err := im.suspects.each(func(c int64) error {
		if n, err := im.refcountLocked(c); n != 1 || err != nil {
			return err
		}
		freed++
		im.alloc.cursor = min(im.alloc.cursor, c)
		return im.setRefcountsLocked(run{at: c, n: 1}, 0)
	})
	im.suspects = nil
	im.freedLocked()
	im.mu.Unlock()
	if err != nil {
		return im.poison(err)
	}
	im.log.Info("gave back what a writer that died had reserved", "bytes", freed<<im.geo.ClusterBits)
	if err := im.writeRefcounts(); err != nil {
		return im.fatalUnlessNoSpace(err)
	}
	return im.fatalUnlessNoSpace(im.listReserved(nil))
}

// unlinkedLocked notes that no entry names cluster c any more: the next commit
// lowers its count.
func (im *Image) unlinkedLocked(c int64) {
	im.gone = appendRun(im.gone, run{at: c, n: 1})
	if im.suspects != nil {
		im.suspects.remove(c)
	}
}

// listReserved writes the list of what is reserved, together with more, into the
// image, without a Sync. What the list before said stays on it: requests may have
// taken clusters from it whose tables are not written yet. Its caller holds
// allocating, or has closed the image. An image that has no room for the list
// goes without.
func (im *Image) listReserved(more []run) error {
	im.mu.Lock()
	now := slices.Concat(im.alloc.ready, more)
	var ranges []format.ClusterRange
	for _, r := range slices.Concat(now, im.listed) {
		ranges = append(ranges, format.ClusterRange{At: r.at, N: r.n})
	}
	im.listed = now
	if im.suspects != nil {
		ranges = append(ranges, im.suspects.ranges...)
	}
	at, h := im.listAt, im.header
	im.mu.Unlock()
	data := format.EncodeReserved(mergeRanges(ranges, format.MaxReservedRanges))
	if at == 0 {
		return im.addList(h, data)
	}
	if _, err := im.file.WriteAt(data, at); err != nil {
		return fmt.Errorf("write list of reserved clusters: %w", err)
	}
	return nil
}

// addList adds the list's extension to the header. What makes it valid is
// written last; that both may land in any order does no harm, because what stands
// behind the end mark is zero or an older list.
func (im *Image) addList(h *format.Header, data []byte) error {
	if _, has := h.FindExtension(format.ExtReserved); has {
		return nil // of another version or length: not ours
	}
	off, b, ok := h.PlaceForExtension(format.ExtReserved, data)
	if !ok {
		return nil
	}
	for _, part := range []struct{ from, to int }{{8, len(b)}, {0, 8}} {
		if _, err := im.file.WriteAt(b[part.from:part.to], off+int64(part.from)); err != nil {
			return fmt.Errorf("write list of reserved clusters: %w", err)
		}
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.listAt = off + 8
	return nil
}
