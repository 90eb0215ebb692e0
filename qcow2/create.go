package qcow2

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"tidemark/internal/block"
	"tidemark/qcow2/format"
)

// CreateOptions are the choices for a new image. The zero value is a version 3
// image with 64 KiB clusters and 16-bit reference counts.
type CreateOptions struct {
	Size          int64 // of the virtual disk, bytes
	Version       int   // 2 ("0.10") or 3 ("1.1"); 0 means 3
	ClusterSize   int64 // bytes, a power of two from 512 to 2 MiB; 0 means 64 KiB
	RefcountBits  int   // 1, 2, 4, 8, 16, 32 or 64; 0 means 16
	LazyRefcounts bool  // sets the compatible feature; counts are kept exact all the same
	ExtendedL2    bool  // clusters of 16 KiB and more have 32 sub-clusters; version 3

	// CompressionType is what compressed clusters will be written with: "zlib" (or
	// ""), which is raw deflate, or "zstd" (version 3).
	CompressionType string

	// BackingFile is what unallocated clusters read from: a name that is stored as
	// it is, relative to the image's folder unless it is absolute, and not looked at.
	// BackingFormat is its format, "qcow2" or "raw"; one needs the other.
	BackingFile, BackingFormat string
}

// Geometry resolves the defaults.
func (o CreateOptions) Geometry() (format.Geometry, error) {
	g := format.Geometry{Version: 3, ClusterBits: format.DefaultClusterBits, RefcountOrder: format.DefaultRefcountOrder}
	g.ExtendedL2 = o.ExtendedL2
	if o.Version != 0 {
		g.Version = uint32(o.Version)
	}
	var err error
	if o.ClusterSize != 0 {
		if g.ClusterBits, err = log2("cluster size", o.ClusterSize); err != nil {
			return g, err
		}
	}
	if o.RefcountBits != 0 {
		if g.RefcountOrder, err = log2("refcount width", int64(o.RefcountBits)); err != nil {
			return g, err
		}
	}
	if err := g.Valid(); err != nil {
		return g, err
	}
	if o.Size < 0 || o.Size > g.MaxSize() {
		return g, fmt.Errorf("disk size %d: expected 0 to %d bytes with clusters of %d bytes", o.Size, g.MaxSize(), g.ClusterSize())
	}
	if o.LazyRefcounts && g.Version < 3 {
		return g, fmt.Errorf("lazy refcounts need compat 1.1")
	}
	return g, nil
}

func log2(what string, v int64) (uint, error) {
	for bits := uint(0); bits < 63; bits++ {
		if v == 1<<bits {
			return bits, nil
		}
	}
	return 0, fmt.Errorf("%s %d: expected a power of two", what, v)
}

// A layout is where the metadata of a new image goes, in clusters:
// header, refcount table, refcount blocks, L1 table.
type layout struct {
	tableAt, tableN   int64
	blocksAt, blocksN int64
	l1At, l1N         int64
	end               int64
}

// planLayout finds the smallest self-covering layout: blocks and table must
// count themselves, so their number is a fixed point.
func planLayout(g format.Geometry, size int64) layout {
	l := layout{tableAt: 1, l1N: g.Clusters(g.L1Entries(size) * 8), tableN: 1, blocksN: 1}
	for {
		l.end = 1 + l.tableN + l.blocksN + l.l1N
		blocks := (l.end + g.RefcountsPerBlock() - 1) / g.RefcountsPerBlock()
		table := g.Clusters(blocks * 8)
		if blocks == l.blocksN && table == l.tableN {
			break
		}
		l.blocksN, l.tableN = blocks, table
	}
	l.blocksAt = l.tableAt + l.tableN
	l.l1At = l.blocksAt + l.blocksN
	return l
}

// Create writes a new, empty image into f, which it grows as needed. What f
// held is gone. The header is written last, after a Sync, so that a crash
// leaves no image rather than half of one.
func Create(ctx context.Context, f block.File, o CreateOptions) error {
	g, err := o.Geometry()
	if err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	l := planLayout(g, o.Size)
	h := format.Header{
		Geometry: g, Size: o.Size,
		L1Offset: l.l1At << g.ClusterBits, L1Size: uint32(g.L1Entries(o.Size)),
		RefcountTableOffset: l.tableAt << g.ClusterBits, RefcountTableClusters: uint32(l.tableN),
	}
	if err := o.setFeatures(&h); err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	first, err := encodeFirstCluster(&h)
	if err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	if err := writeLayout(ctx, f, g, l, first); err != nil {
		return fmt.Errorf("create image: %w", err)
	}
	return nil
}

