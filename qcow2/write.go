package qcow2

import (
	"context"
	"fmt"

	"tidemark/internal/block"
	"tidemark/qcow2/format"
)

// WriteAt writes p at off. It waits for space as long as ctx allows.
func (im *Image) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return im.mutate(off, int64(len(p)), f, "write", func() error {
		for len(p) > 0 {
			n, err := im.writeSome(ctx, p, off)
			if err != nil {
				return fmt.Errorf("write at %d: %w", off, err)
			}
			p, off = p[n:], off+n
		}
		return nil
	})
}

// mutate is what every mutation of the disk has in common: the checks before,
// the count of completed mutations and the durability after.
func (im *Image) mutate(off, n int64, f block.Flags, verb string, do func() error) error {
	if err := im.enter(true); err != nil {
		return err
	}
	defer im.requests.RUnlock()
	if err := block.CheckRange(off, n, im.size()); err != nil {
		return fmt.Errorf("%s %d bytes at %d: %w", verb, n, off, err)
	}
	if f.Has(block.NoWait) {
		return block.ErrWouldBlock
	}
	err := do()
	im.completed.Add(1) // also after an error: part of it may be done
	if err != nil {
		return err
	}
	if f.Has(block.FUA) || im.tooDirty() {
		return im.flush()
	}
	return nil
}

// tooDirty reports whether so many L2 slices are dirty that whoever dirties them
// has to help writing them: they cannot leave the cache.
func (im *Image) tooDirty() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return int64(im.l2.dirty)<<im.sliceBits() > im.l2.max/4
}

// writeSome writes the first piece of p, that which lies in one run of host
// clusters, and returns its length.
func (im *Image) writeSome(ctx context.Context, p []byte, off int64) (int64, error) {
	for {
		im.region.RLock()
		im.mu.Lock()
		m, err := im.mapWriteLocked(off, int64(len(p)))
		im.mu.Unlock()
		if err == nil && m.act == actInPlace {
			_, err = im.file.WriteAt(p[:m.n], m.host)
			im.region.RUnlock()
			return m.n, err
		}
		im.region.RUnlock()
		if err != nil {
			return 0, err
		}
		if m.act == actRewrite {
			n, err := im.rewrite(p[:m.n], off)
			if n > 0 || err != nil {
				return n, err
			}
			continue // somebody else was faster
		}
		if err := im.waitReady(ctx, m.table); err != nil {
			return 0, err
		}
	}
}

// A mapping is where a piece of a write goes.
type mapping struct {
	act   action // actInPlace, actRewrite, or actAllocate: clusters are missing
	host  int64  // bytes in the file
	n     int64  // bytes
	table bool   // a cluster for an L2 table is missing too
}

// mapWriteLocked finds, and allocates where there is none (W1, W2), the host
// clusters for the first piece of n bytes at off.
func (im *Image) mapWriteLocked(off, n int64) (mapping, error) {
	gc := off >> im.geo.ClusterBits
	e, err := im.entryLocked(gc)
	if err != nil {
		return mapping{}, err
	}
	kind := e.Kind(im.geo)
	inCluster := off & (im.geo.ClusterSize() - 1)
	switch act := decideWrite(kind, e.Copied()); act {
	case actInPlace:
		ext, err := im.extentLocked(off, n)
		if err != nil {
			return mapping{}, err
		}
		n = im.ownedLocked(gc, ext)
		return mapping{act: act, host: ext.Host, n: n}, nil
	case actRewrite:
		return mapping{act: act, n: min(n, im.geo.ClusterSize()-inCluster)}, nil
	case actAllocate:
		return im.allocateLocked(gc, inCluster, n)
	}
	return mapping{}, refusal(kind, e.Copied())
}

// ownedLocked returns how much of ext, which begins in guest cluster gc, lies in
// clusters that are owned.
func (im *Image) ownedLocked(gc int64, ext block.Extent) int64 {
	s := im.l2.get(gc >> im.sliceBits())
	last := (ext.End() - 1) >> im.geo.ClusterBits
	for c := gc; c <= last; c++ {
		if !s.data[c&(1<<im.sliceBits()-1)].Copied() {
			return max(c<<im.geo.ClusterBits-ext.Off, 0)
		}
	}
	return ext.Len
}

// allocateLocked publishes ready clusters for guest cluster gc and for those
// behind it in the same slice that the n bytes from inCluster touch and that
// have none either, as far as one run of host clusters reaches.
func (im *Image) allocateLocked(gc, inCluster, n int64) (mapping, error) {
	s, err := im.l2SliceLocked(gc)
	if err != nil {
		return mapping{}, err
	}
	if missing := (s == nil); !im.alloc.has(missing) {
		return mapping{act: actAllocate, table: missing}, nil
	}
	if s == nil {
		c, _ := im.alloc.take(1, true)
		im.addTableLocked(gc, c)
		s = im.l2.get(gc >> im.sliceBits())
	}
	cs := im.geo.ClusterSize()
	want := im.geo.Clusters(inCluster + n)
	i := gc & (1<<im.sliceBits() - 1)
	k := int64(1)
	for k < want && i+k < int64(len(s.data)) && decideWrite(s.data[i+k].Kind(im.geo), false) == actAllocate {
		k++
	}
	at, k := im.alloc.take(k, false)
	for j := range k {
		s.data[i+j] = format.NewL2Entry((at + j) * cs)
	}
	im.l2.markDirty(s)
	im.prefetchLocked()
	return mapping{act: actInPlace, host: at*cs + inCluster, n: min(n, k*cs-inCluster)}, nil
}

// rewrite writes p into a cluster that reads zero but has a host cluster (Z1,
// Z2). It returns 0 if that has changed meanwhile.
func (im *Image) rewrite(p []byte, off int64) (int64, error) {
	gc := off >> im.geo.ClusterBits
	inCluster := off & (im.geo.ClusterSize() - 1)
	im.region.Lock()
	defer im.region.Unlock()
	im.mu.Lock()
	e, err := im.entryLocked(gc)
	im.mu.Unlock()
	if err != nil || decideWrite(e.Kind(im.geo), e.Copied()) != actRewrite {
		return 0, err
	}
	if err := im.file.WriteZeroes(e.Offset(), im.geo.ClusterSize()); err != nil {
		return 0, err
	}
	if _, err := im.file.WriteAt(p, e.Offset()+inCluster); err != nil {
		return 0, err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.barrier = true
	return int64(len(p)), im.setEntryLocked(gc, format.NewL2Entry(e.Offset()))
}
