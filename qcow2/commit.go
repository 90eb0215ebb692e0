package qcow2

import (
	"context"
	"sync"

	"tidemark/internal/block"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// A committer lets all flushes that wait share one commit.
type committer struct {
	token semaphore // held by the commit in progress
	mu    sync.Mutex
	next  *commitRun // what flushes that arrive now join; guarded by mu
}

// A commitRun is one commit, in progress or to come.
type commitRun struct {
	done chan struct{} // closed when err is set
	err  error
}

// Flush makes everything durable that completed before it was called.
func (im *Image) Flush(_ context.Context) error {
	if err := im.enter(false); err != nil {
		return err
	}
	defer im.requests.RUnlock()
	if im.opts.ReadOnly {
		return nil
	}
	return im.flush()
}

func (im *Image) flush() error {
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	if im.durable.Load() == im.completed.Load() {
		return nil
	}
	return im.commit()
}

// commit joins the commit that begins next, or leads it.
func (im *Image) commit() error {
	c := &im.commits
	c.mu.Lock()
	r := c.next
	lead := r == nil
	if lead {
		r = &commitRun{done: make(chan struct{})}
		c.next = r
	}
	c.mu.Unlock()
	if !lead {
		<-r.done
		return r.err
	}
	c.token.lock()
	defer c.token.release()
	// From here on nobody joins: what completes now may miss C1.
	c.mu.Lock()
	c.next = nil
	c.mu.Unlock()
	r.err = im.commitOnce()
	close(r.done)
	return r.err
}

// commitOnce is C1 to C4.
func (im *Image) commitOnce() error {
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	im.mu.Lock()
	upTo, gone := im.completed.Load(), im.gone
	im.gone = nil
	im.mu.Unlock()
	steps.At("C1")

	if err := im.writeTables(); err != nil {
		return err
	}
	if err := im.writeRefcounts(); err != nil {
		return im.poison(err)
	}
	if err := im.sync("flush"); err != nil {
		return err
	}
	steps.At("C2")
	im.durable.Store(upTo) // commits are one at a time, so it only rises
	if err := im.free(gone); err != nil {
		return im.poison(err)
	}
	return nil
}

// free is C3 and C4: what is durably unlinked loses a count, and its bytes if it
// was the last one. Only commits lower counts, so what the first look finds
// still holds at the second.
func (im *Image) free(gone []run) error {
	if len(gone) == 0 {
		return nil
	}
	im.mu.Lock()
	last, err := im.lastOnesLocked(gone)
	im.mu.Unlock()
	if err != nil {
		return err
	}
	cs := im.geo.ClusterSize()
	for _, r := range last {
		if err := im.file.Discard(r.at*cs, r.n*cs); err != nil {
			im.log.Warn("discard failed; the space stays allocated in the storage", "offset", r.at*cs, "bytes", r.n*cs, "error", err)
		}
	}
	steps.At("C3")
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, r := range gone {
		for c := r.at; c < r.at+r.n; c++ {
			if err := im.uncountLocked(c); err != nil {
				return err
			}
		}
		im.alloc.cursor = min(im.alloc.cursor, r.at)
	}
	steps.At("C4")
	im.freedLocked()
	return nil
}

// lastOnesLocked picks the clusters whose count is about to fall to 0.
func (im *Image) lastOnesLocked(gone []run) ([]run, error) {
	var runs []run
	for _, r := range gone {
		for c := r.at; c < r.at+r.n; c++ {
			n, err := im.refcountLocked(c)
			if err != nil {
				return nil, err
			}
			if n == 1 {
				runs = appendRun(runs, run{at: c, n: 1})
			}
		}
	}
	return runs, nil
}

// uncountLocked lowers the count of cluster c.
func (im *Image) uncountLocked(c int64) error {
	n, err := im.refcountLocked(c)
	if err != nil {
		return err
	}
	if n == 0 {
		return &format.CorruptError{What: "reference count of the cluster", Off: c << im.geo.ClusterBits, Want: "at least 1, as an entry named it", Got: "0"}
	}
	return im.setRefcountsLocked(run{at: c, n: 1}, n-1)
}

var _ block.Device = (*Image)(nil)
