package qcow2

import (
	"context"
	"errors"
	"fmt"

	"tidemark/internal/block"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// WriteAt writes p at off. It waits for space as long as ctx allows.
func (im *Image) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return im.mutate(off, int64(len(p)), f, "write", func() (changed bool, err error) {
		for len(p) > 0 {
			n, unwritten, err := im.writeSome(ctx, p, off)
			changed = changed || unwritten
			if err != nil {
				return changed, fmt.Errorf("write at %d: %w", off, err)
			}
			p, off = p[n:], off+n
		}
		return changed, nil
	})
}

// mutate is what every mutation of the disk has in common: the checks before,
// writing the tables if do changed an entry, the count of completed mutations,
// and the durability after.
func (im *Image) mutate(off, n int64, f block.Flags, verb string, do func() (changed bool, err error)) error {
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
	changed, err := do()
	if changed {
		err = errors.Join(err, im.writeTables())
		if verb == "write" {
			steps.At("W4")
		} else {
			steps.At("D2")
		}
	}
	im.completed.Add(1) // also after an error: part of it may be done
	if err == nil && f.Has(block.FUA) {
		err = im.flush()
	}
	return err
}

// writeSome writes the first piece of p, that which lies in one run of host
// clusters, and returns its length and whether the entries that lead to it may
// not be in the file yet.
func (im *Image) writeSome(ctx context.Context, p []byte, off int64) (n int64, unwritten bool, err error) {
	for {
		im.region.RLock()
		im.mu.Lock()
		m, err := im.mapWriteLocked(off, int64(len(p)))
		im.mu.Unlock()
		if err == nil && m.act == actInPlace {
			_, err = im.file.WriteAt(p[:m.n], m.host)
			steps.At("W3")
			im.region.RUnlock()
			return m.n, m.unwritten, err
		}
		im.region.RUnlock()
		if err != nil {
			return 0, false, err
		}
		if err := im.waitReady(ctx, m.table); err != nil {
			return 0, false, err
		}
	}
}

// A mapping is where a piece of a write goes.
type mapping struct {
	act       action // actInPlace, or actAllocate: clusters are missing
	host      int64  // bytes in the file
	n         int64  // bytes
	unwritten bool   // entries were changed, by this request or another, and may not be in the file
	table     bool   // a cluster for an L2 table is missing too
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
		s := im.l2.get(gc >> im.sliceBits())
		return mapping{act: act, host: ext.Host, n: n, unwritten: s.dirty || s.writing}, nil
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
	for k < want && i+k < int64(len(s.data)) && decideWrite(s.data[i+k].Kind(im.geo), s.data[i+k].Copied()) == actAllocate {
		k++
	}
	at, k := im.alloc.take(k, false)
	steps.At("W1")
	for j := range k {
		if old := s.data[i+j].Offset(); old != 0 { // kept by a zero mark
			im.unlinkedLocked(old / cs)
		}
		s.data[i+j] = format.NewL2Entry((at + j) * cs)
	}
	im.l2.markDirty(s)
	steps.At("W2")
	im.prefetchLocked()
	return mapping{act: actInPlace, host: at*cs + inCluster, n: min(n, k*cs-inCluster), unwritten: true}, nil
}
