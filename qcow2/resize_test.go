package qcow2_test

import (
	"bytes"
	"context"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

func newDisk(t *testing.T, c qcow2.CreateOptions) *simdisk.Disk {
	d := simdisk.New(0, simdisk.Options{})
	require.NoError(t, qcow2.Create(t.Context(), d, c))
	return d
}

// Of two resizes at once the smaller one must not undo the larger.

func TestGrowNeverShrinks(t *testing.T) {
	ctx := t.Context()
	f := faultfile.New(newDisk(t, qcow2.CreateOptions{Size: 1 << 20}), faultfile.Fault{})
	im, err := qcow2.Open(ctx, f, qcow2.Options{})
	require.NoError(t, err)
	in, goon := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.Hook(func(op faultfile.Op) {
		if op.Kind == faultfile.Write && op.Off == 0 {
			once.Do(func() { close(in); <-goon })
		}
	}, nil)
	a, b := make(chan error, 1), make(chan error, 1)
	go func() { a <- im.Grow(ctx, 8<<20) }()
	<-in
	go func() { b <- im.Grow(ctx, 4<<20) }()
	time.Sleep(10 * time.Millisecond) // the other one may get as far as it can
	close(goon)
	require.NoError(t, <-a)
	<-b // refused, or done before
	require.EqualValues(t, 8<<20, im.Info().Size)
}

func TestGrowUnderReads(t *testing.T) {
	ctx := t.Context()
	bad := make(chan any, 100)
	for range scaled(48) {
		d := newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 512})
		im, err := qcow2.Open(ctx, d, qcow2.Options{})
		require.NoError(t, err)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				defer func() {
					if p := recover(); p != nil {
						bad <- p
					}
				}()
				b := make([]byte, 512)
				for {
					select {
					case <-stop:
						return
					default:
					}
					_ = im.ReadAt(ctx, b, 8<<20, 0)
				}
			})
		}
		done := make(chan error, 1)
		go func() { done <- im.Grow(ctx, 16<<20) }()
		select {
		case err := <-done:
			require.NoError(t, err)
		case p := <-bad:
			t.Fatalf("panic: %v", p)
		}
		close(stop)
		wg.Wait()
	}
	require.Empty(t, bad)
}

func TestCloseEndsGrow(t *testing.T) {
	p := newPool(64 << 10)
	require.NoError(t, qcow2.Create(t.Context(), p, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096}))
	im, err := qcow2.Open(t.Context(), p, qcow2.Options{})
	require.NoError(t, err)
	go func() { _ = im.Grow(context.Background(), 64<<30) }()
	for p.waiting() == 0 {
		time.Sleep(time.Millisecond)
	}
	closed := make(chan error, 1)
	go func() { closed <- im.Close() }()
	select {
	case <-closed:
	case <-time.After(2 * time.Second):
		p.raise(1 << 30)
		t.Error("Close waits for a resize that waits for space, for ever: ", <-closed)
	}
}

func TestZeroWhileTheDiskGrows(t *testing.T) {
	ctx := t.Context()
	f := faultfile.New(newDisk(t, qcow2.CreateOptions{Size: 96 << 10}), faultfile.Fault{})
	im, err := qcow2.Open(ctx, f, qcow2.Options{})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{1}, 96<<10), 0, 0))
	require.NoError(t, im.Flush(ctx))
	time.Sleep(50 * time.Millisecond)
	want := bytes.Repeat([]byte{7}, 32<<10)
	var once sync.Once
	f.Hook(func(op faultfile.Op) {
		if op.Kind == faultfile.Zeroes {
			once.Do(func() {
				require.NoError(t, im.Grow(ctx, 128<<10))
				require.NoError(t, im.WriteAt(ctx, want, 96<<10, block.FUA))
			})
		}
	}, nil)
	require.NoError(t, im.WriteZeroes(ctx, 1000, 96<<10-1000, block.MayUnmap))
	got := make([]byte, 32<<10)
	require.NoError(t, im.ReadAt(ctx, got, 96<<10, 0))
	require.True(t, bytes.Equal(got, want), "a FUA write outside the zeroed range is gone")
}

