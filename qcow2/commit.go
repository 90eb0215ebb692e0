package qcow2

import (
	"context"
	"sync"
	"time"

	"tidemark/internal/block"
	"tidemark/internal/mutant"
	"tidemark/internal/steps"
)

// A committer lets all flushes that wait share one commit.
type committer struct {
	token semaphore // held by the commit in progress
	mu    sync.Mutex
	next  *commitRun  // what flushes that arrive now join; guarded by mu
	timer *time.Timer // begins a commit by itself; guarded by mu
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
	defer im.exit()
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
	if mutant.On("commit-joined-late") {
		defer func() { c.next = nil }()
	} else {
		c.mu.Lock()
		c.next = nil
		c.mu.Unlock()
	}
	r.err = im.commitOnce()
	close(r.done)
	return r.err
}

// commitOnce is C1 to C4.
func (im *Image) commitOnce() error {
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	// What is unlinked before the dirty tables are taken is unlinked in them.
	im.mu.Lock()
	gone := im.gone
	im.gone, im.going = nil, len(im.gone) > 0
	im.mu.Unlock()
	upTo := im.completed.Load()
	steps.At("C1")
	if mutant.On("discard-before-unlink") && im.grace.idle() {
		last, _ := im.countedOnce(gone)
		im.discard(last)
	}
	if mutant.On("decrement-before-unlink") {
		im.part(gone)
		gone = nil
		_, _ = im.reapNow()
	}
	if err := im.pushTables(true); err != nil {
		return err
	}
	if err := im.writeRefcounts(false); err != nil {
		return im.poison(err)
	}
	if err := im.syncUnless(mutant.On("commit-unsynced")); err != nil {
		return err
	}
	if mutant.On("completed-read-late") {
		upTo = im.completed.Load()
	}
	if mutant.On("unlinked-taken-late") {
		im.mu.Lock()
		gone, im.gone = append(gone, im.gone...), nil
		im.mu.Unlock()
	}
	steps.At("C4")
	im.durable.Store(upTo) // commits are one at a time, so it only rises
	im.lastCommit.Store(im.dirty.commits.Load())
	im.part(gone)
	return nil
}

// durableSlice reports whether everything in s is on disk, the entries of the
// tables above it included.
func (im *Image) durableSlice(s *slice) bool {
	if mutant.On("fua-epoch-off-by-one") {
		return im.lastCommit.Load() >= s.epoch.Load()
	}
	return im.lastCommit.Load() > s.epoch.Load() || mutant.On("fua-without-metadata")
}

// commitLater sees to it that what has completed now becomes durable soon even if
// nobody flushes.
func (im *Image) commitLater() {
	if im.opts.CommitInterval < 0 || im.commitArmed.Load() || !im.commitArmed.CompareAndSwap(false, true) {
		return
	}
	c := &im.commits
	c.mu.Lock()
	defer c.mu.Unlock()
	if im.closed.Load() {
		return
	}
	c.timer = time.AfterFunc(im.opts.CommitInterval, im.commitInBackground)
}

func (im *Image) commitInBackground() {
	im.commitArmed.Store(false)
	if im.enter(true) != nil {
		return
	}
	defer im.exit()
	_ = im.flush() // an error poisons, and the next request says so
}

// stopCommits ends commits that begin by themselves.
func (im *Image) stopCommits() {
	c := &im.commits
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
}

// throttled reports whether so many tables are dirty that a writer should wait
// until they are written; that begins long before.
func (im *Image) throttled() bool {
	n := im.dirty.count.Load()
	most := im.tab.mostDirty
	if n >= most/2 {
		im.pushSoon()
	}
	return n >= most
}

// pushSoon has the dirty tables written in the background.
func (im *Image) pushSoon() {
	if im.pushing.Load() || !im.pushing.CompareAndSwap(false, true) {
		return
	}
	if !im.startTask() {
		return
	}
	go func() {
		defer im.tasks.Done()
		defer im.pushing.Store(false)
		_ = im.pushTables(false) // an error poisons, and the next request says so
	}()
}

// throttle waits while too many tables are dirty. Its caller holds nothing.
func (im *Image) throttle() error {
	if !im.throttled() {
		return nil
	}
	return im.pushTables(false)
}

// startTask begins a task that Close waits for, unless the image is closed.
func (im *Image) startTask() bool {
	im.taskMu.Lock()
	defer im.taskMu.Unlock()
	if im.closed.Load() {
		return false
	}
	im.tasks.Add(1)
	return true
}

var _ block.Device = (*Image)(nil)
