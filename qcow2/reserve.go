package qcow2

import (
	"cmp"
	"context"
	"errors"
	"time"

	"tidemark/internal/block"
	"tidemark/internal/lockorder"
	"tidemark/internal/mutant"
	"tidemark/internal/steps"
)

// reserve makes clusters ready (R1 to R6). Where the file must become larger for
// that, and cannot at once, it waits with nothing held, and then looks at everything
// again: somebody else may have taken what was there, or given some back.
func (im *Image) reserve(f *fill) error {
	if im.nearBound() {
		// Leaks are settled before the image becomes larger than it must.
		select {
		case <-im.settled:
		case <-im.ctx.Done():
			return im.ctx.Err()
		}
	}
	for thorough := false; ; thorough = true {
		err := im.reserveNow(f, thorough)
		var short *shortError
		switch {
		case errors.Is(err, errRetry):
		case !errors.As(err, &short) || f.ahead:
			return err
		case thorough:
			if err := im.waitLarger(f, short); err != nil {
				return err
			}
		}
	}
}

// reserveNow reserves what can be had without waiting for space, or returns a
// [shortError]; errRetry: everything has moved. thorough: free clusters are looked
// for everywhere before the file has to become larger.
func (im *Image) reserveNow(f *fill, thorough bool) error {
	if err := im.allocating.acquire(im.ctx); err != nil {
		return err
	}
	defer im.allocating.release()
	if err := im.startLog(); err != nil {
		return err
	}
	if err := im.usable(true); err != nil {
		return err
	}
	if err := im.fillL1(); err != nil {
		return err
	}
	n, full, tight, seen := im.planBatch(f.table)
	if !f.table || full || tight && thorough {
		gone := im.hasGone() // before: afterwards the reaper may have freed it, unseen
		runs, tables, err := im.findFor(f, n, tight && thorough)
		if err == nil && len(runs) == 0 && tight && gone {
			if err = im.freeGone(); err == nil {
				runs, tables, err = im.findFor(f, n, tight && thorough)
			}
		}
		if err != nil {
			return err
		}
		if len(runs) > 0 {
			steps.At("R1")
			return im.recycle(runs, tables)
		}
	}
	if full && f.ahead {
		return nil // nothing is taken ahead of use from what tables will need
	}
	err := im.reserveAtEnd(f, n)
	if short := new(shortError); errors.As(err, &short) {
		short.frees = seen
	}
	return err
}

// findFor looks for up to n free clusters for f, and reports whether they are to become
// tables. Where none may, who waits for f and needs none has what there is: he need not
// wait until the file is larger.
func (im *Image) findFor(f *fill, n int64, everywhere bool) (runs []run, tables bool, err error) {
	if f.table {
		runs, err = im.findFreeTables(im.tableShare(n, true))
		if err != nil || len(runs) > 0 || !im.dataWaits(f) {
			return runs, true, err
		}
	}
	runs, err = im.findFree(n, everywhere)
	return runs, false, err
}

// dataWaits reports whether somebody waits for f who needs no table.
func (im *Image) dataWaits(f *fill) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return f.data
}

// A shortError says how long the file must be for what was to be done. frees is
// the allocator's count of when free clusters were looked for in vain.
type shortError struct {
	need, want int64 // bytes
	frees      uint64
	err        error
}

func (e *shortError) Error() string { return e.err.Error() }
func (e *shortError) Unwrap() error { return e.err }

// growAtOnce makes the file at least need bytes long, and up to want if that can be
// had, without waiting. If it cannot, the error is a shortError.
func (im *Image) growAtOnce(need, want int64) (size int64, err error) {
	ctx, cancel := context.WithDeadline(im.ctx, time.Now())
	defer cancel()
	size, err = im.file.Grow(ctx, need, want)
	if errors.Is(err, block.ErrNoSpace) {
		err = &shortError{need: need, want: want, err: err}
	}
	return size, err
}

// waitLarger waits until the file is long enough, as long as a request waits for f.
// It returns early, without an error, if clusters become free.
func (im *Image) waitLarger(f *fill, short *shortError) error {
	lockorder.Waits("a larger file")
	im.mu.Lock()
	if im.alloc.frees != short.frees {
		im.mu.Unlock()
		return nil
	}
	ctx, cancel := context.WithCancelCause(im.ctx)
	defer cancel(nil)
	if f.waiters == 0 {
		cancel(errNobody)
	}
	f.stop = cancel
	if f.waits.IsZero() {
		f.waits = time.Now()
	}
	im.mu.Unlock()
	_, err := im.file.Grow(ctx, short.need, short.want)
	im.mu.Lock()
	f.stop = nil
	if err == nil {
		f.waits = time.Time{}
	}
	im.mu.Unlock()
	switch cause := context.Cause(ctx); {
	case err == nil || errors.Is(cause, errRetry):
		return nil
	case errors.Is(cause, errNobody):
		return cause
	}
	return err
}

