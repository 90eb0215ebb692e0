package qcow2

import (
	"context"
	"sync"

	"tidemark/internal/mutant"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// Copying a cluster: its content is, or may be, somewhere else than in a host
// cluster of ours: in the backing file, in a cluster that a snapshot shares, or
// compressed. Then the new bytes are written before the entry says so:
//
//	X1  claim the guest cluster; take a ready cluster if it has none of ours
//	X2  read what must be kept around the guest's bytes, write all of it at once
//	X3  raise the barrier; publish the entry in memory, unlink what it named
//	X4  let go of the claim
//
// The barrier makes the next writing of tables sync first, so an entry on disk
// never names bytes that are not. With sub-clusters, if the host cluster is ours or
// there is none yet, only those are written that the guest's bytes touch and that
// hold no data: who writes to one that does, does so in place and without a claim.

// claims are the guest clusters that are being copied.
type claims struct {
	mu sync.Mutex // guards m
	m  map[int64]chan struct{}
}

// claim waits until nobody copies guest cluster gc, and does so then. It waits
// for I/O only.
func (c *claims) claim(gc int64) {
	for !c.try(gc) {
		c.mu.Lock()
		other := c.m[gc]
		c.mu.Unlock()
		if other != nil {
			<-other
		}
	}
}

// try claims guest cluster gc if nobody has.
func (c *claims) try(gc int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[int64]chan struct{}{}
	}
	if c.m[gc] != nil {
		return false
	}
	c.m[gc] = make(chan struct{})
	return true
}

func (c *claims) release(gc int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.m[gc])
	delete(c.m, gc)
}

// writeCopy writes the bytes of p that lie in the guest cluster at off, and
// returns how many. 0 of them without an error and nothing missing: the cluster
// has changed, look again.
func (im *Image) writeCopy(ctx context.Context, p []byte, off int64) (int64, missing, error) {
	gc, cs := off>>im.geo.ClusterBits, im.geo.ClusterSize()
	p = p[:min(int64(len(p)), cs-off&(cs-1))]
	ch, err := im.waitChange(1)
	if err != nil {
		return 0, nothingMissing, err
	}
	im.copies.claim(gc)
	defer im.copies.release(gc)
	n, m, err := im.copyClaimed(ctx, p, off, &ch)
	steps.At("X4")
	if ferr := im.finish(&ch); err == nil {
		err = ferr
	}
	return done(n, m, err)
}

// copyNow is writeCopy without waiting, for whole clusters or sub-clusters: nothing around them
// has to be read. It reports whether all of p was written.
func (im *Image) copyNow(p []byte, off int64) bool {
	s := im.sliceNow(off >> im.geo.ClusterBits)
	if im.ring.Load() == nil || s == nil || s.shared.Load() {
		return false
	}
	ch, ok := im.startChange(1)
	if !ok {
		return false
	}
	defer func() { _ = im.finish(&ch) }() // there is a ring: nothing is written
	gc := off >> im.geo.ClusterBits
	if !im.copies.try(gc) {
		return false
	}
	defer im.copies.release(gc)
	if !im.copiesAlone(s, off, int64(len(p))) {
		return false
	}
	n, m, err := im.copyClaimed(im.ctx, p, off, &ch)
	return n == int64(len(p)) && m == nothingMissing && err == nil
}

// copiesAlone reports whether n bytes at off, of a cluster in s, are all that a copy
// would write.
func (im *Image) copiesAlone(s *slice, off, n int64) bool {
	_, i := im.sliceOf(off >> im.geo.ClusterBits)
	old := s.load(i)
	now, err := im.inCluster(old, off)
	if err != nil || decideWrite(now.situation) != actCopy {
		return false
	}
	to, in := im.planCopy(old, off, n, now.n), off&(im.geo.ClusterSize()-1)
	return to.from == in && to.end == in+n
}

