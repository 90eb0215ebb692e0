package qcow2

import (
	"slices"
)

// scanSlices bounds how many slices of reference counts one reservation looks
// at for free clusters while the file could still be used at its end.
const scanSlices = 64

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