func TestGrowWithoutSpaceLeavesNothing(t *testing.T) {
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 4 << 20, ClusterSize: 512, RefcountBits: 64})
	var at int64
	n := int64(3900)
	for {
		// No more is reserved ahead of use than a table's cluster and one for
		// data, so that the end moves with n and not with the clock.
		im, err := qcow2.Open(ctx, d, qcow2.Options{ReserveBytes: 1024})
		require.NoError(t, err)
		require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{1}, int(n*512)), 0, 0))
		require.NoError(t, im.Close())
		if at = d.Size() / 512; at >= 4080 {
			break
		}
		n += 4
	}
	t.Log("end", at)
	require.Less(t, at, int64(4093))
	f := faultfile.New(d, faultfile.Fault{})
	im, err := qcow2.Open(ctx, f, qcow2.Options{})
	require.NoError(t, err)
	f.SetFault(faultfile.Fault{Kinds: faultfile.Write, At: 3, Err: block.ErrNoSpace})
	err = im.Grow(ctx, 1<<30)
	t.Log("grow:", err)
	require.ErrorIs(t, err, block.ErrNoSpace)
	f.SetFault(faultfile.Fault{})
	require.NoError(t, im.Close())
	im, err = qcow2.Open(ctx, d, qcow2.Options{})
	require.NoError(t, err, "closed cleanly, and does not open any more")
	_ = im
}

func TestGrowThatWaitsHoldsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		p, im, used := fullImage(t)
		rctx, stop := context.WithCancel(ctx)
		r := make(chan error, 1)
		go func() { r <- im.Grow(rctx, 16<<40) }() // a larger L1 table: waits for space
		synctest.Wait()
		require.Equal(t, 1, p.waiting())
		require.NoError(t, im.Discard(ctx, 0, 1<<20, 0))
		require.NoError(t, im.Flush(ctx))
		short, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		h := &refuse{}
		err := im.WriteAt(block.WithHold(short, h), make([]byte, 1<<16), used, 0)
		stop()
		<-r
		require.NoError(t, err, "16 clusters are free; the write got ENOSPC because a resize waits")
	})
}

// TestGrowOverALongerBackingFile: what a disk gains reads zero. Where the backing
// file goes on behind the disk's end it would show there, so the disk stays as it is.
func TestGrowOverALongerBackingFile(t *testing.T) {
	ctx := t.Context()
	below := blocktest.NewMemDevice(256 << 10)
	require.NoError(t, below.WriteAt(ctx, bytes.Repeat([]byte{7}, 256<<10), 0, 0))
	d := newDisk(t, qcow2.CreateOptions{Size: 128 << 10, BackingFile: "below", BackingFormat: "raw"})
	im, err := qcow2.Open(ctx, d, qcow2.Options{Backing: below})
	require.NoError(t, err)
	require.NoError(t, im.Grow(ctx, 128<<10), "to the size that it has")
	require.ErrorContains(t, im.Grow(ctx, 192<<10), "backing file")
	require.EqualValues(t, 128<<10, im.Info().Size)
	require.NoError(t, im.Close())

	d = newDisk(t, qcow2.CreateOptions{Size: 256 << 10, BackingFile: "below", BackingFormat: "raw"})
	im, err = qcow2.Open(ctx, d, qcow2.Options{Backing: below})
	require.NoError(t, err)
	require.NoError(t, im.Grow(ctx, 512<<10))
	got := make([]byte, 256<<10)
	require.NoError(t, im.ReadAt(ctx, got, 256<<10, 0))
	requireSame(t, make([]byte, 256<<10), got, "what the disk gained")
	require.NoError(t, im.Close())
}

// TestGrowRefusedAsksForNoSpace: a size that cannot be is refused before the file is
// made larger for its L1 table, which would be as large as the mistake.
func TestGrowRefusedAsksForNoSpace(t *testing.T) {
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096})
	im, err := qcow2.Open(ctx, d, qcow2.Options{})
	require.NoError(t, err)
	before := d.Size()
	for _, size := range []int64{math.MaxInt64, 1 << 60, 1 << 50, 1<<20 - 1, -1} {
		require.ErrorContains(t, im.Grow(ctx, size), "expected 1048576 to", size)
		require.Equal(t, before, d.Size(), size)
	}
	require.NoError(t, im.Close())
}