func (im *Image) copyClaimed(ctx context.Context, p []byte, off int64, ch *change) (int64, missing, error) {
	gc := off >> im.geo.ClusterBits
	s, err := im.ownSlice(gc, ch)
	if err != nil {
		return 0, nothingMissing, err
	}
	if s == nil {
		return 0, missingTable, nil
	}
	_, i := im.sliceOf(gc)
	old := s.load(i)
	now, err := im.inCluster(old, off)
	if err != nil {
		return 0, nothingMissing, im.badEntryError(s, gc)
	}
	if decideWrite(now.situation) != actCopy {
		return 0, nothingMissing, nil // somebody was faster
	}
	to := im.planCopy(old, off, int64(len(p)), now.n)
	p = p[:to.n]
	if to.fresh {
		im.mu.Lock()
		c, n := im.alloc.take(1)
		im.mu.Unlock()
		if n == 0 {
			return 0, missingCluster, nil
		}
		to.pair.Entry = format.NewL2Entry(c << im.geo.ClusterBits)
		im.prefetch()
	}
	steps.At("X1")
	m, err := im.writeMerged(ctx, p, off, old, to)
	if err == nil && m == nothingMissing {
		steps.At("X2")
		if im.publishCopy(s, gc, old, to.pair, ch) {
			steps.At("X3")
			return int64(len(p)), nothingMissing, nil
		}
	}
	if to.fresh {
		// It was written to, or may have been: it does not become ready again
		// (rule 1). Nothing names it, so the next commit may count it down.
		im.mu.Lock()
		im.unlinkedLocked(to.pair.Entry.Offset()>>im.geo.ClusterBits, 1)
		im.mu.Unlock()
	}
	return 0, m, err
}

// A copyPlan is what a copy writes: the bytes from..end of the cluster, n of them the
// guest's, and the entry that is published then. fresh: into a cluster that is to be
// taken.
type copyPlan struct {
	from, end, n int64
	pair         format.L2Pair
	fresh        bool
}

// planCopy decides what must be written so that n bytes at off can be. Sub-clusters
// behind the first like bytes may be ours already, where others write in place: the
// plan ends before them.
func (im *Image) planCopy(old format.L2Pair, off, n, like int64) copyPlan {
	cs := im.geo.ClusterSize()
	whole := copyPlan{from: 0, end: cs, n: n, pair: im.newPair(0), fresh: true}
	kind := old.Entry.Kind(im.geo)
	if !im.geo.ExtendedL2 || kind == format.Compressed || kind == format.Data && !old.Entry.Copied() {
		return whole
	}
	bits := im.geo.SubclusterBits()
	in := off & (cs - 1)
	n = min(n, like)
	first, last := in>>bits, (in+n-1)>>bits
	to := copyPlan{from: first << bits, end: (last + 1) << bits, n: n, pair: old, fresh: kind != format.Data}
	to.pair.Sub = old.Sub.WithAllocated(int(first), int(last-first+1))
	return to
}

// writeMerged is X2: the guest's bytes, and around them what the cluster holds
// now, in one write.
func (im *Image) writeMerged(ctx context.Context, p []byte, off int64, old format.L2Pair, to copyPlan) (missing, error) {
	cs := im.geo.ClusterSize()
	start := off &^ (cs - 1)
	from, end := start+to.from, start+to.end
	b := p
	if off != from || off+int64(len(p)) != end {
		buf := getBuffer(im.geo.ClusterBits)
		defer putBuffer(im.geo.ClusterBits, buf)
		b = (*buf)[:end-from]
		if err := im.readOld(ctx, b[:off-from], from, old); err != nil {
			return nothingMissing, err
		}
		behind := off + int64(len(p))
		if err := im.readOld(ctx, b[behind-from:], behind, old); err != nil {
			return nothingMissing, err
		}
		copy(b[off-from:], p)
	}
	host := to.pair.Entry.Offset() + to.from
	_, err := im.file.WriteAt(b, host)
	return missingSpace(err)
}

// readOld reads what the cluster with the entry old holds at off.
func (im *Image) readOld(ctx context.Context, p []byte, off int64, old format.L2Pair) error {
	for len(p) > 0 {
		piece, err := im.inCluster(old, off)
		if err != nil {
			return err
		}
		n := min(piece.n, int64(len(p)))
		if err := im.readPiece(ctx, p[:n], piece); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// publishCopy is X3, unless the entry is not what it was. The barrier is raised
// before anybody can see the entry.
func (im *Image) publishCopy(s *slice, gc int64, old, now format.L2Pair, ch *change) bool {
	_, i := im.sliceOf(gc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || s.shared.Load() || s.loadLocked(i) != old {
		return false
	}
	if !mutant.On("copy-without-barrier") {
		im.barrier.Store(true)
	}
	im.markDirtyLocked(s)
	ch.entry(gc, now)
	s.storeLocked(i, now)
	if !samePlace(old, now) {
		im.mu.Lock()
		defer im.mu.Unlock()
		im.unlinkPairLocked(old)
	}
	return true
}
