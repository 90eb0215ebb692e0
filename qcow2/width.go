package qcow2

import (
	"context"
	"fmt"

	"tidemark/internal/block"
	"tidemark/internal/mutant"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// SetRefcountBits gives the image in f, which nobody has open, reference counts of
// another width: 1, 2, 4, 8, 16, 32 or 64 bits (version 3). It is a big change (G1,
// G2): a crash leaves the image with the old width and at most leaked clusters, or
// with the new one. A count that the new width cannot hold is an error, and nothing
// is changed then.
func SetRefcountBits(ctx context.Context, f block.File, bits int) error {
	w, err := newWidening(f, bits)
	if err == nil && w != nil {
		err = w.run(ctx)
	}
	if err != nil {
		return fmt.Errorf("set refcount width to %d bits: %w", bits, err)
	}
	return nil
}

// A widening is the building of a second set of reference counts at the image's
// end.
type widening struct {
	file     block.File
	h        *format.Header
	old, geo format.Geometry
	counts   *countReader
	// gone are the clusters of the old table and blocks, which the new ones
	// count 0.
	gone map[int64]bool
	end  int64 // cluster behind the last one that is counted
	// blocks are the numbers of the new blocks, which lie at end in this order;
	// the table, tableN clusters, is behind them.
	blocks []int64
	tableN int64
}

// newWidening looks at the image; nil if it has that width already.
func newWidening(f block.File, bits int) (*widening, error) {
	h, err := ReadHeader(f)
	if err != nil {
		return nil, err
	}
	if err := refuseIncompatible(h); err != nil {
		return nil, err
	}
	if h.Incompatible&(format.IncompatCorrupt|format.IncompatDirty) != 0 {
		return nil, fmt.Errorf("image is marked corrupt or dirty: mend it with qemu-img check -r all")
	}
	w := &widening{file: f, h: h, old: h.Geometry, geo: h.Geometry, gone: map[int64]bool{}}
	if w.geo.RefcountOrder, err = log2("refcount width", int64(bits)); err != nil {
		return nil, err
	}
	if err := w.geo.Valid(); err != nil {
		return nil, err
	}
	if w.geo.RefcountOrder == w.old.RefcountOrder {
		return nil, nil
	}
	return w, w.load()
}

// load reads the old table, and looks at every old count.
func (w *widening) load() error {
	c := &checker{file: w.file, h: w.h, geo: w.old, refs: map[int64][]uint32{}}
	if err := c.loadTable(); err != nil {
		return err
	}
	if c.result.Corruptions > 0 {
		return fmt.Errorf("the refcount table is damaged (%s): mend it with qemu-img check -r all", c.result.Problems[0])
	}
	w.counts = newCountReader(c)
	cs := w.old.ClusterSize()
	for i := range int64(w.h.RefcountTableClusters) {
		w.gone[w.h.RefcountTableOffset/cs+i] = true
	}
	per := w.old.RefcountsPerBlock()
	for b, e := range c.table {
		if e == 0 {
			continue
		}
		w.gone[e.Offset()/cs] = true
		for cl := int64(b) * per; cl < (int64(b)+1)*per; cl++ {
			n, err := w.counts.at(cl)
			if err != nil {
				return err
			}
			if n > w.geo.RefcountMax() {
				return fmt.Errorf("cluster %d is counted %d times: expected at most %d", cl, n, w.geo.RefcountMax())
			}
			if n > 0 {
				w.end = cl + 1
				w.need(cl)
			}
		}
	}
	w.plan()
	return nil
}

// need notes that the block for cluster cl is needed. Clusters come in order.
func (w *widening) need(cl int64) {
	if b := cl / w.geo.RefcountsPerBlock(); len(w.blocks) == 0 || w.blocks[len(w.blocks)-1] < b {
		w.blocks = append(w.blocks, b)
	}
}

// plan finds how many blocks and clusters of table count themselves too.
func (w *widening) plan() {
	for {
		last := w.end + int64(len(w.blocks)) + w.tableN - 1
		before := len(w.blocks)
		for cl := w.end; cl <= last; cl++ {
			w.need(cl)
		}
		tableN := w.geo.Clusters((w.blocks[len(w.blocks)-1] + 1) * 8)
		if before == len(w.blocks) && tableN == w.tableN {
			return
		}
		w.tableN = tableN
	}
}

func (w *widening) run(ctx context.Context) error {
	cs := w.geo.ClusterSize()
	tableAt := w.end + int64(len(w.blocks))
	need := (tableAt + w.tableN) * cs
	if _, err := w.file.Grow(ctx, need, need); err != nil {
		return err
	}
	table := make([]format.RefcountTableEntry, w.tableN*cs/8)
	for i, b := range w.blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := (w.end + int64(i)) * cs
		data, err := w.block(b)
		if err != nil {
			return err
		}
		if _, err := w.file.WriteAt(data, at); err != nil {
			return fmt.Errorf("write refcount block: %w", err)
		}
		table[b] = format.RefcountTableEntry(at)
	}
	b := make([]byte, w.tableN*cs)
	format.EncodeTable(b, table)
	if _, err := w.file.WriteAt(b, tableAt*cs); err != nil {
		return fmt.Errorf("write refcount table: %w", err)
	}
	if !mutant.On("width-switched-unsynced") {
		if err := w.file.Sync(); err != nil {
			return err
		}
	}
	steps.At("G1")
	return w.switchTo(tableAt * cs)
}

// block builds new block number b.
func (w *widening) block(b int64) ([]byte, error) {
	per := w.geo.RefcountsPerBlock()
	data := make([]byte, w.geo.ClusterSize())
	ours := w.end + int64(len(w.blocks)) + w.tableN
	for i := range per {
		cl := b*per + i
		n := uint64(0)
		switch {
		case cl >= w.end && cl < ours:
			n = 1
		case cl < w.end && !w.gone[cl]:
			var err error
			if n, err = w.counts.at(cl); err != nil {
				return nil, err
			}
		}
		if n > 0 {
			format.SetRefcount(data, w.geo.RefcountOrder, int(i), n)
		}
	}
	return data, nil
}

// switchTo is G2.
func (w *widening) switchTo(tableOff int64) error {
	sector := make([]byte, format.SectorSize)
	if _, err := readFull(w.file, sector, 0); err != nil {
		return fmt.Errorf("read header: %w", err)
	}
	h := *w.h
	h.RefcountOrder, h.RefcountTableOffset, h.RefcountTableClusters = w.geo.RefcountOrder, tableOff, uint32(w.tableN)
	h.Put(sector)
	if _, err := w.file.WriteAt(sector, 0); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	if err := w.file.Sync(); err != nil {
		return err
	}
	steps.At("G2")
	return nil
}
