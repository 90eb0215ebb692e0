package qcow2

import (
	"context"
	"fmt"

	"tidemark/internal/block"
	"tidemark/internal/steps"
)

// unlinkChunk bounds how many clusters one hold of region clears: a discard of
// a huge range must not stop everything else (rule 12).
const unlinkChunk = 1024

// Discard drops the clusters that lie in n bytes at off as a whole; they read
// zero afterwards. It is a hint: what is left of the range at its ends, and
// clusters that cannot be dropped yet, keep their content.
func (im *Image) Discard(_ context.Context, off, n int64, f block.Flags) error {
	return im.mutate(off, n, f, "discard", func() (bool, error) {
		if im.opts.IgnoreDiscard {
			return false, nil
		}
		first, end := im.wholeClusters(off, n)
		changed, _, err := im.unlink(first, end, off+n, func(error) error { return nil })
		return changed, err
	})
}

// WriteZeroes makes n bytes at off read zero. With MayUnmap whole clusters are
// dropped; what has no cluster stays without one in either case.
func (im *Image) WriteZeroes(_ context.Context, off, n int64, f block.Flags) error {
	return im.mutate(off, n, f, "zero", func() (bool, error) {
		first, end := im.wholeClusters(off, n)
		if !f.Has(block.MayUnmap) {
			end = first
		}
		bits := im.geo.ClusterBits
		if f.Has(block.Fast) && !im.file.Info().ZeroCheap && (first<<bits > off || min(end<<bits, im.size()) < off+n) {
			return false, block.ErrNotFast
		}
		if first >= end {
			return im.zeroInPlace(off, n)
		}
		head, err := im.zeroInPlace(off, first<<bits-off)
		if err != nil {
			return head, err
		}
		changed, done, err := im.unlink(first, end, off+n, func(err error) error { return err })
		if tail := done << bits; err == nil && tail < off+n {
			var unwritten bool
			unwritten, err = im.zeroInPlace(tail, off+n-tail)
			changed = changed || unwritten
		}
		return head || changed, err
	})
}

// wholeClusters returns the clusters that lie in the range as a whole; the
// disk's last cluster may be incomplete. end < first is possible.
func (im *Image) wholeClusters(off, n int64) (first, end int64) {
	first = im.geo.Clusters(off)
	end = (off + n) >> im.geo.ClusterBits
	if off+n == im.size() {
		end = im.geo.Clusters(off + n)
	}
	return first, end
}

// zeroInPlace zeroes the bytes of the range that have a host cluster. That is a
// data write: no entry changes. It returns whether those that it found may not be
// in the file yet.
func (im *Image) zeroInPlace(off, n int64) (unwritten bool, err error) {
	for end := off + n; off < end; {
		done, some, err := im.zeroSome(off, end-off)
		unwritten = unwritten || some
		if err != nil {
			return unwritten, fmt.Errorf("zero at %d: %w", off, err)
		}
		off += done
	}
	return unwritten, nil
}

func (im *Image) zeroSome(off, n int64) (done int64, unwritten bool, err error) {
	im.region.RLock()
	defer im.region.RUnlock()
	im.mu.Lock()
	ext, err := im.extentLocked(off, n)
	if err != nil {
		im.mu.Unlock()
		return 0, false, err
	}
	gc := off >> im.geo.ClusterBits
	e, err := im.entryLocked(gc)
	kind := e.Kind(im.geo)
	act := decideZero(kind, e.Copied())
	if act == actInPlace {
		ext.Len = im.ownedLocked(gc, ext)
	}
	if s := im.l2.get(gc >> im.sliceBits()); s != nil {
		unwritten = s.dirty || s.writing
	}
	im.mu.Unlock()
	switch {
	case err != nil:
		return 0, false, err
	case act == actRefuse:
		return 0, false, refusal(kind, e.Copied())
	case act == actNothing:
		return ext.Len, unwritten, nil
	}
	return ext.Len, unwritten, im.file.WriteZeroes(ext.Host, ext.Len)
}

// unlink clears the entries of the guest clusters from first to end (D1), a
// chunk at a time, and returns whether there were any, or may be in the file
// still, and how far it came. The
// last cluster may reach beyond limit, the end of the range in bytes, where that
// is the disk's end; if the disk has grown meanwhile it is left to the caller. It
// asks refused what to make of a cluster that cannot be dropped: nil leaves it
// as it is.
func (im *Image) unlink(first, end, limit int64, refused func(error) error) (changed bool, done int64, err error) {
	for first < end {
		next, some, err := im.unlinkSome(first, end, limit, refused)
		changed = changed || some
		if err != nil {
			return changed, next, fmt.Errorf("unlink cluster at %d: %w", next<<im.geo.ClusterBits, err)
		}
		if next == first {
			break
		}
		first = next
	}
	return changed, first, nil
}

func (im *Image) unlinkSome(gc, end, limit int64, refused func(error) error) (next int64, changed bool, err error) {
	im.region.Lock()
	defer im.region.Unlock()
	im.mu.Lock()
	defer im.mu.Unlock()
	if end<<im.geo.ClusterBits > limit && im.header.Size != limit {
		end-- // somebody else's bytes may be in it now
	}
	for budget := unlinkChunk; gc < end && budget > 0; budget-- {
		s, err := im.l2SliceLocked(gc)
		if err != nil {
			return gc, changed, err
		}
		if s == nil {
			tableBits := im.geo.ClusterBits - 3
			gc = min((gc>>tableBits+1)<<tableBits, end)
			continue
		}
		i := gc & (1<<im.sliceBits() - 1)
		e := s.data[i]
		if e == badEntry {
			return gc, changed, im.badEntryLocked(gc)
		}
		changed = changed || s.dirty || s.writing // by somebody who may not have written it yet
		switch decideUnlink(e.Kind(im.geo), e.Copied()) {
		case actUnlink:
			s.data[i] = 0
			im.l2.markDirty(s)
			im.unlinkedLocked(e.Offset() >> im.geo.ClusterBits)
			changed = true
		case actRefuse:
			if err := refused(refusal(e.Kind(im.geo), e.Copied())); err != nil {
				return gc, changed, err
			}
		}
		gc++
	}
	if changed {
		steps.At("D1")
		im.freedLocked()
	}
	return gc, changed, nil
}
