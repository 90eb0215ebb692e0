package qcow2

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidemark/internal/block"
	"tidemark/internal/mutant"
	"tidemark/qcow2/format"
)

// A run is n host clusters from at.
type run struct{ at, n int64 }

// An allocator hands out ready clusters: counted 1 and reading zero, both
// durably. Image.mu guards it.
type allocator struct {
	end     int64 // the cluster behind the last one that is counted
	openEnd int64 // what end was at open, and inside the file
	// openSize is the file's size at open, bytes. Nothing that was there is cut
	// off: if it is not counted, that may be the mistake.
	openSize int64
	// zeroFrom: from this cluster on nobody has written, and the storage says
	// that its fresh space reads zero.
	zeroFrom int64
	// frees counts the events after which a search for free clusters may find
	// more than it did before.
	frees uint64

	// bound is what the image needs when all of it is allocated: nothing is
	// reserved ahead of use beyond it.
	bound int64

	ready []run
	// tables are ready clusters for L2 tables. Nothing but this process can have
	// named them: they lay behind the image's end when it was opened, or are
	// proven to be free (rule 17). The storage has set space aside for them, so
	// that writing a table cannot fail for want of it (rule 14).
	tables []run
	// spare is how many of them data leaves to zeroing and discards, which need
	// tables where there is content behind the disk's own, and space for them when
	// the pool is full (rule 18).
	spare int64
	// proven are clusters that no entry on disk named when they were settled, and
	// that were not counted then; nil: none. It does not change.
	proven *clusterSet
	share  int64 // of the last reservation that was made for want of a table
	batch  int64 // clusters of the next reservation
	fill   *fill // the reservation in progress, nil if none
	// fresh is what the last reservation made ready for data; usedUp what those before
	// it did, of which little is ready any more, and what is not written back yet.
	fresh, usedUp []run
	// last is when a reservation ended, failed when one did without success.
	last, failed time.Time
}

func (a *allocator) readyClusters() int64 { return clusters(a.ready) + clusters(a.tables) }

// clusters is how many runs have.
func clusters(runs []run) (n int64) {
	for _, r := range runs {
		n += r.n
	}
	return n
}

// take removes up to want contiguous clusters from those that are ready for data;
// n is 0 if there are none.
func (a *allocator) take(want int64) (at, n int64) { return takeFrom(&a.ready, want) }

// takeTable removes a cluster that is ready for an L2 table; n is 0 if there is
// none, or none but the spare ones, which are for who frees.
func (a *allocator) takeTable(toCome int64, frees bool) (at, n int64) {
	if !frees && a.tablesForData(toCome) <= 0 {
		return 0, 0
	}
	return takeFrom(&a.tables, 1)
}

// tablesForData is how many tables are ready but for the spare ones. Where there are
// as many as can ever be needed, all are.
func (a *allocator) tablesForData(toCome int64) int64 {
	n := clusters(a.tables)
	if n >= toCome {
		return n
	}
	return n - a.spare
}

func takeFrom(runs *[]run, want int64) (at, n int64) {
	if len(*runs) == 0 {
		return 0, 0
	}
	r := &(*runs)[0]
	at, n = r.at, min(want, r.n)
	r.at, r.n = r.at+n, r.n-n
	if r.n == 0 {
		*runs = append((*runs)[:0], (*runs)[1:]...)
	}
	return at, n
}

// has reports whether what is missing can be taken.
func (a *allocator) has(m missing, toCome int64) bool {
	return (m == missingMark || len(a.ready) > 0) && !a.lacksTable(m, toCome)
}

// lacksTable reports whether a table is missing that cannot be taken.
func (a *allocator) lacksTable(m missing, toCome int64) bool {
	switch m {
	case missingTable:
		return a.tablesForData(toCome) <= 0
	case missingMark:
		return len(a.tables) == 0
	}
	return false
}

// A fill is one reservation in progress.
type fill struct {
	table bool // a cluster for a table is wanted: not all will do
	// ahead of use: it takes what can be had at once, and does not wait for a
	// larger file. Others do, for as long as a request waits for them.
	ahead bool
	done  chan struct{} // closed when err is set
	err   error

	// Image.mu guards what follows.
	waiters int // requests that wait for it
	// data: some of them need no table. Where none is found they get what there is.
	data bool
	// waits is since when it waits for a larger file, also while it looks whether clusters
	// have become free; stop ends that wait.
	waits time.Time
	stop  context.CancelCauseFunc
}

// What ends the wait of a reservation for a larger file from our side.
var (
	errRetry  = errors.New("clusters may have become free")
	errNobody = errors.New("no request waits any more")
)

// spareTables is how many L2 tables an image with content behind its own keeps for
// zeroing and discards.
const spareTables = 4

