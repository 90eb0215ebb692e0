package qcow2

import (
	"context"
	"errors"
	"fmt"

	"tidemark/internal/block"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// eraseChunk bounds how many clusters one step of an erasure looks at: a discard of
// a huge range must not keep a slice, or the ring, from others (rule 12).
const eraseChunk = 1024

// Discard drops the clusters that lie in n bytes at off as a whole; they read
// zero afterwards. It is a hint: what is left of the range at its ends, and
// clusters that cannot be dropped, keep their content.
func (im *Image) Discard(ctx context.Context, off, n int64, f block.Flags) error {
	if f.Has(block.NoWait) {
		return block.ErrWouldBlock
	}
	if err := im.throttle(); err != nil {
		return err
	}
	defer steps.At("D2")
	return im.complete(im.discardRange(ctx, off, n), f)
}

func (im *Image) discardRange(ctx context.Context, off, n int64) error {
	t, err := im.begin(true, "discard", off, n)
	if err != nil {
		return err
	}
	im.grace.leave(t)
	if im.opts.IgnoreDiscard {
		return nil
	}
	first, end := im.wholeClusters(off, n)
	_, err = im.erase(ctx, first, end, off+n, erasure{})
	if errors.Is(err, block.ErrNoSpace) {
		return nil // a table could not be copied for it; a hint need not be taken
	}
	return err
}

// WriteZeroes makes n bytes at off read zero. With MayUnmap whole clusters are
// dropped; what has no cluster stays without one in either case.
func (im *Image) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	if f.Has(block.NoWait) {
		return block.ErrWouldBlock
	}
	if err := im.throttle(); err != nil {
		return err
	}
	return im.complete(im.zeroRange(ctx, off, n, f), f)
}

func (im *Image) zeroRange(ctx context.Context, off, n int64, f block.Flags) error {
	t, err := im.begin(true, "zero", off, n)
	if err != nil {
		return err
	}
	im.grace.leave(t)
	first, end := im.wholeClusters(off, n)
	bits := im.geo.ClusterBits
	if f.Has(block.Fast) && !im.zeroIsFast(off, n, first, end, f.Has(block.MayUnmap)) {
		return block.ErrNotFast
	}
	if first >= end {
		return im.zeroBytes(ctx, off, n)
	}
	if err := im.zeroBytes(ctx, off, first<<bits-off); err != nil {
		return err
	}
	done, err := im.erase(ctx, first, end, off+n, erasure{exact: true, keep: !f.Has(block.MayUnmap)})
	if tail := done << bits; err == nil && tail < off+n {
		err = im.zeroBytes(ctx, tail, off+n-tail)
	}
	return err
}