// freeGone makes what was discarded free: with a commit, and when the requests that
// may know it have ended.
func (im *Image) freeGone() error {
	if mutant.On("unlinked-reused-at-once") {
		im.mu.Lock()
		gone := im.gone
		im.gone = nil
		im.mu.Unlock()
		im.part(gone)
	} else if err := im.commit(); err != nil {
		return err
	}
	return im.waitReaped()
}

func (im *Image) hasGone() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return len(im.gone) > 0 || im.going || len(im.parted) > 0
}

// nearBound reports whether the next reservation at the image's end may pass
// what the image needs when all of it is allocated.
func (im *Image) nearBound() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.alloc.end+im.alloc.batch > im.alloc.bound
}

// planBatch decides how many clusters to reserve, and whether that many make
// the file larger or the image larger than it ever needs to be: then free clusters
// are looked for everywhere first. frees is the allocator's count of this moment.
// The batch doubles while it is used up within half a second and halves when it
// lasts. What is left below the bound for L2 tables that are still to come is not for
// data: not every cluster may become a table (rule 17).
func (im *Image) planBatch(tables bool) (n int64, full, tight bool, frees uint64) {
	toCome := im.tab.toCome.Load()
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
	bound := a.bound - max(toCome-clusters(a.tables), 0) - im.blocksToComeLocked()
	n = min(a.batch, max(bound-a.end, 1)) // 1: a table, or data that finds no other place
	if tables {
		bound = a.bound
	}
	full = a.end+n > bound
	return n, full, full || (a.end+n)*cs > im.file.Size(), a.frees
}

// blocksToComeLocked is how many refcount blocks there are to be up to the bound. Its
// caller holds mu.
func (im *Image) blocksToComeLocked() (n int64) {
	if im.alloc.end >= im.alloc.bound {
		return 0
	}
	im.refs.mu.Lock()
	defer im.refs.mu.Unlock()
	per, have := im.geo.RefcountsPerBlock(), int64(len(im.refs.table))
	first, behind := im.alloc.end/per, (im.alloc.bound-1)/per+1
	n = behind - first
	for _, e := range im.refs.table[min(first, have):min(behind, have)] {
		if e != 0 {
			n--
		}
	}
	return n
}

// reserveAtEnd reserves up to n clusters behind the image's end, all of them
// counted by one refcount block, which it adds where it is missing.
func (im *Image) reserveAtEnd(f *fill, n int64) error {
	per, cs := im.geo.RefcountsPerBlock(), im.geo.ClusterSize()
	im.mu.Lock()
	at := im.alloc.end
	im.mu.Unlock()
	b := at / per
	blockN := int64(1)
	im.refs.mu.Lock()
	full := b >= im.refs.room
	if im.hasBlockLocked(at) {
		blockN = 0
	}
	im.refs.mu.Unlock()
	if full {
		return cmp.Or(im.growRefcountTable(b), errRetry) // choose again
	}
	n = min(n, (b+1)*per-at-blockN)
	steps.At("R1")
	size, err := im.growAtOnce((at+blockN+1)*cs, (at+blockN+n)*cs)
	if err != nil {
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
	}
	return im.makeReady([]run{{at: at + blockN, n: n}}, im.tableShare(n, f.table), zero)
}

// tableShare is how many of the n clusters of a reservation are set aside for L2
// tables: one and the spare ones, but where writes are scattered, so that tables run
// out, twice as many as the last time.
func (im *Image) tableShare(n int64, wanted bool) int64 {
	im.mu.Lock()
	defer im.mu.Unlock()
	a := &im.alloc
	have := clusters(a.tables)
	toCome := im.tab.toCome.Load() - have
	spare := max(a.spare-have, 0)
	switch {
	case wanted:
		a.share = min(max(2*a.share, 1), 64)
		return min(a.share+spare, max(n/2, 1), max(toCome, 1))
	case have <= a.spare:
		return max(min(1+spare, n/2, toCome), 0)
	}
	return 0
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

// growFile makes the file reach to the end of r, at once, and zeroes r: metadata that
// is written next to it must not stand beside somebody's old bytes.
func (im *Image) growFile(r run) error {
	need := (r.at + r.n) * im.geo.ClusterSize()
	if _, err := im.growAtOnce(need, need); err != nil {
		return err
	}
	if im.claimZero(r) {
		return nil
	}
	return im.zeroRun(r)
}
