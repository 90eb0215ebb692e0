package qcow2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"tidemark/internal/block"
	"tidemark/internal/lockorder"
	"tidemark/internal/mutant"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// WriteAt writes p at off. It waits for space as long as ctx allows. With NoWait
// it is done in the page cache and in memory, or not at all.
func (im *Image) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	im.warm(off)
	if f.Has(block.NoWait) {
		return im.writeNow(p, off, f)
	}
	if err := im.throttle(); err != nil {
		return err
	}
	if f.Has(block.FUA) {
		if done, err := im.writeThrough(p, off); done {
			return err
		}
	}
	return im.complete(im.write(ctx, p, off), f)
}

// writeThrough is a durable write without a commit: in place, and under entries
// that are on disk already (rule 4). It reports whether it was one.
func (im *Image) writeThrough(p []byte, off int64) (bool, error) {
	t, err := im.begin(true, "write", off, int64(len(p)))
	if err != nil {
		return true, err
	}
	defer im.grace.leave(t)
	if len(p) == 0 {
		return false, nil
	}
	s, err := im.slice(off >> im.geo.ClusterBits)
	if err != nil || s == nil {
		return false, nil
	}
	// The entries first: one that somebody changes after it was asked whether they
	// are durable is not seen.
	piece, err := im.locate(s, off, int64(len(p)))
	if err != nil || piece.n < int64(len(p)) || decideWrite(piece.situation) != actInPlace || !im.durableSlice(s) {
		return false, nil
	}
	if mutant.On("fua-in-place-unsynced") {
		_, err = im.file.WriteAt(p, piece.host)
	} else {
		_, err = im.writeDurably(p, piece.host)
	}
	if errors.Is(err, block.ErrNoSpace) {
		return false, nil
	}
	im.completed.Add(1)
	im.commitLater()
	return true, err
}

// complete counts a mutation that has ended, and makes it durable if that was
// asked for.
func (im *Image) complete(err error, f block.Flags) error {
	if serr := im.survive(); err == nil {
		err = serr
	}
	if !mutant.On("completed-counted-early") {
		im.completed.Add(1) // also after an error: part of it may be done
	}
	steps.At("W4")
	im.commitLater()
	if err == nil && f.Has(block.FUA) && !mutant.On("fua-ignored") {
		err = im.Flush(context.Background()) // the image may have been closed meanwhile
	}
	return err
}

