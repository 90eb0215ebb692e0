package qcow2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark/internal/block"
	"tidemark/internal/lockorder"
	"tidemark/internal/mutant"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// scanSlices bounds how many slices of reference counts one reservation looks
// at for free clusters while the file could still be used at its end.
const scanSlices = 64

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
	find := func() ([]run, error) { return im.findFree(n, tight && thorough) }
	if f.table {
		find = func() ([]run, error) { return im.findFreeTables(im.tableShare(n, true)) }
	}
	if !f.table || full || tight && thorough {
		runs, err := find()
		if err == nil && len(runs) == 0 && tight && im.hasGone() {
			if err = im.freeGone(); err == nil {
				runs, err = find()
			}
		}
		if err != nil {
			return err
		}
		if len(runs) > 0 {
			steps.At("R1")
			return im.recycle(runs, f.table)
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
	f.stop, f.waits = cancel, time.Now()
	im.mu.Unlock()
	_, err := im.file.Grow(ctx, short.need, short.want)
	im.mu.Lock()
	f.stop, f.waits = nil, time.Time{}
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
	return len(im.gone) > 0 || len(im.parted) > 0
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
	im.refs.mu.Lock()
	defer im.refs.mu.Unlock()
	per := im.geo.RefcountsPerBlock()
	for c := im.alloc.end; c < im.alloc.bound; c = (c/per + 1) * per {
		if !im.hasBlockLocked(c) {
			n++
		}
	}
	return n
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
	end := im.alloc.end
	im.mu.Unlock()
	r := &im.refs
	r.mu.Lock()
	defer r.mu.Unlock()
	perSlice := int64(1) << im.refSliceBits()
	for range scanSlices {
		sliceEnd := min(end, (r.cursor/perSlice+1)*perSlice)
		for ; r.cursor < sliceEnd && want > 0; r.cursor++ {
			c := r.cursor
			count, err := im.refcountLocked(c)
			if err != nil {
				return nil, false, err
			}
			if _, meta := slices.BinarySearch(r.metadata, c); count != 0 || meta || !im.hasBlockLocked(c) {
				continue
			}
			runs = appendRun(runs, run{at: c, n: 1})
			want--
		}
	}
	return runs, r.cursor >= end, nil
}

// findFreeTables looks for up to want clusters below the image's end that are counted
// 0 and may become tables: no entry but ours can name them (rule 17).
func (im *Image) findFreeTables(want int64) (runs []run, err error) {
	im.mu.Lock()
	from, end, proven := im.alloc.openEnd, im.alloc.end, im.alloc.proven
	im.mu.Unlock()
	try := func(c int64) error {
		im.refs.mu.Lock()
		defer im.refs.mu.Unlock()
		n, err := im.refcountLocked(c)
		if err == nil && n == 0 && im.hasBlockLocked(c) {
			runs = appendRun(runs, run{at: c, n: 1})
			want--
		}
		return err
	}
	if proven != nil {
		for c := range proven.all() {
			if want == 0 || err != nil {
				return runs, err
			}
			err = try(c)
		}
	}
	for c := from; c < end && want > 0 && err == nil; c++ {
		err = try(c)
	}
	return runs, err
}

// appendRun appends r to runs, to the last one where they are neighbours.
func appendRun(runs []run, r run) []run {
	if i := len(runs) - 1; i >= 0 && runs[i].at+runs[i].n == r.at {
		runs[i].n += r.n
		return runs
	}
	return append(runs, r)
}

// recycle makes free clusters below the image's end ready, for data or for tables. One
// that is on the list of a writer that died, which did not come to count it, is ours
// now.
func (im *Image) recycle(runs []run, forTables bool) error {
	im.mu.Lock()
	for _, r := range runs {
		im.clearedLocked(r.at, r.n)
	}
	im.mu.Unlock()
	tables := int64(0)
	if forTables {
		tables = clusters(runs)
	}
	if err := im.makeReady(runs, tables, false); err != nil {
		im.refs.mu.Lock()
		im.refs.cursor = min(im.refs.cursor, runs[0].at)
		im.refs.mu.Unlock()
		return err
	}
	return nil
}

// makeReady is R4 to R6. The first tables clusters of the runs become ready for
// L2 tables. zero says that the clusters read zero already.
func (im *Image) makeReady(runs []run, tables int64, zero bool) error {
	// The list goes first, so that no death of the process leaves a count that is
	// not on it, nor a power cut where the counts are durable before the next
	// Sync. Elsewhere there may be some after a power cut: those are leaks.
	if err := im.listReserved(runs, zero); err != nil {
		return im.fatalUnlessNoSpace(err)
	}
	forTables, forData := splitRuns(runs, tables)
	if !mutant.On("zeroed-after-sync") {
		if err := im.zeroReserved(forTables, forData, zero); err != nil {
			return err
		}
	}
	steps.At("R4")
	if err := im.countReserved(runs, zero || mutant.On("zeroes-unsynced")); err != nil {
		return err
	}
	if mutant.On("zeroed-after-sync") {
		if err := im.zeroReserved(forTables, forData, zero); err != nil {
			return err
		}
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, r := range runs {
		im.alloc.end = max(im.alloc.end, r.at+r.n)
	}
	for _, r := range forTables {
		im.alloc.tables = appendRun(im.alloc.tables, r)
	}
	for _, r := range forData {
		im.alloc.ready = appendRun(im.alloc.ready, r)
	}
	steps.At("R6")
	return nil
}

// zeroReserved is R4: zero says that the clusters read zero already. Tables are
// written out, whatever reads zero there: a storage that keeps zeroes as holes would
// set nothing aside for them.
func (im *Image) zeroReserved(forTables, forData []run, zero bool) error {
	for _, r := range forTables {
		if err := im.writeZeroTables(r, zero); err != nil {
			return err
		}
	}
	for _, r := range forData {
		if zero {
			break
		}
		if err := im.zeroRun(r); err != nil {
			return err
		}
	}
	return nil
}

// splitRuns parts runs into their first n clusters and the rest.
func splitRuns(runs []run, n int64) (first, rest []run) {
	for _, r := range runs {
		k := min(n, r.n)
		if k > 0 {
			first = append(first, run{r.at, k})
		}
		if k < r.n {
			rest = append(rest, run{r.at + k, r.n - k})
		}
		n -= k
	}
	return first, rest
}

// countReserved is R5. Where the clusters read zero durably already, only the
// counts need a sync, and not all that is dirty in the file.
func (im *Image) countReserved(runs []run, zero bool) error {
	for i, r := range runs {
		if mutant.On("counts-left-to-commit") {
			im.refs.mu.Lock()
			_ = im.setRefcountsLocked(r, 1)
			im.refs.mu.Unlock()
			continue
		}
		if err := im.countRun(r, zero && !mutant.On("reservation-unsynced")); err != nil {
			return im.fatalUnlessNoSpace(im.uncount(runs[:i], err))
		}
	}
	steps.At("R5")
	return im.syncUnless(zero || mutant.On("reservation-unsynced"))
}

// writeZeroTables writes zeroes into r.
func (im *Image) writeZeroTables(r run, durable bool) error {
	cs := im.geo.ClusterSize()
	for off, end := r.at*cs, (r.at+r.n)*cs; off < end; off += int64(len(zeroes)) {
		p := zeroes[:min(int64(len(zeroes)), end-off)]
		_, err := im.file.WriteAt(p, off)
		if err != nil {
			return im.fatalUnlessNoSpace(fmt.Errorf("write empty L2 tables: %w", err))
		}
		// There is space for it now; a lack of it would be final from here on.
		if durable {
			_, err = im.file.WriteAtSync(p, off)
		}
		if err != nil {
			return im.poison(fmt.Errorf("write empty L2 tables: %w", err))
		}
	}
	return nil
}

// syncUnless syncs the file, unless a mutant skips that; an error is final. No
// Sync is believed beside one that has failed, or behind it.
func (im *Image) syncUnless(skipped bool) error {
	if skipped {
		return nil
	}
	im.syncing.Lock()
	defer im.syncing.Unlock()
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	err := im.file.Sync()
	if err != nil && mutant.On("failed-sync-tried-again") {
		err = im.file.Sync()
	}
	if err != nil && !mutant.On("failed-sync-ignored") {
		return im.poison(fmt.Errorf("sync: %w", err))
	}
	return nil
}

// uncount takes the counts of runs back after err, which it returns.
func (im *Image) uncount(runs []run, err error) error {
	im.refs.mu.Lock()
	defer im.refs.mu.Unlock()
	for _, r := range runs {
		if undo := im.setRefcountsLocked(r, 0); undo != nil {
			return im.poison(undo)
		}
	}
	return err
}

func (im *Image) zeroRun(r run) error {
	if r.n == 0 {
		return nil
	}
	cs := im.geo.ClusterSize()
	if err := im.file.WriteZeroes(r.at*cs, r.n*cs); err != nil {
		return im.fatalUnlessNoSpace(fmt.Errorf("zero reserved clusters: %w", err))
	}
	return nil
}

// fatalUnlessNoSpace poisons the image unless err is nil or says that there is no
// space, after which everything can be tried again.
func (im *Image) fatalUnlessNoSpace(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, block.ErrNoSpace):
		return &hostFullError{err}
	}
	return im.poison(err)
}

