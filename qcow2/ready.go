package qcow2

import (
	"fmt"

	"tidemark/internal/mutant"
	"tidemark/internal/steps"
)

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
	if !im.direct {
		im.alloc.usedUp, im.alloc.fresh = append(im.alloc.usedUp, im.alloc.fresh...), forData
	}
	steps.At("R6")
	return nil
}

// writeBack has the storage write what requests have put into reservations that are
// used up, unless somebody does so already: a stream of new data is on its way while
// it goes on, and the next flush need not write all of it. What is overwritten is not
// hinted at, as it may be again.
func (im *Image) writeBack() {
	if !im.writingBack.CompareAndSwap(false, true) {
		return
	}
	defer im.writingBack.Store(false)
	for im.ctx.Err() == nil {
		im.mu.Lock()
		runs := im.alloc.usedUp
		im.alloc.usedUp = nil
		im.mu.Unlock()
		if len(runs) == 0 {
			return
		}
		for _, r := range runs {
			im.file.WriteBack(r.at<<im.geo.ClusterBits, r.n<<im.geo.ClusterBits)
		}
	}
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
			_, err = im.writeDurably(p, off)
		}
		if err != nil {
			return im.poison(fmt.Errorf("write empty L2 tables: %w", err))
		}
	}
	return nil
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
