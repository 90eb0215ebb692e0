package qcow2

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"tidemark/internal/block"
	"tidemark/internal/mutant"
	"tidemark/qcow2/format"
)

// Close waits for the requests in progress, of which those that wait for space
// are cancelled, commits, gives reserved space back and shrinks the file to the
// image's end. It does not close the file.
func (im *Image) Close() error {
	im.taskMu.Lock()
	first := im.closed.CompareAndSwap(false, true)
	im.taskMu.Unlock()
	if !first {
		return block.ErrClosed
	}
	im.cancel()
	im.stopCommits()
	im.requests.Lock()
	defer im.requests.Unlock()
	im.tasks.Wait()
	im.waitIdle()
	if im.opts.ReadOnly {
		return nil
	}
	if err := im.shut(); err != nil {
		im.leaveLog()
		return err
	}
	return im.endLog()
}

// shut makes the file what it is to be while nobody has it open.
func (im *Image) shut() error {
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	if mutant.On("freed-before-last-commit") {
		im.part(im.gone)
		im.gone = nil
		_, _ = im.reapNow()
	}
	if err := im.commit(); err != nil {
		return err
	}
	if err := im.reapLast(); err != nil {
		return err
	}
	return im.returnReserved()
}

// reapLast frees everything that is unlinked. Requests that come now are refused, but
// each is counted as one in progress for a moment.
func (im *Image) reapLast() error {
	for {
		known, err := im.reapNow()
		if !known {
			return err
		}
		<-im.grace.ended
	}
}

// waitIdle waits until no request for data is in progress. The reaper, which
// waits for the same, has ended.
func (im *Image) waitIdle() {
	im.grace.wanted.Store(true)
	for !im.grace.idle() {
		<-im.grace.ended
	}
}

// returnReserved counts the ready clusters 0 again and shrinks the file to the
// image's end. The image is closed: nobody else touches it.
func (im *Image) returnReserved() error {
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
	if err == nil {
		err = im.syncUnless(mutant.On("shrunk-unsynced"))
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
