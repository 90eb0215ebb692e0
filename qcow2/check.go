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
	// cluster. Nothing else is ever changed.
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
// each cluster. Memory grows with the file's clusters: 4 bytes for each in the
// parts that are used. An image whose features own clusters in ways that are
// unknown here is refused by an [UnsupportedError].
func Check(ctx context.Context, f block.File, o CheckOptions) (CheckResult, error) {
	h, err := ReadHeader(f)
	if err != nil {
		return CheckResult{}, fmt.Errorf("check image: %w", err)
	}
	if err := checkable(h); err != nil {
		return CheckResult{}, fmt.Errorf("check image: %w", err)
	}
	c := &checker{file: f, h: h, geo: h.Geometry, opts: o, refs: map[int64][]uint32{}}
	c.ctx = ctx
	if err := c.run(); err != nil {
		return c.result, fmt.Errorf("check image: %w", err)
	}
	return c.result, nil
}

// checkable refuses what owns clusters in ways that Check does not follow.
func checkable(h *format.Header) error {
	if err := refuseIncompatible(h); err != nil {
		return err
	}
	switch {
	case h.CryptMethod != 0:
		return &format.UnsupportedError{Feature: fmt.Sprintf("encryption (method %d)", h.CryptMethod), Advice: "use qemu-img check"}
	case h.Snapshots != 0:
		return &format.UnsupportedError{Feature: "internal snapshots", Advice: "use qemu-img check"}
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
	refs   map[int64][]uint32 // refcount block number -> references found
	data   int64              // host offset behind the last data cluster, for fragmentation
	result CheckResult
}

func (c *checker) problem(counter *int64, text string, args ...any) {
	*counter++
	if len(c.result.Problems) < maxProblems {
		c.result.Problems = append(c.result.Problems, fmt.Sprintf(text, args...))
	}
}

// refer counts a reference to each cluster of the n bytes at off.
func (c *checker) refer(off, n int64, what string) {
	per := c.geo.RefcountsPerBlock()
	if off < 0 || n < 0 || off >= c.file.Size()+c.geo.ClusterSize() || n > c.file.Size()+c.geo.ClusterSize()-off {
		c.problem(&c.result.Corruptions, "ERROR %s refers to offset %d, outside the file of %d bytes", what, off, c.file.Size())
		return
	}
	for cl := off >> c.geo.ClusterBits; cl <= (off+n-1)>>c.geo.ClusterBits; cl++ {
		block := c.refs[cl/per]
		if block == nil {
			// No more than the file has clusters; one may be incomplete.
			block = make([]uint32, min(per, c.geo.Clusters(c.file.Size())+1-cl/per*per))
			c.refs[cl/per] = block
		}
		block[cl%per]++
	}
}

func (c *checker) references(cl int64) uint64 {
	per := c.geo.RefcountsPerBlock()
	if block := c.refs[cl/per]; cl%per < int64(len(block)) {
		return uint64(block[cl%per])
	}
	return 0
}

func (c *checker) run() error {
	cs := c.geo.ClusterSize()
	c.refer(0, cs, "header")
	c.refer(c.h.RefcountTableOffset, int64(c.h.RefcountTableClusters)*cs, "refcount table")
	if err := c.loadTable(); err != nil {
		return err
	}
	if err := c.walk(); err != nil {
		return err
	}
	return c.compare()
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
		c.refer(e.Offset(), c.geo.ClusterSize(), "refcount table")
	}
	return nil
}

// walk follows the L1 table and all L2 tables. It needs the counts for the
// COPIED marks, so it reads each refcount as it goes.
func (c *checker) walk() error {
	n := int64(c.h.L1Size)
	c.result.TotalClusters = c.geo.Clusters(c.h.Size)
	if n == 0 {
		return nil
	}
	c.refer(c.h.L1Offset, n*8, "header (L1 table)")
	b := make([]byte, n*8)
	if _, err := readFull(c.file, b, c.h.L1Offset); err != nil {
		return fmt.Errorf("read L1 table: %w", err)
	}
	l1 := make([]format.L1Entry, n)
	format.DecodeTable(l1, b)
	counts := newCountReader(c)
	for i, e := range l1 {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if e == 0 {
			continue
		}
		if !e.Valid() || e.Offset()&(c.geo.ClusterSize()-1) != 0 || e.Offset() >= c.file.Size() {
			c.problem(&c.result.Corruptions, "ERROR L1 entry %d: 0x%016x is no cluster of the file", i, uint64(e))
			continue
		}
		c.refer(e.Offset(), c.geo.ClusterSize(), fmt.Sprintf("L1 entry %d", i))
		c.checkCopied(counts, "L1 entry", int64(i), e.Offset(), e.Copied())
		if err := c.walkL2(counts, int64(i), e.Offset()); err != nil {
			return err
		}
		if c.opts.Progress != nil {
			c.opts.Progress(min(int64(i+1)*int64(c.geo.L2Entries()), c.result.TotalClusters), c.result.TotalClusters)
		}
	}
	return nil
}

