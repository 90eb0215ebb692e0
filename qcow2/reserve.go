package qcow2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark/internal/block"
	"tidemark/internal/steps"
)

// scanSlices bounds how many slices of reference counts one reservation looks
// at for free clusters while the file could still be used at its end.
const scanSlices = 64

// reserve makes clusters ready (R1 to R6).
func (im *Image) reserve(f *fill) error {
	if im.nearBound() {
		// Leaks are settled before the image becomes larger than it must.
		// Settling needs allocating, so this waits without it.
		select {
		case <-im.settled:
		case <-im.ctx.Done():
			return im.ctx.Err()
		}
	}
	if err := im.allocating.acquire(im.ctx); err != nil {
		return err
	}
	defer im.allocating.release()
	for retried := false; ; retried = true {
		if err := im.usable(true); err != nil {
			return err
		}
		n, grows, seen := im.planBatch()
		if !f.fresh || retried {
			runs, err := im.findFree(n, grows && retried)
			if err != nil {
				return err
			}
			if len(runs) > 0 {
				return im.recycle(runs)
			}
			if grows && im.hasGone() {
				// What was discarded becomes free with a commit.
				if err := im.commit(); err != nil {
					return err
				}
				continue
			}
		}
		err := im.reserveAtEnd(f, n, seen, retried || f.ahead)
		if !errors.Is(err, errRetry) {
			return err
		}
	}
}

func (im *Image) hasGone() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return len(im.gone) > 0
}

// nearBound reports whether the next reservation at the image's end may pass
// what the image needs when all of it is allocated.
func (im *Image) nearBound() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.alloc.end+im.alloc.batch > im.alloc.bound
}

// planBatch decides how many clusters to reserve, and whether that many make
// the file larger; frees is the allocator's count of this moment. The batch
// doubles while it is used up within half a second and halves when it lasts.
func (im *Image) planBatch() (n int64, grows bool, frees uint64) {
	im.mu.Lock()
	defer im.mu.Unlock()
	a := &im.alloc
	cs := im.geo.ClusterSize()
	least, most := max(2, min(minReserveBytes, im.opts.ReserveBytes)/cs), max(2, im.opts.ReserveBytes/cs)
	switch idle := time.Since(a.last); {
	case a.last.IsZero():
	case idle < 500*time.Millisecond:
		a.batch = min(a.batch*2, most)
	case idle > 5*time.Second:
		a.batch = max(a.batch/2, least)
	}
	n = min(a.batch, max(a.bound-a.end, 2))
	return n, (a.end+n)*cs > im.file.Size(), a.frees
}

// findFree looks for up to want clusters below the image's end whose count is
// 0: in a few slices of counts or, where the file would have to wait for space,
// everywhere.
func (im *Image) findFree(want int64, everywhere bool) ([]run, error) {
	for {
		runs, ended, err := im.findFreeNear(want)
		if len(runs) > 0 || ended || err != nil || !everywhere || im.ctx.Err() != nil {
			return runs, err
		}
	}
}

// findFreeNear looks in the next scanSlices slices, and returns whether that was
// all.
func (im *Image) findFreeNear(want int64) (runs []run, ended bool, err error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	a := &im.alloc
	perSlice := int64(1) << im.refSliceBits()
	for range scanSlices {
		sliceEnd := min(a.end, (a.cursor/perSlice+1)*perSlice)
		for ; a.cursor < sliceEnd && want > 0; a.cursor++ {
			c := a.cursor
			count, err := im.refcountLocked(c)
			if err != nil {
				return nil, false, err
			}
			if _, meta := slices.BinarySearch(im.refs.metadata, c); count != 0 || meta || !im.hasBlockLocked(c) {
				continue
			}
			runs = appendRun(runs, run{at: c, n: 1})
			want--
		}
	}
	return runs, a.cursor >= a.end, nil
}

// appendRun appends r to runs, to the last one where they are neighbours.
func appendRun(runs []run, r run) []run {
	if i := len(runs) - 1; i >= 0 && runs[i].at+runs[i].n == r.at && runs[i].fresh == r.fresh {
		runs[i].n += r.n
		return runs
	}
	return append(runs, r)
}

// recycle makes free clusters below the image's end ready.
func (im *Image) recycle(runs []run) error {
	steps.At("R1")
	if err := im.makeReady(runs, false); err != nil {
		im.mu.Lock()
		im.alloc.cursor = min(im.alloc.cursor, runs[0].at)
		im.mu.Unlock()
		return err
	}
	return nil
}

// makeReady is R4 to R6. zero says that the clusters read zero already.
func (im *Image) makeReady(runs []run, zero bool) error {
	// The list goes first, so that the death of the process leaves no count
	// that is not on it. After a power cut there may be some: those are leaks.
	if err := im.listReserved(runs); err != nil {
		return im.fatalUnlessNoSpace(err)
	}
	for _, r := range runs {
		if zero {
			break
		}
		if err := im.zeroRun(r); err != nil {
			return err
		}
	}
	steps.At("R4")
	for i, r := range runs {
		if err := im.countRun(r); err != nil {
			return im.fatalUnlessNoSpace(im.uncount(runs[:i], err))
		}
	}
	if err := im.sync("reserve clusters"); err != nil {
		return err
	}
	steps.At("R5")
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, r := range runs {
		im.alloc.ready = appendRun(im.alloc.ready, r)
	}
	steps.At("R6")
	return nil
}

// uncount takes the counts of runs back after err, which it returns.
func (im *Image) uncount(runs []run, err error) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, r := range runs {
		if undo := im.setRefcountsLocked(r, 0); undo != nil {
			return im.poison(undo)
		}
	}
	return err
}