// startAllocator finds the image's end. A file that ends inside the image's
// last cluster is made longer, so that the whole cluster can be written; one
// that ends before it has lost something and is refused.
func (im *Image) startAllocator(ctx context.Context) error {
	end, err := im.lastCounted()
	if err != nil {
		return err
	}
	// A table that is not counted is an error for a check to find. It must not
	// be overwritten.
	if m := im.refs.metadata; len(m) > 0 {
		end = max(end, m[len(m)-1]+1)
	}
	a, size := &im.alloc, im.file.Size()
	a.openSize = size
	a.end, a.openEnd = end, min(end, im.geo.Clusters(size))
	a.zeroFrom = 1<<63 - 1
	if im.file.Info().FreshZero {
		a.zeroFrom = max(end, im.geo.Clusters(size))
		if mutant.On("file-tail-taken-for-zero") {
			a.zeroFrom = end
		}
	}
	a.batch = max(2, min(minReserveBytes, im.opts.ReserveBytes)>>im.geo.ClusterBits)
	a.bound = im.bound(im.header.Size)
	if im.header.BackingFile != "" || len(im.snapshots) > 0 {
		a.spare = spareTables
	}
	need := end << im.geo.ClusterBits
	if size < need-im.geo.ClusterSize() {
		return &format.CorruptError{What: "file (truncated? if it only leaks clusters, mend it with qemu-img check -r leaks)", Off: size,
			Want: fmt.Sprintf("at least the %d bytes that the reference counts claim", need-im.geo.ClusterSize()), Got: fmt.Sprintf("%d bytes", size)}
	}
	if need > size {
		if _, err := im.file.Grow(ctx, need, need); err != nil {
			return err
		}
	}
	return nil
}

// startFillLocked starts a reservation, or returns the one in progress.
func (im *Image) startFillLocked(table, ahead bool) *fill {
	a := &im.alloc
	if a.fill != nil {
		return a.fill
	}
	f := &fill{table: table, ahead: ahead, done: make(chan struct{})}
	if !im.startTask() {
		f.err = block.ErrClosed
		close(f.done)
		return f
	}
	a.fill = f
	go func() {
		defer im.tasks.Done()
		err := im.reserve(f)
		im.mu.Lock()
		a.fill, f.err, a.last = nil, err, time.Now()
		if err != nil {
			a.failed = a.last
		}
		im.mu.Unlock()
		close(f.done)
		im.writeBack()
	}()
	return f
}

// prefetchPause is how long nothing is reserved ahead of use after a
// reservation has failed.
const prefetchPause = time.Second

// prefetchLocked starts a reservation when a quarter of the last one is used up: while
// the storage is busy with what guests write, making the next one takes as long as they
// need for half of it.
func (im *Image) prefetchLocked() {
	a := &im.alloc
	if a.fill == nil && a.readyClusters() < a.batch*3/4 && a.end < a.bound && time.Since(a.failed) > prefetchPause {
		im.startFillLocked(false, true)
	}
}

// prefetch is prefetchLocked for who does not hold mu.
func (im *Image) prefetch() {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.prefetchLocked()
}

// holdGrace is how long a reservation waits for a larger file before the requests
// that wait for it count as held: an extension that is just slow is none, nor is
// a slow sync.
const holdGrace = 100 * time.Millisecond

// fillFor is a reservation for who misses something, whom it counts as waiting; nil:
// there is no need, look again. toCome is how many tables there were to come before it was
// missed: if that has changed, the table may be there. Nobody makes it meanwhile, for that
// takes a ready cluster and counts it under the same lock; so no cluster is reserved that
// nobody needs, for which there may be no room.
func (im *Image) fillFor(m missing, toCome int64) *fill {
	im.tab.mu.Lock()
	defer im.tab.mu.Unlock()
	now := im.tab.toCome.Load()
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.alloc.has(m, now) || m != missingCluster && now != toCome {
		return nil
	}
	table := im.alloc.lacksTable(m, now)
	f := im.startFillLocked(table, false)
	f.waiters++
	if f.table && !table && !f.data {
		f.data = true
		im.freedLocked() // for it, more may be free than was before
	}
	return f
}

// waitReady waits until what is missing can be taken, as long as ctx allows. It holds
// no lock. When it returns nil others may have been faster: look again. toCome is as for
// fillFor.
func (im *Image) waitReady(ctx context.Context, m missing, toCome int64) error {
	for {
		f := im.fillFor(m, toCome)
		if f == nil {
			return nil
		}
		err := im.waitFill(ctx, f)
		im.mu.Lock()
		if f.waiters--; f.waiters == 0 && f.stop != nil {
			f.stop(errNobody)
		}
		im.mu.Unlock()
		var full *hostFullError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &full):
			if err := im.waitHost(ctx); err != nil {
				return fmt.Errorf("%w (%s)", err, full.Error())
			}
		case errors.Is(err, errNobody), f.ahead && ctx.Err() == nil && im.alive.Err() == nil:
			// It was a reservation ahead of use, which does not wait for space,
			// or had been given up when this request came.
		default:
			return err
		}
	}
}

// waitFill waits for one reservation, and reports to the Hold of ctx.
func (im *Image) waitFill(ctx context.Context, f *fill) error {
	hold := block.HoldOf(ctx)
	look := time.NewTimer(im.untilHeld(f))
	defer look.Stop()
	for {
		select {
		case <-f.done:
			return f.err
		case <-ctx.Done():
			return block.SpaceError(ctx)
		case <-im.alive.Done():
			return im.usable(true)
		case <-look.C:
			if left := im.untilHeld(f); left > 0 {
				look.Reset(left)
				continue
			}
			if err := hold.Begin(); err != nil {
				return err
			}
			defer hold.End() // once: look is not set again
		}
	}
}

// untilHeld is how long it takes at least until requests that wait for f are
// held; 0 or less: they are.
func (im *Image) untilHeld(f *fill) time.Duration {
	im.mu.Lock()
	defer im.mu.Unlock()
	if f.waits.IsZero() {
		return holdGrace
	}
	return holdGrace - time.Since(f.waits)
}

// freedLocked tells a reservation that waits for a larger file to look for free
// clusters again.
func (im *Image) freedLocked() {
	im.alloc.frees++
	if f := im.alloc.fill; f != nil && f.stop != nil {
		f.stop(errRetry)
	}
}
