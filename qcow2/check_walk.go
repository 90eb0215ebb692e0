package qcow2

import (
	"fmt"
	"maps"
	"slices"

	"tidemark/qcow2/format"
)

// walkDisk follows the active L1 table and all its L2 tables, also what is behind
// the disk's end (the state of a virtual machine). Only there COPIED marks are
// accurate, and only its clusters are counted as allocated.
func (c *checker) walkDisk() error {
	c.result.TotalClusters = c.geo.Clusters(c.h.Size)
	l1, err := c.readL1(c.h.L1Offset, int64(c.h.L1Size), place{"header (L1 table)", -1})
	if err != nil {
		return err
	}
	counts := newCountReader(c)
	for i, e := range l1 {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		by := place{"L1 entry", int64(i)}
		if !c.referL2(e, by) {
			continue
		}
		c.checkCopied(counts, by, e.Offset(), e.Copied())
		first := int64(i) * int64(c.geo.L2Entries())
		c.walkL2(e.Offset(), 1, place{"L2 entry of guest cluster", first}, counts)
		if c.opts.Progress != nil {
			c.opts.Progress(min(first+int64(c.geo.L2Entries()), c.result.TotalClusters), c.result.TotalClusters)
		}
	}
	return nil
}

// countActive looks at an entry of the disk: COPIED, statistics.
func (c *checker) countActive(counts *countReader, by place, p format.L2Pair) {
	switch p.Entry.Kind(c.geo) {
	case format.Compressed:
		c.result.Compressed++
		c.result.Allocated++
		c.result.Fragmented++
	case format.Data, format.ZeroAllocated:
		off := p.Entry.Offset()
		c.checkCopied(counts, by, off, p.Entry.Copied())
		c.result.Allocated++
		if c.data != 0 && off != c.data {
			c.result.Fragmented++
		}
		c.data = off + c.geo.ClusterSize()
	}
}

// walkSnapshots follows the L1 tables of the snapshots. Snapshots share most of
// their L2 tables, so each is read once, and counts as often as it is referred to.
// known is false if the table of snapshots could not be read: then nobody knows
// what is leaked.
func (c *checker) walkSnapshots() (known bool, err error) {
	if c.h.Snapshots == 0 {
		return true, nil
	}
	list, size, err := ReadSnapshots(c.file, c.h)
	if err != nil {
		c.problem(&c.result.CheckErrors, "ERROR %v", err)
		return false, nil
	}
	c.refer(c.h.SnapshotsOffset, size, 1, place{"header (snapshot table)", -1})
	uses := map[int64]int64{} // L2 table's offset -> references
	for i := range list {
		if err := c.walkSnapshot(&list[i], uses); err != nil {
			return false, err
		}
	}
	for _, off := range slices.Sorted(maps.Keys(uses)) {
		if err := c.ctx.Err(); err != nil {
			return false, err
		}
		c.walkL2(off, uses[off], place{fmt.Sprintf("snapshots' L2 table at %d, entry", off), 0}, nil)
	}
	return true, nil
}

func (c *checker) walkSnapshot(s *format.Snapshot, uses map[int64]int64) error {
	what := fmt.Sprintf("snapshot %q (%q)", s.ID, s.Name)
	if err := c.geo.CheckSnapshotExtra(s, c.h.SnapshotsOffset); err != nil {
		c.problem(&c.result.Corruptions, "ERROR %s: %v", what, err)
	}
	if err := c.geo.CheckSnapshot(s, c.h.SnapshotsOffset, c.file.Size()); err != nil {
		c.problem(&c.result.Corruptions, "ERROR %s: %v", what, err)
		return nil
	}
	l1, err := c.readL1(s.L1Offset, int64(s.L1Size), place{what + " (L1 table)", -1})
	if err != nil {
		return err
	}
	for i, e := range l1 {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if c.referL2(e, place{what + ", L1 entry", int64(i)}) {
			uses[e.Offset()]++
		}
	}
	return nil
}

// readL1 reads an L1 table of n entries and counts the reference to it.
func (c *checker) readL1(off, n int64, by place) ([]format.L1Entry, error) {
	if n == 0 {
		return nil, nil
	}
	c.refer(off, n*8, 1, by)
	b := make([]byte, n*8)
	if _, err := readFull(c.file, b, off); err != nil {
		return nil, fmt.Errorf("%s: %w", by, err)
	}
	l1 := make([]format.L1Entry, n)
	format.DecodeTable(l1, b)
	return l1, nil
}

// referL2 counts the reference of an L1 entry and reports whether there is an L2
// table to follow.
func (c *checker) referL2(e format.L1Entry, by place) bool {
	if !e.Valid() {
		c.problem(&c.result.Corruptions, "ERROR %s: 0x%016x has reserved bits set", by, uint64(e))
	}
	if e.Offset() == 0 {
		return false
	}
	if e.Offset()&(c.geo.ClusterSize()-1) != 0 || e.Offset() >= c.file.Size() {
		c.problem(&c.result.Corruptions, "ERROR %s: 0x%016x is no cluster of the file", by, uint64(e))
		return false
	}
	c.refer(e.Offset(), c.geo.ClusterSize(), 1, by)
	return true
}

// walkL2 counts the references of an L2 table to which times L1 entries refer.
// first is the place of its first entry; counts is nil for tables of snapshots.
func (c *checker) walkL2(off, times int64, first place, counts *countReader) {
	b := make([]byte, c.geo.ClusterSize())
	if _, err := readFull(c.file, b, off); err != nil {
		c.problem(&c.result.CheckErrors, "ERROR L2 table at %d: %v", off, err)
		return
	}
	c.data = 0 // as QEMU does, fragments are counted in each table by itself
	pairs := make([]format.L2Pair, c.geo.L2Entries())
	c.geo.DecodeL2(pairs, b)
	for i, p := range pairs {
		if p == (format.L2Pair{}) {
			continue
		}
		by := place{first.what, first.index + int64(i)}
		bad := c.geo.SubclusterKind(p.Entry, p.Sub, 0) == format.Invalid
		if bad {
			c.problems(times, &c.result.Corruptions, "ERROR %s: 0x%016x is invalid%s", by, uint64(p.Entry), c.bitmap(p))
		}
		// What a bad entry names is counted all the same: it is not leaked.
		if at, n := c.target(p.Entry); n > 0 {
			c.refer(at, n, times, by)
		}
		if !bad && counts != nil {
			c.countActive(counts, by, p)
		}
	}
}

// target is the host range that an entry names, of 0 bytes if it names none.
func (c *checker) target(e format.L2Entry) (off, n int64) {
	if e.Compressed() {
		return e.CompressedRange(c.geo)
	}
	if e.Offset() == 0 {
		return 0, 0
	}
	return e.Offset(), c.geo.ClusterSize()
}

func (c *checker) bitmap(p format.L2Pair) string {
	if !c.geo.ExtendedL2 {
		return ""
	}
	return fmt.Sprintf(", sub-clusters 0x%016x", uint64(p.Sub))
}

// checkCopied holds the mark of an entry of the disk against the count.
func (c *checker) checkCopied(counts *countReader, by place, off int64, copied bool) {
	count, err := counts.at(off >> c.geo.ClusterBits)
	if err != nil {
		c.problem(&c.result.CheckErrors, "ERROR %s: %v", by, err)
		return
	}
	if !copied {
		c.markUnowned(off)
	}
	if copied != (count == 1) {
		c.problem(&c.result.Corruptions, "ERROR %s: COPIED is %t, but the count of the cluster at %d is %d", by, copied, off, count)
	}
}
