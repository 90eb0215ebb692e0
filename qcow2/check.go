package qcow2

import (
	"context"
	"fmt"

	"tidemark/internal/block"
	"tidemark/qcow2/format"
)

// CheckOptions are the choices of Check.
type CheckOptions struct {
	// RepairLeaks lowers counts that are too high to what refers to the
	// cluster, if nothing else was found: what looks leaked may be what is missing
	// elsewhere. Nothing else is ever changed. So a cluster stays counted that the
	// disk's table would have to call its own (COPIED) after that: a crash between
	// the two writes would leave what every check calls a corruption.
	RepairLeaks bool
	// Progress, if not nil, is told how many of the guest's clusters were
	// looked at.
	Progress func(done, total int64)
}

// A CheckResult is what Check found, with the fields of qemu-img check.
type CheckResult struct {
	Corruptions   int64 // references that must not be: the image must not be written to
	Leaks         int64 // clusters that are counted higher than referred to: space, no data
	LeaksFixed    int64
	CheckErrors   int64    // places that could not be looked at
	ImageEnd      int64    // bytes
	TotalClusters int64    // of the guest
	Allocated     int64    // of them, with data in the image
	Fragmented    int64    // of them, not behind their neighbour
	Compressed    int64    // of them
	Problems      []string // the first maxProblems, for people
}

// maxProblems bounds what a hostile image can make us remember.
const maxProblems = 1000

// Clean reports whether nothing was found, or everything was mended.
func (r CheckResult) Clean() bool {
	return r.Corruptions == 0 && r.CheckErrors == 0 && r.Leaks == r.LeaksFixed
}

// Check compares the reference counts of the image in f with what refers to
// each cluster: the header's tables, the disk, its snapshots. Memory grows with
// the file's clusters: 4 bytes for each in the parts that are used. An image whose
// features own clusters in ways that are unknown here is refused by an
// [UnsupportedError]. A backing file is not looked at.
func Check(ctx context.Context, f block.File, o CheckOptions) (CheckResult, error) {
	h, err := ReadHeader(f)
	if err != nil {
		return CheckResult{}, fmt.Errorf("check image: %w", err)
	}
	if err := checkable(h); err != nil {
		return CheckResult{}, fmt.Errorf("check image: %w", err)
	}
	c := &checker{ctx: ctx, file: f, h: h, geo: h.Geometry, opts: o, refs: map[int64][]uint32{}}
	if err := c.run(); err != nil {
		return c.result, fmt.Errorf("check image: %w", err)
	}
	return c.result, nil
}

// checkable refuses what owns clusters in ways that Check does not follow.
func checkable(h *format.Header) error {
	rest := *h
	rest.Incompatible &^= format.IncompatExtendedL2 // followed, whoever else can
	if err := refuseIncompatible(&rest); err != nil {
		return err
	}
	switch {
	case h.CryptMethod != 0:
		return &format.UnsupportedError{Feature: fmt.Sprintf("encryption (method %d)", h.CryptMethod), Advice: "use qemu-img check"}
	case h.Extension(format.ExtBitmaps) != nil:
		return &format.UnsupportedError{Feature: "persistent bitmaps", Advice: "use qemu-img check"}
	}
	return nil
}

type checker struct {
	ctx    context.Context
	file   block.File
	h      *format.Header
	geo    format.Geometry
	opts   CheckOptions
	table  []format.RefcountTableEntry
	refs   map[int64][]uint32 // refcount block number -> references found, and unowned
	data   int64              // host offset behind the last data cluster, for fragmentation
	result CheckResult
}

// unowned marks, beside the number of references to a cluster, that the disk's
// table refers to it without COPIED.
const unowned = 1 << 31

// A place is what refers: the index-th of its kind, or the only one if index is -1.
type place struct {
	what  string
	index int64
}

func (p place) String() string {
	if p.index < 0 {
		return p.what
	}
	return fmt.Sprintf("%s %d", p.what, p.index)
}

func (c *checker) problem(counter *int64, text string, args ...any) {
	c.problems(1, counter, text, args...)
}

// problems is one problem that counts n times.
func (c *checker) problems(n int64, counter *int64, text string, args ...any) {
	*counter += n
	if len(c.result.Problems) < maxProblems {
		c.result.Problems = append(c.result.Problems, fmt.Sprintf(text, args...))
	}
}

// refer counts times references to each cluster of the n bytes at off. The last
// cluster of the file may be incomplete.
func (c *checker) refer(off, n, times int64, by place) {
	per, end := c.geo.RefcountsPerBlock(), c.geo.Clusters(c.file.Size())
	if off < 0 || n < 0 || n > end<<c.geo.ClusterBits-off {
		c.problems(times, &c.result.Corruptions, "ERROR %s refers to offset %d, outside the file of %d bytes", by, off, c.file.Size())
		return
	}
	for cl := off >> c.geo.ClusterBits; cl <= (off+n-1)>>c.geo.ClusterBits; cl++ {
		block := c.refs[cl/per]
		if block == nil {
			block = make([]uint32, min(per, end-cl/per*per)) // no more than the file has clusters
			c.refs[cl/per] = block
		}
		block[cl%per] = uint32(min(int64(block[cl%per]&^unowned)+times, unowned-1)) | block[cl%per]&unowned
	}
}

// found is the number of references to a cluster and whether it is unowned.
func (c *checker) found(cl int64) (n uint64, isUnowned bool) {
	per := c.geo.RefcountsPerBlock()
	if block := c.refs[cl/per]; cl%per < int64(len(block)) {
		return uint64(block[cl%per] &^ unowned), block[cl%per]&unowned != 0
	}
	return 0, false
}

