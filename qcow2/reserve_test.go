package qcow2_test

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

func TestRecycleWithoutSpaceLeaksNothing(t *testing.T) {
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 1 << 30})
	im, err := qcow2.Open(ctx, d, qcow2.Options{})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{1}, 64<<16), 0, 0))
	for i := range int64(32) {
		require.NoError(t, im.Discard(ctx, i<<17, 1<<16, 0))
	}
	require.NoError(t, im.Close())
	f := faultfile.New(d, faultfile.Fault{})
	im, err = qcow2.Open(ctx, f, qcow2.Options{})
	require.NoError(t, err)
	for range 20 {
		f.SetFault(faultfile.Fault{Kinds: faultfile.Zeroes, At: 2, Err: block.ErrNoSpace})
		err := im.WriteAt(ctx, []byte{1}, 0, 0)
		if err == nil {
			break
		}
		require.ErrorIs(t, err, block.ErrNoSpace)
	}
	f.SetFault(faultfile.Fault{})
	require.NoError(t, im.Close())
	r, err := qcow2.Check(ctx, d, qcow2.CheckOptions{})
	require.NoError(t, err)
	require.Zero(t, r.Leaks, "no crash, a clean Close, and clusters leaked")
}

func TestFreedWhileATableWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		p := newPool(3 << 19)
		require.NoError(t, qcow2.Create(ctx, p, qcow2.CreateOptions{Size: 64 << 20, ClusterSize: 4096}))
		im, err := qcow2.Open(ctx, p, qcow2.Options{})
		require.NoError(t, err)
		c := make([]byte, 4096)
		require.NoError(t, im.WriteAt(ctx, c, 2<<20, 0)) // table 1
		for off := int64(0); ; off += 4096 {
			short, cancel := context.WithTimeout(ctx, time.Second)
			err := im.WriteAt(short, c, off, 0)
			cancel()
			if err != nil {
				break
			}
		}
		require.NoError(t, im.Flush(ctx))
		a, b := make(chan error, 1), make(chan error, 1)
		go func() { a <- im.WriteAt(ctx, c, 4<<20, 0) }() // needs a table
		synctest.Wait()
		go func() {
			b20, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			b <- im.WriteAt(b20, c, 2<<20+4096, 0) // needs a data cluster only
		}()
		synctest.Wait()
		require.NoError(t, im.Discard(ctx, 0, 400<<10, 0))
		require.NoError(t, im.Flush(ctx))
		err = <-b
		p.raise(1 << 30)
		require.NoError(t, <-a)
		require.NoError(t, err, "100 clusters were free, and the write waited 20 s for a larger file")
	})
}

// A tableless image is one in a full pool, with no table left. What can be discarded was
// there when it was opened, so that it may not become one (rule 17).
type tableless struct {
	*qcow2.Image
	pool    *pool
	table   int64 // a write there needs a table
	data    int64 // one there, and behind it, needs none
	dropped int64
}

func newTableless(t *testing.T) *tableless {
	ctx := t.Context()
	p := newPool(3 << 19)
	require.NoError(t, qcow2.Create(ctx, p, qcow2.CreateOptions{Size: 64 << 20, ClusterSize: 4096}))
	im, err := qcow2.Open(ctx, p, qcow2.Options{})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(ctx, pattern(1<<20), 0, 0))
	require.NoError(t, im.Close())
	im, err = qcow2.Open(ctx, p, qcow2.Options{})
	require.NoError(t, err)
	i := &tableless{im, p, 2 << 20, 1 << 20, 0}
	write := func(off *int64, step int64) bool {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := im.WriteAt(short, make([]byte, 4096), *off, 0); err != nil {
			require.ErrorIs(t, err, block.ErrNoSpace)
			return false
		}
		*off += step
		return true
	}
	for write(&i.data, 4096) {
	}
	for i.drop(t); write(&i.table, 2<<20); i.drop(t) {
	}
	for write(&i.data, 4096) {
	}
	synctest.Wait() // the reservation that nobody waits for any more has ended
	return i
}

// drop discards a cluster, and flushes.
func (i *tableless) drop(t *testing.T) {
	require.NoError(t, i.Discard(t.Context(), i.dropped, 4096, 0))
	require.NoError(t, i.Flush(t.Context()))
	i.dropped += 4096
}

