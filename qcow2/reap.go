package qcow2

import (
	"slices"
	"time"

	"tidemark/internal/lockorder"
	"tidemark/internal/mutant"
	"tidemark/internal/steps"
)

// A parted batch is host clusters that are durably unlinked: no entry on disk
// names them any more. epoch is that of the grace when that was so.
type parted struct {
	runs  []run
	epoch uint64
	freed chan struct{} // closed when they are free
}

// unlinkedLocked notes that an entry does not name the n clusters from c any
// more: after the next commit each of them loses a count. Its caller holds mu,
// and has marked the entry's slice dirty.
func (im *Image) unlinkedLocked(c, n int64) {
	for ; n > 0; c, n = c+1, n-1 {
		im.gone = appendRun(im.gone, run{at: c, n: 1})
		im.clearedLocked(c, 1)
	}
}

// part hands what is durably unlinked to the reaper.
func (im *Image) part(runs []run) {
	if len(runs) == 0 {
		return
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.parted, im.going = append(im.parted, parted{runs, im.grace.epoch.Load(), make(chan struct{})}), false
	if im.reaped == nil && im.startTask() {
		im.reaped = make(chan struct{})
		go func() {
			defer im.tasks.Done()
			im.reap()
		}()
	}
}

// reap frees what is durably unlinked, as the requests end that may know it. It
// returns when there is nothing left of that, or the image closes.
func (im *Image) reap() {
	im.grace.wanted.Store(true)
	for {
		known, err := im.reapNow()
		if known {
			select {
			case <-im.grace.ended:
				continue
			case <-im.ctx.Done():
				return
			}
		}
		im.mu.Lock()
		if len(im.parted) == 0 || err != nil {
			// Before the next reaper can begin, which wants it.
			im.grace.wanted.Store(false)
			close(im.reaped)
			im.reaped = nil
			im.mu.Unlock()
			return
		}
		// Something was parted since reapNow saw nothing left. It may be known to nobody,
		// so that no end of a request would tell: look again.
		im.mu.Unlock()
	}
}

// reapPause is how long a reservation waits for requests in progress to end, so that
// clusters become free and the file need not become larger.
const reapPause = 20 * time.Millisecond

// waitReaped waits until everything that was durably unlinked before is free, not for what
// others unlink meanwhile. For requests that take longer than reapPause, a read that the
// storage does not answer say, it does not wait, except where the image must not become
// larger.
func (im *Image) waitReaped() error {
	lockorder.Waits("requests in progress")
	im.mu.Lock()
	reaped, last, full := im.reaped, len(im.parted)-1, im.alloc.end >= im.alloc.bound
	if reaped == nil || last < 0 {
		im.mu.Unlock()
		return nil
	}
	freed := im.parted[last].freed // the others go before it
	im.mu.Unlock()
	var enough <-chan time.Time
	if !full {
		enough = time.After(reapPause)
	}
	select {
	case <-freed:
		return nil
	case <-reaped: // also when the image has stopped
		return nil
	case <-enough:
		return nil
	case <-im.ctx.Done():
		return im.ctx.Err()
	}
}

// reapNow frees what no request can know any more (F1, F2). known: it has left what a
// request in progress may know. Of an image that has stopped nothing is freed: a part of
// the first batch may be already.
func (im *Image) reapNow() (known bool, err error) {
	im.reaper.Lock()
	defer im.reaper.Unlock()
	for {
		if err := im.poisoned.Load(); err != nil {
			return false, *err
		}
		im.mu.Lock()
		if len(im.parted) == 0 {
			im.mu.Unlock()
			return false, nil
		}
		first := im.parted[0]
		im.mu.Unlock()
		if !im.grace.passed(first.epoch) && !mutant.On("reused-under-readers") {
			return true, nil
		}
		if err := im.free(first.runs); err != nil {
			return false, im.poison(err)
		}
		im.mu.Lock()
		im.parted = im.parted[1:]
		im.freedLocked()
		im.mu.Unlock()
		close(first.freed)
	}
}

// What is freed at a time, so that the counts which that makes dirty, at most one slice
// for each run and for each so many clusters, stay few.
const (
	freeRuns     = 256
	freeClusters = 1 << 18
)

// free lowers the counts of clusters that are durably unlinked and that nobody
// knows any more.
func (im *Image) free(runs []run) error {
	for some := range slices.Chunk(runs, freeRuns) {
		for len(some) > 0 {
			first, rest := splitRuns(some, freeClusters)
			if err := im.freeSome(first); err != nil {
				return err
			}
			if err := im.spillCounts(); err != nil {
				return err
			}
			some = rest
		}
	}
	return nil
}

// freeSome frees a part of them. One that is counted once loses its bytes first (F1):
// when its count is 0 it may be chosen again.
func (im *Image) freeSome(runs []run) error {
	last, err := im.countedOnce(runs)
	if err != nil {
		return err
	}
	im.discard(last)
	steps.At("F1")
	if err := im.lowerCounts(runs); err != nil {
		return err
	}
	steps.At("F2")
	return nil
}

// spillCounts writes the reference counts if so many are dirty that they would not stay
// within the memory for metadata. They may reach the disk at any time. Where somebody
// else writes counts, nothing needs to be done.
func (im *Image) spillCounts() error {
	im.refs.mu.Lock()
	over := im.refs.slices.over()
	im.refs.mu.Unlock()
	if !over || im.poisoned.Load() != nil || !im.refcountIO.TryLock() {
		return nil
	}
	defer im.refcountIO.Unlock()
	return im.writeRefcountsLocked(false)
}

func (im *Image) discard(runs []run) {
	cs := im.geo.ClusterSize()
	for _, r := range runs {
		if err := im.file.Discard(r.at*cs, r.n*cs); err != nil {
			im.log.Warn("discard failed; the space stays allocated in the storage", "offset", r.at*cs, "bytes", r.n*cs, "error", err)
		}
	}
}

// countedOnce picks the clusters whose count is about to fall to 0. Only the
// reaper lowers counts, so that still holds afterwards. A cluster may be in runs
// more than once.
func (im *Image) countedOnce(runs []run) ([]run, error) {
	im.refs.mu.Lock()
	defer im.refs.mu.Unlock()
	var once []run
	lost := map[int64]uint64{}
	for _, r := range runs {
		for c := r.at; c < r.at+r.n; c++ {
			n, err := im.refcountLocked(c)
			if err != nil {
				return nil, err
			}
			if lost[c]++; n == lost[c] {
				once = appendRun(once, run{at: c, n: 1})
			}
		}
	}
	return once, nil
}

// lowerCounts takes one from the count of every cluster, in memory; it reaches
// the disk with the next commit or reservation, or with spillCounts.
func (im *Image) lowerCounts(runs []run) error {
	im.refs.mu.Lock()
	defer im.refs.mu.Unlock()
	for _, r := range runs {
		for c := r.at; c < r.at+r.n; c++ {
			if err := im.uncountLocked(c); err != nil {
				return err
			}
		}
		im.refs.cursor = min(im.refs.cursor, r.at)
	}
	return nil
}