func (im *Image) zeroRun(r run) error {
	cs := im.geo.ClusterSize()
	if err := im.file.WriteZeroes(r.at*cs, r.n*cs); err != nil {
		return im.fatalUnlessNoSpace(fmt.Errorf("zero reserved clusters: %w", err))
	}
	return nil
}

// fatalUnlessNoSpace poisons the image unless err is nil or says that there is no
// space, after which everything can be tried again.
func (im *Image) fatalUnlessNoSpace(err error) error {
	if err == nil || errors.Is(err, block.ErrNoSpace) {
		return err
	}
	return im.poison(err)
}

// reserveAtEnd reserves up to n clusters behind the image's end, all of them
// counted by one refcount block, which it adds where it is missing. It gives up
// with errRetry if clusters have become free since frees was read and waiting
// for a larger file may be in vain. Without patient it does not wait at all, but
// gives up likewise, so that free clusters are looked for everywhere first.
func (im *Image) reserveAtEnd(f *fill, n int64, frees uint64, patient bool) error {
	per, cs := im.geo.RefcountsPerBlock(), im.geo.ClusterSize()
	im.mu.Lock()
	at := im.alloc.end
	b := at / per
	full := b >= int64(len(im.refs.table))
	blockN := int64(1)
	if im.hasBlockLocked(at) {
		blockN = 0
	}
	if im.alloc.frees != frees && (at+blockN+n)*cs > im.file.Size() {
		im.mu.Unlock()
		return errRetry
	}
	ctx, cancel := im.growContextLocked(f, patient)
	defer cancel(nil)
	im.mu.Unlock()

	if full {
		err := im.growRefcountTable(ctx, b)
		im.waited(f)
		if !patient && errors.Is(err, block.ErrNoSpace) {
			return errRetry
		}
		return cmp.Or(err, errRetry) // everything has moved: choose again
	}
	n = min(n, (b+1)*per-at-blockN)
	steps.At("R1")
	size, err := im.file.Grow(ctx, (at+blockN+1)*cs, (at+blockN+n)*cs)
	im.waited(f)
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errRetry) || errors.Is(cause, errNobody) {
			return cause
		}
		if !patient && errors.Is(err, block.ErrNoSpace) {
			return errRetry
		}
		return err
	}
	steps.At("R2")
	n = min(n, size/cs-at-blockN)
	zero := im.claimZero(run{at: at, n: blockN + n})
	if blockN > 0 {
		if !zero {
			if err := im.zeroRun(run{at: at, n: 1}); err != nil {
				return err
			}
		}
		if err := im.addBlock(b, at); err != nil {
			return im.fatalUnlessNoSpace(err)
		}
		steps.At("R3")
	}
	r := run{at: at + blockN, n: n, fresh: true}
	if err := im.makeReady([]run{r}, zero); err != nil {
		return err
	}
	im.mu.Lock()
	im.alloc.end = r.at + r.n
	im.mu.Unlock()
	return nil
}

// growContextLocked is the context for f's wait for a larger file. Ahead of use
// there is none: a deadline that has passed already asks for what is there.
func (im *Image) growContextLocked(f *fill, patient bool) (context.Context, context.CancelCauseFunc) {
	ctx := im.ctx
	release := func() {}
	if f.ahead || !patient {
		ctx, release = context.WithDeadline(ctx, time.Now())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if f.waiters == 0 && !f.ahead {
		cancel(errNobody)
	}
	f.stop, f.waits = cancel, time.Now()
	return ctx, func(cause error) { cancel(cause); release() }
}

// waited notes that f waits for a larger file no more.
func (im *Image) waited(f *fill) {
	im.mu.Lock()
	defer im.mu.Unlock()
	f.stop, f.waits = nil, time.Time{}
}

// claimZero reports whether r reads zero, because nobody has written behind the
// file's end at open yet, and notes that this is no longer so.
func (im *Image) claimZero(r run) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	zero := r.at >= im.alloc.zeroFrom
	im.alloc.zeroFrom = max(im.alloc.zeroFrom, r.at+r.n)
	return zero
}

// growFile makes the file reach to the end of r and zeroes r: metadata that is
// written next to it must not stand beside somebody's old bytes.
func (im *Image) growFile(ctx context.Context, r run) error {
	cs := im.geo.ClusterSize()
	need := (r.at + r.n) * cs
	if _, err := im.file.Grow(ctx, need, need); err != nil {
		return err
	}
	if im.claimZero(r) {
		return nil
	}
	return im.zeroRun(r)
}

// giveBack counts the ready clusters 0 again and shrinks the file to the
// image's end. The image is closed: nobody else touches it.
func (im *Image) giveBack() error {
	im.mu.Lock()
	ready := im.alloc.ready
	im.alloc.ready = nil
	var err error
	for _, r := range ready {
		err = errors.Join(err, im.setRefcountsLocked(r, 0))
	}
	for c := im.alloc.end - 1; err == nil && c > 0; c-- {
		var count uint64
		if count, err = im.refcountLocked(c); count != 0 {
			break
		}
		im.alloc.end = c
	}
	end := max(im.alloc.end<<im.geo.ClusterBits, im.alloc.openSize)
	im.mu.Unlock()
	if err == nil {
		err = im.writeRefcounts()
	}
	if err == nil && im.listAt != 0 {
		im.listed = nil
		err = im.listReserved(nil) // what is not settled yet stays on it
	}
	if err == nil {
		err = im.sync("give reserved clusters back")
	}
	if err != nil {
		return im.poison(err)
	}
	if err := im.file.Shrink(context.Background(), im.file.Size(), end); err != nil && !errors.Is(err, block.ErrUnsupported) {
		return fmt.Errorf("shrink file to the image's end: %w", err)
	}
	return nil
}
