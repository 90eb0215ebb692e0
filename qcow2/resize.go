package qcow2

import (
	"context"
	"errors"
	"fmt"

	"tidemark/internal/block"
	"tidemark/internal/lockorder"
	"tidemark/internal/mutant"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// Grow makes the disk size bytes large. It waits for space, for a larger L1
// table, as long as ctx allows, and holds nothing while it does. A smaller size
// is refused; the same one is fine. So is a disk whose backing file goes on behind
// its end: what is there would show in what the disk gains.
func (im *Image) Grow(ctx context.Context, size int64) error {
	if err := im.enter(true); err != nil {
		return err
	}
	defer im.exit()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(im.alive, cancel)() // closing ends the wait, and poison
	for {
		if err := im.mayGrow(size); err != nil {
			return err // before space is asked for
		}
		need := im.growNeed(size)
		lockorder.Waits("a larger file")
		if _, err := im.file.Grow(ctx, need, need); err != nil {
			if why := im.poisoned.Load(); why != nil {
				err = *why
			}
			return fmt.Errorf("grow disk to %d bytes: space for the L1 table: %w", size, err)
		}
		err := im.growNow(ctx, size)
		if err == nil || !errors.Is(err, block.ErrNoSpace) || ctx.Err() != nil || im.growNeed(size) <= im.file.Size() {
			return err
		}
		// Others were faster: their reservations took that space.
	}
}

// mayGrow says why the disk cannot have that size.
func (im *Image) mayGrow(size int64) error {
	switch old := im.size(); {
	case size < old || size > im.geo.MaxSize():
		return fmt.Errorf("grow disk to %d bytes: expected %d to %d bytes", size, old, im.geo.MaxSize())
	case size > old && im.backingSize() > old:
		return fmt.Errorf("grow disk to %d bytes: the backing file has %d bytes, the disk %d: %w, for content of it would show behind the disk's end: "+
			"convert the disk to one without a backing file first", size, im.backingSize(), old, block.ErrUnsupported)
	}
	return nil
}

// growNeed is how long the file must be so that an L1 table for size bytes, and
// what counts it, fit behind the image's end.
func (im *Image) growNeed(size int64) int64 {
	im.mu.Lock()
	end, have := im.alloc.end, int64(im.header.L1Size)
	im.mu.Unlock()
	im.refs.mu.Lock()
	defer im.refs.mu.Unlock()
	if entries := im.geo.L1Entries(size); entries > have {
		n := im.geo.Clusters(entries * 8)
		blocks, table := im.planTableLocked(end, (end+n)/im.geo.RefcountsPerBlock()+1)
		end += n + blocks + table + n/im.geo.RefcountsPerBlock() + 2
	}
	return end << im.geo.ClusterBits
}

// growNow grows the disk with the space that the file has.
func (im *Image) growNow(ctx context.Context, size int64) error {
	if err := im.allocating.acquire(ctx); err != nil {
		return fmt.Errorf("grow disk to %d bytes: %w", size, err)
	}
	defer im.allocating.release()
	if err := im.mayGrow(size); err != nil {
		return err
	}
	if err := im.growAllocating(size); err != nil {
		return fmt.Errorf("grow disk to %d bytes: %w", size, err)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.alloc.bound = im.bound(size)
	return nil
}

// growAllocating does it. The caller holds allocating.
func (im *Image) growAllocating(size int64) error {
	entries := im.geo.L1Entries(size)
	im.mu.Lock()
	have := int64(im.header.L1Size)
	im.mu.Unlock()
	if entries <= have {
		return im.switchHeader(func(h *format.Header) { h.Size = size })
	}
	if mutant.On("size-before-table") {
		if err := im.switchHeader(func(h *format.Header) { h.Size = size }); err != nil {
			return err
		}
	}
	at, err := im.reserveContiguous(im.geo.Clusters(entries * 8))
	if err != nil {
		return fmt.Errorf("space for the L1 table: %w", err)
	}
	return im.switchL1(at, entries, size)
}

// switchL1 moves the L1 table, with room for entries, to cluster at. No table is
// written meanwhile, so a sector that is dirty when the table is copied, or
// becomes so before the switch, is written to its new place afterwards. L2 tables
// that the copy names and the old table does not are fresh and read zero: those
// that are copies of a snapshot's are written first, and no more are made.
func (im *Image) switchL1(at, entries, size int64) error {
	im.copying.lock()
	defer im.copying.release()
	im.tableIO.Lock()
	defer im.tableIO.Unlock()
	if err := im.pushTablesLocked(false); err != nil {
		return err
	}
	cs := im.geo.ClusterSize()
	im.mu.Lock()
	old := run{at: im.header.L1Offset / cs, n: im.geo.Clusters(int64(im.header.L1Size) * 8)}
	im.mu.Unlock()
	table := make([]format.L1Entry, entries)
	im.tab.mu.Lock()
	copy(table, im.tab.l1)
	im.tab.mu.Unlock()
	b := make([]byte, im.geo.Clusters(entries*8)*cs)
	format.EncodeTable(b, table)
	if _, err := im.file.WriteAt(b, at*cs); err != nil {
		im.mu.Lock()
		im.gone = append(im.gone, run{at: at, n: im.geo.Clusters(entries * 8)}) // nothing names it
		im.mu.Unlock()
		return im.fatalUnlessNoSpace(fmt.Errorf("write L1 table: %w", err))
	}
	if err := im.syncUnless(mutant.On("l1-switched-unsynced")); err != nil {
		return err
	}
	steps.At("G1")
	if mutant.On("old-table-freed-before-switch") {
		_ = im.free([]run{old})
	}
	// From here on the table in memory is large enough for whoever sees the new
	// size. What was added since the copy is dirty.
	im.tab.mu.Lock()
	copy(table, im.tab.l1)
	im.tab.toCome.Add(int64(len(table) - len(im.tab.l1)))
	im.tab.l1 = table
	im.boundCacheLocked()
	im.tab.mu.Unlock()
	err := im.switchHeader(func(h *format.Header) {
		h.Size, h.L1Offset, h.L1Size = size, at*cs, uint32(entries)
	})
	if err != nil {
		return err
	}
	im.mu.Lock()
	if old.n > 0 && !mutant.On("old-table-freed-before-switch") {
		im.gone = append(im.gone, old)
	}
	im.mu.Unlock()
	return im.pushTablesLocked(false)
}

// reserveContiguous counts n neighbouring clusters at the image's end, durably,
// and returns the first. The caller holds allocating.
func (im *Image) reserveContiguous(n int64) (int64, error) {
	per := im.geo.RefcountsPerBlock()
	for {
		im.mu.Lock()
		at := im.alloc.end
		im.mu.Unlock()
		im.refs.mu.Lock()
		have, missing := im.refs.room, int64(-1)
		for b := at / per; b <= (at+n-1)/per && missing < 0; b++ {
			if !im.hasBlockLocked(b * per) {
				missing = b
			}
		}
		im.refs.mu.Unlock()
		switch {
		case missing >= have:
			if err := im.growRefcountTable(missing); err != nil {
				return 0, err
			}
		case missing >= 0:
			if err := im.growFile(run{at: at, n: 1}); err != nil {
				return 0, err
			}
			if err := im.addBlock(missing, at); err != nil {
				return 0, im.fatalUnlessNoSpace(err)
			}
		default:
			return at, im.countAtEnd(run{at: at, n: n})
		}
	}
}

func (im *Image) countAtEnd(r run) error {
	if err := im.growFile(r); err != nil {
		return err
	}
	if err := im.countRun(r, false); err != nil {
		return im.fatalUnlessNoSpace(err)
	}
	if err := im.syncUnless(false); err != nil {
		return err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.alloc.end = r.at + r.n
	return nil
}