// write writes p piece by piece. It is in progress while it does so, but not
// while it waits for space.
func (im *Image) write(ctx context.Context, p []byte, off int64) error {
	t, err := im.begin(true, "write", off, int64(len(p)))
	if err != nil {
		return err
	}
	defer func() { im.grace.leave(t) }()
	for len(p) > 0 {
		toCome := im.tab.toCome.Load()
		n, missing, err := im.writeSome(ctx, p, off)
		switch {
		case err != nil:
			err = fmt.Errorf("write at %d: %w", off, err)
		case missing != nothingMissing:
			im.grace.leave(t)
			err = im.waitFor(ctx, missing, toCome)
			var again error
			if t, again = im.begin(true, "write", off, int64(len(p))); again != nil {
				t = im.grace.enter(off) // for the deferred leave
			}
			err = cmp.Or(err, again)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// missing is what a request must wait for, with no lock held and not in
// progress, before it can go on.
type missing uint8

const (
	nothingMissing missing = iota
	missingCluster
	missingTable // and a cluster
	missingMark  // a table for marks, which takes no data
	missingHost  // space in the storage itself
)

// waitFor waits for what is missing; toCome is as for fillFor.
func (im *Image) waitFor(ctx context.Context, m missing, toCome int64) error {
	lockorder.Waits("space")
	if m == missingHost {
		return im.waitHost(ctx)
	}
	return im.waitReady(ctx, m, toCome)
}

// hostPause is how long a write waits before it tries again to write into
// storage that was full.
const hostPause = 250 * time.Millisecond

// waitHost holds a request whose bytes the storage had no space for, although the
// file is large enough (rule 14).
func (im *Image) waitHost(ctx context.Context) error {
	hold := block.HoldOf(ctx)
	if err := hold.Begin(); err != nil {
		return err
	}
	defer hold.End()
	select {
	case <-time.After(hostPause):
		return nil
	case <-ctx.Done():
		return block.SpaceError(ctx)
	case <-im.alive.Done():
		return im.usable(true)
	}
}

// missingSpace turns the error of a data write into what the request waits for.
func missingSpace(err error) (missing, error) {
	if errors.Is(err, block.ErrNoSpace) {
		return missingHost, nil
	}
	return nothingMissing, err
}

// writeSome writes the first piece of p and returns its length, or what is
// missing.
func (im *Image) writeSome(ctx context.Context, p []byte, off int64) (int64, missing, error) {
	piece, err := im.find(off, int64(len(p)))
	if err != nil {
		return 0, nothingMissing, err
	}
	switch decideWrite(piece.situation) {
	case actInPlace:
		_, err := im.file.WriteAt(p[:piece.n], piece.host)
		m, err := missingSpace(err)
		return done(piece.n, m, err)
	case actAllocate:
		return im.writeFresh(p, piece)
	case actCopy:
		return im.writeCopy(ctx, p, off)
	}
	return 0, nothingMissing, im.refusal(piece)
}

func done(n int64, m missing, err error) (int64, missing, error) {
	if m != nothingMissing || err != nil {
		n = 0
	}
	return n, m, err
}

// writeFresh writes p into a piece that has no content: publish, then write (W1
// to W3).
func (im *Image) writeFresh(p []byte, piece piece) (int64, missing, error) {
	ch, err := im.waitChange(im.geo.Clusters(piece.n) + 1)
	if err != nil {
		return 0, nothingMissing, err
	}
	host, n, m, err := im.allocate(piece.off, min(piece.n, int64(len(p))), &ch)
	if err == nil && m == nothingMissing {
		_, err = im.file.WriteAt(p[:n], host)
		m, err = missingSpace(err)
		steps.At("W3")
	}
	if ferr := im.finish(&ch); err == nil {
		err = ferr
	}
	return done(n, m, err)
}

// allocate publishes ready clusters for the guest bytes from off (W1, W2), as
// many as one run of host clusters and one slice allow, and returns where they
// are. n may be 0: somebody was faster.
func (im *Image) allocate(off, want int64, ch *change) (host, n int64, m missing, err error) {
	gc, cs := off>>im.geo.ClusterBits, im.geo.ClusterSize()
	s, err := im.ownSlice(gc, ch)
	if err != nil {
		return 0, 0, nothingMissing, err
	}
	if s == nil {
		return 0, 0, missingTable, nil
	}
	in := off & (cs - 1)
	_, i := im.sliceOf(gc)
	s.mu.Lock()
	defer s.mu.Unlock()
	clusters := ch.entries(min(im.geo.Clusters(in+want), int64(s.entries()-i)))
	k := int64(0)
	for k < clusters && im.plainLocked(s, gc+k) {
		k++
	}
	if s.dead || k == 0 {
		return 0, 0, nothingMissing, nil
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	at, k := im.alloc.take(k)
	if k == 0 {
		return 0, 0, missingCluster, nil
	}
	steps.At("W1")
	im.markDirtyLocked(s)
	for j := range k {
		im.unlinkPairLocked(s.loadLocked(i + int(j))) // kept by a zero mark
		p := im.newPair(at + j)
		ch.entry(gc+j, p)
		s.storeLocked(i+int(j), p)
	}
	im.prefetchLocked()
	steps.At("W2")
	return at*cs + in, min(want, k*cs-in), nothingMissing, nil
}

// plainLocked reports whether a cluster of zeroes may take the place of guest
// cluster gc, which is in s.
func (im *Image) plainLocked(s *slice, gc int64) bool {
	_, i := im.sliceOf(gc)
	p, err := im.inCluster(s.loadLocked(i), gc<<im.geo.ClusterBits)
	return err == nil && decideWrite(p.situation) == actAllocate
}

// newPair is the entry of a whole cluster of ours.
func (im *Image) newPair(c int64) format.L2Pair {
	p := format.L2Pair{Entry: format.NewL2Entry(c << im.geo.ClusterBits)}
	if im.geo.ExtendedL2 {
		p.Sub = format.AllAllocated
	}
	return p
}

// unlinkPairLocked notes that an entry which was p does not name its host
// clusters any more. Its caller holds mu.
func (im *Image) unlinkPairLocked(p format.L2Pair) {
	bits := im.geo.ClusterBits
	switch {
	case p.Entry == badEntry:
	case p.Entry.Kind(im.geo) == format.Compressed:
		off, n := p.Entry.CompressedRange(im.geo)
		first := off >> bits
		im.unlinkedLocked(first, (off+n-1)>>bits-first+1)
	case p.Entry.Offset() != 0:
		im.unlinkedLocked(p.Entry.Offset()>>bits, 1)
	}
}

// samePlace reports whether two entries have their bytes in the same host
// clusters.
func samePlace(a, b format.L2Pair) bool {
	const compressed = 1 << 62
	if (a.Entry|b.Entry)&compressed != 0 {
		return a.Entry == b.Entry
	}
	return a.Entry.Offset() == b.Entry.Offset()
}

// refusal says why a piece must not be used.
func (im *Image) refusal(p piece) error {
	return &format.CorruptError{What: fmt.Sprintf("L2 entry of guest cluster %d", p.off>>im.geo.ClusterBits), Off: -1,
		Want: "a kind that the specification defines", Got: p.kind.String()}
}