// setFeatures sets what is no geometry.
func (o CreateOptions) setFeatures(h *format.Header) error {
	if o.LazyRefcounts {
		h.Compatible |= format.CompatLazyRefcounts
	}
	switch o.CompressionType {
	case "", "zlib":
	case "zstd":
		if h.Version < 3 {
			return fmt.Errorf("compression type zstd needs compat 1.1")
		}
		h.CompressionType = compressionZstd
		h.Incompatible |= format.IncompatCompressionType
	default:
		return fmt.Errorf("compression type %q: expected zlib or zstd", o.CompressionType)
	}
	switch {
	case (o.BackingFile == "") != (o.BackingFormat == ""):
		return fmt.Errorf("backing file %q, format %q: expected both or neither", o.BackingFile, o.BackingFormat)
	case len(o.BackingFile) > format.MaxBackingName:
		return fmt.Errorf("backing file name of %d bytes: expected at most %d", len(o.BackingFile), format.MaxBackingName)
	case strings.IndexByte(o.BackingFile, 0) >= 0:
		return fmt.Errorf("backing file name %q: expected no NUL", o.BackingFile)
	}
	h.BackingFile = o.BackingFile
	if o.BackingFormat != "" {
		h.Extensions = []format.Extension{{Type: format.ExtBackingFormat, Data: []byte(o.BackingFormat)}}
	}
	return nil
}

// encodeFirstCluster encodes h with the feature name table, and, because a name of
// a backing file leaves no place to add them later, the list of reserved clusters
// (settle.go) and the number of the redo ring (log.go), which says nothing without
// its bit. Small clusters may have no room for all of them.
func encodeFirstCluster(h *format.Header) ([]byte, error) {
	needed := slices.Clip(h.Extensions)
	var names, reserved, ring []format.Extension
	if h.Version >= 3 { // version 2 has no features
		names = []format.Extension{{Type: format.ExtFeatureNames, Data: format.EncodeFeatureNames(format.KnownFeatures())}}
	}
	if h.BackingFile != "" {
		reserved = []format.Extension{{Type: format.ExtReserved, Data: format.EncodeReserved(nil)}}
		if h.Version >= 3 {
			ring = []format.Extension{{Type: format.ExtRedo, Data: make([]byte, format.RedoLen)}}
		}
	}
	for _, more := range [][]format.Extension{slices.Concat(names, reserved, ring), slices.Concat(reserved, ring), ring} {
		h.Extensions = append(needed, more...)
		if b, err := h.Encode(); err == nil {
			return b, nil
		}
	}
	h.Extensions = needed
	return h.Encode()
}

func writeLayout(ctx context.Context, f block.File, g format.Geometry, l layout, first []byte) error {
	cs := g.ClusterSize()
	if _, err := f.Grow(ctx, l.end*cs, l.end*cs); err != nil {
		return err
	}
	if err := f.WriteZeroes(0, l.end*cs); err != nil {
		return err
	}
	table := make([]format.RefcountTableEntry, l.blocksN)
	counts := make([]byte, cs)
	for i := range table {
		block := l.blocksAt + int64(i)
		table[i] = format.RefcountTableEntry(block * cs)
		clear(counts)
		from := int64(i) * g.RefcountsPerBlock()
		for c := from; c < min(l.end, from+g.RefcountsPerBlock()); c++ {
			format.SetRefcount(counts, g.RefcountOrder, int(c-from), 1)
		}
		if _, err := f.WriteAt(counts, block*cs); err != nil {
			return err
		}
	}
	b := make([]byte, l.tableN*cs)
	format.EncodeTable(b, table)
	if _, err := f.WriteAt(b, l.tableAt*cs); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := f.WriteAt(first, 0); err != nil {
		return err
	}
	return f.Sync()
}