// TestDataWaitsForNoTable: a write that needs a table waits for a larger file. One that
// needs none has what becomes free.
func TestDataWaitsForNoTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, i := t.Context(), newTableless(t)
		began := time.Now()
		a, b := make(chan error, 1), make(chan error, 1)
		go func() { a <- i.WriteAt(ctx, make([]byte, 4096), i.table, 0) }()
		synctest.Wait()
		go func() { b <- i.WriteAt(ctx, make([]byte, 4096), i.data, 0) }()
		synctest.Wait()
		require.Empty(t, b)
		i.drop(t)
		synctest.Wait()
		require.Len(t, b, 1, "a cluster is free")
		require.NoError(t, <-b)
		i.drop(t) // the other order: what is free is there already
		go func() { b <- i.WriteAt(ctx, make([]byte, 4096), i.data+4096, 0) }()
		require.NoError(t, <-b)
		require.Equal(t, began, time.Now(), "at once")
		require.Empty(t, a)
		i.pool.raise(1 << 30)
		require.NoError(t, <-a)
		require.NoError(t, i.Close())
		requireClean(t, i.pool)
	})
}

// A tally counts how often a request is held.
type tally struct{ begun, ended atomic.Int32 }

func (h *tally) Begin() error { h.begun.Add(1); return nil }
func (h *tally) End()         { h.ended.Add(1) }

// TestHeldBesideDiscards: a write that waits for space is held, however often others free
// something, of no use to it, meanwhile.
func TestHeldBesideDiscards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newTableless(t)
		patience, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var h tally
		written := make(chan error, 1)
		go func() { written <- i.WriteAt(block.WithHold(patience, &h), make([]byte, 4096), i.table, 0) }()
		for range 20 {
			synctest.Wait()
			i.drop(t)
			time.Sleep(20 * time.Millisecond)
		}
		require.EqualValues(t, 1, h.begun.Load())
		require.Zero(t, h.ended.Load())
		require.ErrorIs(t, <-written, block.ErrNoSpace)
		require.EqualValues(t, 1, h.ended.Load())
		require.NoError(t, i.Close())
	})
}

func TestReserveBytes(t *testing.T) {
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 1 << 30})
	im, err := qcow2.Open(ctx, d, qcow2.Options{ReserveBytes: 256 << 10})
	require.NoError(t, err)
	for off := int64(0); off < 16<<20; off += 64 << 10 {
		require.NoError(t, im.WriteAt(ctx, []byte{1}, off, 0))
		require.Less(t, im.Stats().Reserved, int64(2*256<<10))
	}
}

// hinted keeps the hints that it gets.
type hinted struct {
	*simdisk.Disk
	mu    sync.Mutex
	hints [][2]int64 // offset and length
}

func (h *hinted) WriteBack(off, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hints = append(h.hints, [2]int64{off, n})
}

// TestUsedUpIsWrittenBack: of a stream of new data nearly all is hinted at, once, while
// it goes on; an overwrite is not.
func TestUsedUpIsWrittenBack(t *testing.T) {
	ctx := t.Context()
	h := &hinted{Disk: newDisk(t, qcow2.CreateOptions{Size: 1 << 30})}
	im, err := qcow2.Open(ctx, h, qcow2.Options{ReserveBytes: 8 << 20})
	require.NoError(t, err)
	piece := bytes.Repeat([]byte{1}, 1<<20)
	for off := int64(0); off < 64<<20; off += int64(len(piece)) {
		require.NoError(t, im.WriteAt(ctx, piece, off, 0))
		im.WaitIdle()
	}
	seen := len(h.hints)
	slices.SortFunc(h.hints, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	total, end := int64(0), int64(0)
	for _, hint := range h.hints {
		require.GreaterOrEqual(t, hint[0], end, "once")
		total, end = total+hint[1], hint[0]+hint[1]
	}
	require.Greater(t, total, int64(40<<20))
	require.NoError(t, im.WriteAt(ctx, piece, 0, 0))
	im.WaitIdle()
	require.Len(t, h.hints, seen)
	require.NoError(t, im.Close())
}