func (c *checker) walkL2(counts *countReader, l1, off int64) error {
	b := make([]byte, c.geo.ClusterSize())
	if _, err := readFull(c.file, b, off); err != nil {
		c.problem(&c.result.CheckErrors, "ERROR L2 table of L1 entry %d: %v", l1, err)
		return nil
	}
	entries := make([]format.L2Entry, c.geo.L2Entries())
	format.DecodeTable(entries, b)
	c.data = 0 // as QEMU does, fragments are counted in each table by itself
	for i, e := range entries {
		gc := l1*int64(len(entries)) + int64(i)
		switch e.Kind(c.geo) {
		case format.Invalid:
			c.problem(&c.result.Corruptions, "ERROR L2 entry of guest cluster %d: 0x%016x is invalid", gc, uint64(e))
		case format.Compressed:
			at, n := e.CompressedRange(c.geo)
			c.refer(at, n, fmt.Sprintf("L2 entry of guest cluster %d", gc))
			c.result.Compressed++
			c.result.Allocated++
			c.result.Fragmented++
		case format.Data, format.ZeroAllocated:
			c.refer(e.Offset(), c.geo.ClusterSize(), fmt.Sprintf("L2 entry of guest cluster %d", gc))
			c.checkCopied(counts, "L2 entry of guest cluster", gc, e.Offset(), e.Copied())
			c.result.Allocated++
			if c.data != 0 && e.Offset() != c.data {
				c.result.Fragmented++
			}
			c.data = e.Offset() + c.geo.ClusterSize()
		}
	}
	return nil
}

func (c *checker) checkCopied(counts *countReader, what string, n, off int64, copied bool) {
	count, err := counts.at(off >> c.geo.ClusterBits)
	if err != nil {
		c.problem(&c.result.CheckErrors, "ERROR %s %d: %v", what, n, err)
		return
	}
	if copied != (count == 1) {
		c.problem(&c.result.Corruptions, "ERROR %s %d: COPIED is %t, but the count of the cluster at %d is %d", what, n, copied, off, count)
	}
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
		if err := c.compareBlock(int64(b), e.Offset()); err != nil {
			return err
		}
	}
	for b, refs := range c.refs {
		if b < int64(len(c.table)) && c.table[b] != 0 {
			continue
		}
		for i, n := range refs {
			if n > 0 {
				c.problem(&c.result.Corruptions, "ERROR cluster %d: %d references, and no refcount block", b*per+int64(i), n)
			}
		}
	}
	return nil
}

func (c *checker) compareBlock(b, off int64) error {
	per, order := c.geo.RefcountsPerBlock(), c.geo.RefcountOrder
	data := make([]byte, c.geo.ClusterSize())
	if _, err := readFull(c.file, data, off); err != nil {
		c.problem(&c.result.CheckErrors, "ERROR refcount block %d: %v", b, err)
		return nil
	}
	changed := false
	for i := range max(format.Counted(data, order), int64(len(c.refs[b]))) {
		cl := b*per + i
		count, found := format.Refcount(data, order, int(i)), c.references(cl)
		if count > 0 {
			c.result.ImageEnd = max(c.result.ImageEnd, (cl+1)<<c.geo.ClusterBits)
		}
		switch {
		case count < found:
			c.problem(&c.result.Corruptions, "ERROR cluster %d: count %d, %d references", cl, count, found)
		case count > found:
			c.problem(&c.result.Leaks, "Leaked cluster %d: count %d, %d references", cl, count, found)
			if c.opts.RepairLeaks {
				format.SetRefcount(data, order, int(i), found)
				c.result.LeaksFixed++
				changed = true
			}
		}
	}
	if !changed {
		return nil
	}
	if _, err := c.file.WriteAt(data, off); err != nil {
		return fmt.Errorf("write refcount block: %w", err)
	}
	return c.file.Sync()
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