// A hostFullError says that the storage had no space for bytes inside the file.
// That is for its administrator to mend, and a request waits for it, as it does
// for a larger file (rule 14).
type hostFullError struct{ err error }

func (e *hostFullError) Error() string { return e.err.Error() }
func (e *hostFullError) Unwrap() error { return e.err }

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

// giveBack counts the ready clusters 0 again and shrinks the file to the
// image's end. The image is closed: nobody else touches it.
func (im *Image) giveBack() error {
	im.mu.Lock()
	ready := slices.Concat(im.alloc.ready, im.alloc.tables)
	im.alloc.ready, im.alloc.tables = nil, nil
	last := im.alloc.end
	im.mu.Unlock()
	last, err := im.uncountTail(ready, last)
	im.mu.Lock()
	im.alloc.end = last
	end := max(last<<im.geo.ClusterBits, im.alloc.openSize)
	im.mu.Unlock()
	if mutant.On("shrunk-before-counts") {
		_ = im.file.Shrink(context.Background(), im.file.Size(), end)
	}
	if err == nil {
		err = im.writeRefcounts(false)
	}
	if _, has := im.header.FindExtension(format.ExtReserved); err == nil && has {
		im.listed = nil
		err = im.listReserved(nil, false) // what is not settled yet stays on it
	}
	if err == nil && !mutant.On("shrunk-unsynced") {
		err = im.file.Sync()
	}
	if err != nil {
		return im.poison(err)
	}
	if err := im.file.Shrink(context.Background(), im.file.Size(), end); err != nil && !errors.Is(err, block.ErrUnsupported) {
		return fmt.Errorf("shrink file to the image's end: %w", err)
	}
	return nil
}

// uncountTail counts ready clusters 0 and returns the image's end then: behind
// the last cluster below end that is counted.
func (im *Image) uncountTail(ready []run, end int64) (int64, error) {
	im.refs.mu.Lock()
	defer im.refs.mu.Unlock()
	for _, r := range ready {
		if err := im.setRefcountsLocked(r, 0); err != nil {
			return end, err
		}
	}
	for ; end > 1; end-- {
		if n, err := im.refcountLocked(end - 1); n != 0 || err != nil {
			return end, err
		}
	}
	return end, nil
}