// zeroIsFast reports whether zeroing is known to cost no more than marks in
// tables and zeroing of host bytes that is cheap.
func (im *Image) zeroIsFast(off, n, first, end int64, unmap bool) bool {
	if im.backingSize() > 0 && im.geo.Version < 3 {
		return false
	}
	if im.file.Info().ZeroCheap {
		return im.backingSize() == 0
	}
	bits := im.geo.ClusterBits
	return unmap && first<<bits <= off && min(end<<bits, im.size()) >= off+n
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

// zeroBytes zeroes a range that need not be of whole clusters. Where there is
// nothing to see, nothing changes.
func (im *Image) zeroBytes(ctx context.Context, off, n int64) error {
	for end := off + n; off < end; {
		did, err := im.zeroSome(ctx, off, end-off)
		if err != nil {
			return fmt.Errorf("zero at %d: %w", off, err)
		}
		off += did
	}
	return nil
}

var zeroes [64 << 10]byte

func (im *Image) zeroSome(ctx context.Context, off, n int64) (int64, error) {
	t, err := im.begin(true, "zero", off, n)
	if err != nil {
		return 0, err
	}
	p, err := im.find(off, n)
	act := decideZero(p.situation, p.backed)
	if err == nil && act == actInPlace {
		err = im.file.WriteZeroes(p.host, p.n)
	}
	im.grace.leave(t)
	switch {
	case errors.Is(err, block.ErrNoSpace):
		return 0, im.waitHost(ctx)
	case err != nil:
		return 0, err
	case act == actRefuse:
		return 0, im.refusal(p)
	case act == actWrite:
		p.n = min(p.n, int64(len(zeroes)))
		return p.n, im.write(ctx, zeroes[:p.n], off)
	}
	return p.n, nil
}

// erase makes the guest clusters from first to end read zero (D1), some at a
// time, and returns how far it came. The last cluster may reach beyond limit, the
// end of the range in bytes, where that is the disk's end; if the disk has grown
// meanwhile it is left to the caller.
func (im *Image) erase(ctx context.Context, first, end, limit int64, e erasure) (done int64, err error) {
	for first < end {
		toCome := im.tab.toCome.Load()
		next, m, err := im.eraseSome(ctx, first, end, limit, e)
		if err == nil && m != nothingMissing {
			if !e.exact {
				return first, block.ErrNoSpace
			}
			err = im.waitFor(ctx, m, toCome)
		}
		if err != nil {
			return next, fmt.Errorf("erase cluster at %d: %w", next<<im.geo.ClusterBits, err)
		}
		if end<<im.geo.ClusterBits > limit && im.size() != limit && next == end-1 {
			return next, nil
		}
		first = next
	}
	return first, nil
}

func (im *Image) eraseSome(ctx context.Context, gc, end, limit int64, e erasure) (next int64, m missing, err error) {
	ch, err := im.waitChange(eraseChunk)
	if err != nil {
		return gc, nothingMissing, err
	}
	ch.frees = true
	t, err := im.begin(true, "erase", gc<<im.geo.ClusterBits, 0)
	if err != nil {
		_ = im.finish(&ch) // nothing was changed
		return gc, nothingMissing, err
	}
	if end<<im.geo.ClusterBits > limit && im.size() != limit {
		end-- // somebody else's bytes may be in it now
	}
	next, act, p, m, err := im.eraseInSlice(gc, end, e, &ch)
	if err == nil && act == actInPlace {
		if err = im.file.WriteZeroes(p.host, im.geo.ClusterSize()); err == nil {
			next++
		}
	}
	im.grace.leave(t)
	if ferr := im.finish(&ch); err == nil {
		err = ferr
	}
	switch {
	case errors.Is(err, block.ErrNoSpace):
		return next, missingHost, nil
	case err == nil && act == actWrite:
		start := next << im.geo.ClusterBits
		n := min(im.geo.ClusterSize(), im.size()-start)
		return next + 1, nothingMissing, im.zeroByWriting(ctx, start, n)
	}
	return next, m, err
}

// zeroByWriting writes zeroes over a cluster that the format has no mark for.
func (im *Image) zeroByWriting(ctx context.Context, off, n int64) error {
	for n > 0 {
		k := min(n, int64(len(zeroes)))
		if err := im.write(ctx, zeroes[:k], off); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// eraseInSlice erases clusters from gc on, as many as lie in one slice and need
// no more than a change of their entries. If it stops for one that does, act says
// for what: actInPlace, with the place in p, or actWrite.
func (im *Image) eraseInSlice(gc, end int64, e erasure, ch *change) (next int64, act action, p piece, m missing, err error) {
	s, err := im.slice(gc)
	if err != nil {
		return gc, 0, p, nothingMissing, err
	}
	if s == nil && (!im.backedAt(gc<<im.geo.ClusterBits) || !e.exact) {
		per := int64(im.geo.L2Entries())
		return min((gc/per+1)*per, end), 0, p, nothingMissing, nil
	}
	if s, err = im.ownSlice(gc, ch); err != nil || s == nil {
		return gc, 0, p, missingMark, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return gc, 0, p, nothingMissing, nil
	}
	changed := false
	defer func() {
		if changed {
			im.mu.Lock()
			im.freedLocked()
			im.mu.Unlock()
			steps.At("D1")
		}
	}()
	_, i := im.sliceOf(gc)
	end = min(end, gc+ch.entries(int64(s.entries()-i)))
	for ; gc < end; gc++ {
		_, i := im.sliceOf(gc)
		pair := s.loadLocked(i)
		if pair.Entry == badEntry {
			return gc, 0, p, nothingMissing, im.badEntryLocked(s, gc)
		}
		backed := im.backedAt(gc << im.geo.ClusterBits)
		switch act := im.eraseAction(pair, backed, e); act {
		case actUnlink:
			im.eraseEntry(s, gc, pair, backed, ch)
			changed = true
		case actInPlace:
			p.host = pair.Entry.Offset()
			return gc, act, p, nothingMissing, nil
		case actWrite:
			return gc, act, p, nothingMissing, nil
		}
	}
	return gc, 0, p, nothingMissing, nil
}

// eraseAction applies decideErase to an entry. With sub-clusters a cluster is
// kept only if all of it is data of its own.
func (im *Image) eraseAction(pair format.L2Pair, backed bool, e erasure) action {
	kind := pair.Entry.Kind(im.geo)
	if im.geo.ExtendedL2 {
		switch {
		case kind == format.Unallocated && pair.Sub == format.AllZero:
			kind = format.ZeroPlain
		case kind == format.Unallocated && pair.Sub != 0 && !backed:
			return actNothing
		case kind == format.Data && pair.Sub != format.AllAllocated:
			e.keep = false
		}
	}
	return decideErase(kind, pair.Entry.Copied(), backed, im.geo.Version >= 3, e)
}

// eraseEntry drops what an entry names. Where there is content behind an empty
// entry, a zero mark hides it.
func (im *Image) eraseEntry(s *slice, gc int64, old format.L2Pair, backed bool, ch *change) {
	var now format.L2Pair
	switch {
	case !backed:
	case im.geo.ExtendedL2:
		now.Sub = format.AllZero
	default:
		now.Entry = format.ZeroEntry
	}
	_, i := im.sliceOf(gc)
	im.markDirtyLocked(s)
	ch.entry(gc, now)
	s.storeLocked(i, now)
	im.mu.Lock()
	defer im.mu.Unlock()
	im.unlinkPairLocked(old)
}