// markUnowned marks the cluster at off, if it is one of the file.
func (c *checker) markUnowned(off int64) {
	cl, per := off>>c.geo.ClusterBits, c.geo.RefcountsPerBlock()
	if block := c.refs[cl/per]; cl%per < int64(len(block)) {
		block[cl%per] |= unowned
	}
}

func (c *checker) run() error {
	cs := c.geo.ClusterSize()
	c.refer(0, cs, 1, place{"header", -1})
	c.refer(c.h.RefcountTableOffset, int64(c.h.RefcountTableClusters)*cs, 1, place{"header (refcount table)", -1})
	if err := c.loadTable(); err != nil {
		return err
	}
	if err := c.walkDisk(); err != nil {
		return err
	}
	if known, err := c.walkSnapshots(); !known || err != nil {
		return err
	}
	if err := c.compare(); err != nil {
		return err
	}
	if !c.opts.RepairLeaks || c.result.Leaks == 0 || c.result.Corruptions > 0 || c.result.CheckErrors > 0 {
		return nil
	}
	return c.mend()
}

func (c *checker) loadTable() error {
	b := make([]byte, int64(c.h.RefcountTableClusters)*c.geo.ClusterSize())
	if _, err := readFull(c.file, b, c.h.RefcountTableOffset); err != nil {
		return fmt.Errorf("read refcount table: %w", err)
	}
	c.table = make([]format.RefcountTableEntry, len(b)/8)
	format.DecodeTable(c.table, b)
	for i, e := range c.table {
		if e == 0 {
			continue
		}
		if !e.Valid() || e.Offset()&(c.geo.ClusterSize()-1) != 0 || e.Offset() >= c.file.Size() {
			c.problem(&c.result.Corruptions, "ERROR refcount table entry %d: 0x%016x is no cluster of the file", i, uint64(e))
			c.table[i] = 0
			continue
		}
		c.refer(e.Offset(), c.geo.ClusterSize(), 1, place{"refcount table entry", int64(i)})
	}
	return nil
}

// compare holds every count against the references found.
func (c *checker) compare() error {
	per := c.geo.RefcountsPerBlock()
	for b, e := range c.table {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if e == 0 {
			continue
		}
		if n, _ := c.found(e.Offset() >> c.geo.ClusterBits); n != 1 {
			c.problem(&c.result.Corruptions, "ERROR refcount block %d at %d: %d references to its cluster, expected none but the table's", b, e.Offset(), n)
		}
		c.compareBlock(int64(b), e.Offset())
	}
	for b, refs := range c.refs {
		if b < int64(len(c.table)) && c.table[b] != 0 {
			continue
		}
		for i := range refs {
			if n, _ := c.found(b*per + int64(i)); n > 0 {
				c.problem(&c.result.Corruptions, "ERROR cluster %d: %d references, and no refcount block", b*per+int64(i), n)
			}
		}
	}
	return nil
}

func (c *checker) compareBlock(b, off int64) {
	per, order := c.geo.RefcountsPerBlock(), c.geo.RefcountOrder
	data := make([]byte, c.geo.ClusterSize())
	if _, err := readFull(c.file, data, off); err != nil {
		c.problem(&c.result.CheckErrors, "ERROR refcount block %d: %v", b, err)
		return
	}
	for i := range max(format.Counted(data, order), int64(len(c.refs[b]))) {
		cl := b*per + i
		count := format.Refcount(data, order, int(i))
		found, _ := c.found(cl)
		if count > 0 {
			c.result.ImageEnd = max(c.result.ImageEnd, (cl+1)<<c.geo.ClusterBits)
		}
		switch {
		case count < found:
			c.problem(&c.result.Corruptions, "ERROR cluster %d: count %d, %d references", cl, count, found)
		case count > found:
			c.problem(&c.result.Leaks, "Leaked cluster %d: count %d, %d references", cl, count, found)
		}
	}
}

// mend lowers the counts that are too high.
func (c *checker) mend() error {
	for b, e := range c.table {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if e == 0 {
			continue
		}
		if err := c.mendBlock(int64(b), e.Offset()); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) mendBlock(b, off int64) error {
	per, order := c.geo.RefcountsPerBlock(), c.geo.RefcountOrder
	data := make([]byte, c.geo.ClusterSize())
	if _, err := readFull(c.file, data, off); err != nil {
		return fmt.Errorf("read refcount block: %w", err)
	}
	fixed := int64(0)
	for i := range format.Counted(data, order) {
		found, isUnowned := c.found(b*per + i)
		if keep := isUnowned && found == 1; !keep && format.Refcount(data, order, int(i)) > found {
			format.SetRefcount(data, order, int(i), found)
			fixed++
		}
	}
	if fixed == 0 {
		return nil
	}
	if _, err := c.file.WriteAt(data, off); err != nil {
		return fmt.Errorf("write refcount block: %w", err)
	}
	if err := c.file.Sync(); err != nil {
		return fmt.Errorf("sync refcount block: %w", err)
	}
	c.result.LeaksFixed += fixed
	return nil
}

// A countReader reads counts, one block at a time.
type countReader struct {
	c    *checker
	b    int64
	data []byte
}

func newCountReader(c *checker) *countReader {
	return &countReader{c: c, b: -1, data: make([]byte, c.geo.ClusterSize())}
}

func (r *countReader) at(cl int64) (uint64, error) {
	per := r.c.geo.RefcountsPerBlock()
	b := cl / per
	if b >= int64(len(r.c.table)) || r.c.table[b] == 0 {
		return 0, nil
	}
	if b != r.b {
		if _, err := readFull(r.c.file, r.data, r.c.table[b].Offset()); err != nil {
			return 0, fmt.Errorf("read refcount block: %w", err)
		}
		r.b = b
	}
	return format.Refcount(r.data, r.c.geo.RefcountOrder, int(cl%per)), nil
}
