package qcow2

import (
	"context"
	"fmt"

	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// GiveBack makes the file of an image that is being served as short as the image
// allows: what is allocated and what is reserved stays. It returns the file's
// size. A file that cannot be shorter says why.
//
// Behind the image's end there is nothing of ours: no cluster there was ever
// allocated by this process, or it would be before the end. But the counts that
// the end was taken from at open may be wrong, so the tables are asked:
//
//	V1  Sync: what is read next is durable
//	V2  read every L2 table: what an entry names, right or wrong, stays
//	V3  holding allocating, so that the end stays where it is: shrink the file
//
// An entry that begins to name something after V2 was read names what is before the
// image's end. Shrinking may wait for a pool, until ctx or the image ends. Who needs the image's
// end meanwhile, a reservation or a resize, waits for no longer than its own context
// says; what is ready can be used, and nothing else waits.
func (im *Image) GiveBack(ctx context.Context) (size int64, err error) {
	if err := im.usable(true); err != nil {
		return im.file.Size(), err
	}
	if !im.startTask() {
		return im.file.Size(), im.usable(true)
	}
	defer im.tasks.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(im.ctx, cancel)() // closing ends the wait
	select {
	case <-im.settled: // it may find that more is ours
	case <-ctx.Done():
		return im.file.Size(), context.Cause(ctx)
	}
	if err := im.syncUnless(false); err != nil {
		return im.file.Size(), err
	}
	steps.At("V1")
	named, err := im.namedEnd(ctx)
	if err != nil {
		return im.file.Size(), err
	}
	steps.At("V2")
	if err := im.allocating.acquire(ctx); err != nil {
		return im.file.Size(), err
	}
	defer im.allocating.release()
	im.mu.Lock()
	end := max(im.alloc.end, named) << im.geo.ClusterBits
	im.mu.Unlock()
	from := im.file.Size()
	if end >= from {
		return from, nil
	}
	if err := im.file.Shrink(ctx, from, end); err != nil {
		return from, fmt.Errorf("give back what the image does not use: %w", err)
	}
	im.mu.Lock()
	steps.At("V3")
	im.alloc.openSize = min(im.alloc.openSize, im.file.Size())
	im.mu.Unlock()
	return im.file.Size(), nil
}

// namedEnd is the end of the last cluster that an entry on disk names (V2).
func (im *Image) namedEnd(ctx context.Context) (end int64, err error) {
	tables, err := im.allTables()
	if err != nil {
		return 0, err
	}
	entries, b := make([]format.L2Pair, im.geo.L2Entries()), make([]byte, im.geo.ClusterSize())
	for _, off := range tables {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if _, err := readFull(im.file, b, off); err != nil {
			return 0, fmt.Errorf("read L2 table: %w", err)
		}
		im.geo.DecodeL2(entries, b)
		for _, p := range entries {
			end = max(end, im.endOf(p.Entry))
		}
		end = max(end, off>>im.geo.ClusterBits+1)
	}
	return end, nil
}

// endOf is the cluster behind the last one that e names.
func (im *Image) endOf(e format.L2Entry) int64 {
	bits := im.geo.ClusterBits
	switch {
	case e == 0:
		return 0
	case e.Kind(im.geo) == format.Compressed:
		off, n := e.CompressedRange(im.geo)
		return (off+n-1)>>bits + 1
	}
	return e.Offset()>>bits + 1
}
