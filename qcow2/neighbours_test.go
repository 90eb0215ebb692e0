package qcow2_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
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

// A gate lets an operation begin and not end until it is opened.
type gate struct {
	inside atomic.Int32 // operations that wait in it
	closed chan struct{}
	once   sync.Once
}

func newGate() *gate { return &gate{closed: make(chan struct{})} }

func (g *gate) pass() {
	g.inside.Add(1)
	<-g.closed
	g.inside.Add(-1)
}

func (g *gate) open() { g.once.Do(func() { close(g.closed) }) }

// soon runs what must not wait for anything that has to be opened first. It may
// take some time: engines sleep a little, in the time of the bubble.
func soon(t *testing.T, what string, do func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		require.NoError(t, err, what)
	case <-time.After(5 * time.Second):
		t.Fatalf("%s waits for somebody else's request", what)
	}
}

// neighbourhood is a disk of clusters of 4 KiB with content in the first half.
func neighbourhood(t *testing.T) (*faultfile.File, *qcow2.Image) {
	d := simdisk.New(0, simdisk.Options{})
	require.NoError(t, qcow2.Create(t.Context(), d, qcow2.CreateOptions{Size: 8 << 20, ClusterSize: 4096}))
	f := faultfile.New(d, faultfile.Fault{})
	im, err := qcow2.Open(t.Context(), f, qcow2.Options{ReserveBytes: 64 << 10})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(t.Context(), pattern(4<<20), 0, 0))
	require.NoError(t, im.Flush(t.Context()))
	return f, im
}

// everything does every kind of request around the guest offset off, where there
// is content, but not to the cluster at off itself, and around fresh, where there
// is none.
func everything(t *testing.T, im *qcow2.Image, off, fresh int64) {
	t.Helper()
	ctx := t.Context()
	const cs = 4096
	p := make([]byte, cs)
	soon(t, "a read of the cluster before it", func() error { return im.ReadAt(ctx, p, off-cs, 0) })
	soon(t, "a read of the cluster behind it", func() error { return im.ReadAt(ctx, p, off+cs, 0) })
	soon(t, "an overwrite of the cluster before it", func() error { return im.WriteAt(ctx, p, off-cs, 0) })
	soon(t, "an overwrite of the cluster behind it", func() error { return im.WriteAt(ctx, p, off+cs, 0) })
	soon(t, "a durable overwrite", func() error { return im.WriteAt(ctx, p, off+2*cs, block.FUA) })
	soon(t, "zeroing of a part of the cluster behind it", func() error { return im.WriteZeroes(ctx, off+cs, 512, 0) })
	soon(t, "a discard of the cluster behind it", func() error { return im.Discard(ctx, off+cs, cs, 0) })
	soon(t, "a discard of the cluster before it", func() error { return im.Discard(ctx, off-cs, cs, block.FUA) })
	soon(t, "zeroing of whole clusters", func() error { return im.WriteZeroes(ctx, off+2*cs, 4*cs, block.MayUnmap) })
	soon(t, "a flush", func() error { return im.Flush(ctx) })
	for i := int64(0); fresh > 0 && i < 256; i++ { // more than is ready, so that the file grows
		soon(t, "a write into a fresh cluster", func() error { return im.WriteAt(ctx, p[:512], fresh+i*cs, 0) })
	}
	soon(t, "a flush", func() error { return im.Flush(ctx) })
}

// TestSlowReadBlocksNobody: a read that the storage does not answer stops no other
// request, also not to its own cluster, and not when space is needed and some that
// was discarded waits for the read to end.
func TestSlowReadBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		f, im := neighbourhood(t)
		g := newGate()
		defer g.open()
		var first atomic.Bool
		f.Hook(func(op faultfile.Op) {
			if op.Kind == faultfile.Read && op.Len == 4096-512 && !first.Swap(true) {
				g.pass()
			}
		}, nil)
		got := make([]byte, 4096-512)
		slow := make(chan error, 1)
		go func() { slow <- im.ReadAt(ctx, got, 1<<20, 0) }()
		synctest.Wait()
		require.EqualValues(t, 1, g.inside.Load())
		everything(t, im, 1<<20, 5<<20)
		soon(t, "an overwrite of its cluster", func() error { return im.WriteAt(ctx, []byte{9}, 1<<20+4000, 0) })
		soon(t, "a discard of its cluster", func() error { return im.Discard(ctx, 1<<20, 4096, 0) })
		everything(t, im, 2<<20, 6<<20)
		g.open()
		require.NoError(t, <-slow)
		want := pattern(4 << 20)[1<<20:][:len(got)]
		if got[0] != 0 { // the old content, as a whole: its cluster was not used again under it
			requireSame(t, want, got, "what the slow read returned")
		}
		require.NoError(t, im.Close())
	})
}

// TestSlowWriteBlocksNobody: nor does a write into a cluster of its own.
func TestSlowWriteBlocksNobody(t *testing.T) {
	for name, off := range map[string]int64{"overwrite": 1 << 20, "allocating": 4 << 20} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				f, im := neighbourhood(t)
				g := newGate()
				defer g.open()
				f.Hook(func(op faultfile.Op) {
					if op.Kind == faultfile.Write && op.Len == 1536 {
						g.pass()
					}
				}, nil)
				slow := make(chan error, 1)
				go func() { slow <- im.WriteAt(ctx, make([]byte, 1536), off, 0) }()
				synctest.Wait()
				require.EqualValues(t, 1, g.inside.Load())
				everything(t, im, off, 5<<20)
				g.open()
				require.NoError(t, <-slow)
				require.NoError(t, im.Close())
			})
		})
	}
}

// A slowDevice is a backing file whose reads of one length pass a gate.
type slowDevice struct {
	block.Device
	n int
	g *gate
}

func (d *slowDevice) ReadAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if len(p) == d.n {
		d.g.pass()
	}
	return d.Device.ReadAt(ctx, p, off, f)
}

// TestSlowCopyBlocksNobody: a write that waits for the backing file stops nobody
// who writes, copies, reads, discards or flushes beside it.
func TestSlowCopyBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		d := simdisk.New(0, simdisk.Options{})
		require.NoError(t, qcow2.Create(ctx, d, qcow2.CreateOptions{Size: 8 << 20, ClusterSize: 4096, BackingFile: "below", BackingFormat: "raw"}))
		below := blocktest.NewMemDevice(4 << 20)
		require.NoError(t, below.WriteAt(ctx, pattern(4<<20), 0, 0))
		g := newGate()
		defer g.open()
		// The slow write leaves 1,111 bytes of its cluster to be read.
		im, err := qcow2.Open(ctx, d, qcow2.Options{ReserveBytes: 64 << 10, Backing: &slowDevice{below, 1111, g}})
		require.NoError(t, err)
		require.NoError(t, im.WriteAt(ctx, make([]byte, 4096), 0, 0))
		slow := make(chan error, 1)
		const off = 1 << 20
		go func() { slow <- im.WriteAt(ctx, make([]byte, 4096-1111), off, 0) }()
		synctest.Wait()
		require.EqualValues(t, 1, g.inside.Load())
		for i := int64(1); i < 4; i++ {
			p := []byte{1}
			soon(t, "a copy beside it", func() error { return im.WriteAt(ctx, p, off+i*4096+100, 0) })
			soon(t, "a copy beside it", func() error { return im.WriteAt(ctx, p, off-i*4096+100, 0) })
		}
		everything(t, im, off, 5<<20)
		soon(t, "a read of its cluster", func() error { return im.ReadAt(ctx, make([]byte, 512), off, 0) })
		soon(t, "a discard of its cluster", func() error { return im.Discard(ctx, off, 4096, 0) })
		soon(t, "a flush", func() error { return im.Flush(ctx) })
		g.open()
		require.NoError(t, <-slow)
		require.NoError(t, im.Close())
		requireClean(t, d)
	})
}

// TestHeldWriteBlocksNobody: a write that waits for space, or several, stop nobody
// who needs none: in the same table, in the clusters beside theirs, in their own
// cluster.
func TestHeldWriteBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		p, im, used := fullImage(t)
		began := time.Now()
		const cs = 1 << 16
		held := make(chan error, 3)
		for i := range int64(2) {
			go func() { held <- im.WriteAt(ctx, []byte{1}, used+i*cs, 0) }()
		}
		// One begins where there is content, and is held in the middle.
		go func() { held <- im.WriteAt(ctx, make([]byte, 2*cs), used-cs, 0) }()
		synctest.Wait()
		require.Equal(t, 1, p.waiting())
		b := make([]byte, cs)
		soon(t, "a read of the cluster before it", func() error { return im.ReadAt(ctx, b, used-cs, 0) })
		soon(t, "a read of its own cluster", func() error { return im.ReadAt(ctx, b, used, 0) })
		soon(t, "a read of the cluster behind it", func() error { return im.ReadAt(ctx, b, used+2*cs, 0) })
		soon(t, "an overwrite of the cluster before it", func() error { return im.WriteAt(ctx, b, used-cs, 0) })
		soon(t, "a durable overwrite", func() error { return im.WriteAt(ctx, b, used-2*cs, block.FUA) })
		soon(t, "a discard of its own cluster", func() error { return im.Discard(ctx, used, cs, 0) })
		soon(t, "zeroing of its own cluster", func() error { return im.WriteZeroes(ctx, used, cs, block.MayUnmap) })
		soon(t, "zeroing of a part of the cluster before it", func() error { return im.WriteZeroes(ctx, used-cs, 512, 0) })
		soon(t, "a flush", func() error { return im.Flush(ctx) })
		require.Equal(t, began, time.Now(), "at once")
		require.Empty(t, held, "they are held")
		// What is discarded is space: the first of them goes on.
		soon(t, "a discard of the cluster before it", func() error { return im.Discard(ctx, used-2*cs, cs, 0) })
		soon(t, "a flush", func() error { return im.Flush(ctx) })
		soon(t, "one of the held writes", func() error { return <-held })
		p.raise(64 << 20)
		for range 2 {
			require.NoError(t, <-held)
		}
		require.NoError(t, im.Close())
		requireClean(t, p)
	})
}

// TestHeldCopyBlocksNobody: the same for a write that waits for space for the copy
// of a cluster, and of an L2 table, that a snapshot shares.
func TestHeldCopyBlocksNobody(t *testing.T) {
	for _, s := range subjects() {
		var cs, from int64 // with sub-clusters, where only the backing file has content
		switch s.name {
		case "snapshots":
			cs, from = 4<<10, 0
		case "snapshots, extended L2, backing":
			cs, from = 16<<10, 320<<10
		default:
			continue
		}
		m := s.make(t)
		t.Run(s.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				p := newPool(m.disk.Size() + 8*cs)
				p.Disk = m.disk
				im := m.open(t, p, qcow2.Options{ReserveBytes: cs})
				own := -cs // the last cluster that is the disk's own
				held := make(chan error, 1)
				for off := from; ; off += cs {
					require.Less(t, off, m.size-4*cs, "the pool is full")
					go func() { held <- im.WriteAt(ctx, []byte{1}, off, 0) }()
					synctest.Wait()
					if len(held) == 0 {
						break
					}
					require.NoError(t, <-held)
					own = off
				}
				require.Positive(t, own)
				require.Equal(t, 1, p.waiting())
				began := time.Now()
				b := make([]byte, 2*cs)
				soon(t, "a read", func() error { return im.ReadAt(ctx, b, own, 0) })
				soon(t, "an overwrite", func() error { return im.WriteAt(ctx, b[:512], own, 0) })
				soon(t, "a durable overwrite", func() error { return im.WriteAt(ctx, b[:512], own, block.FUA) })
				soon(t, "a flush", func() error { return im.Flush(ctx) })
				soon(t, "zeroing of a part", func() error { return im.WriteZeroes(ctx, own, 512, 0) })
				soon(t, "a copy that has its place", func() error { return im.WriteAt(ctx, b[:1], own+cs-1, 0) })
				require.Equal(t, began, time.Now(), "at once")
				require.Empty(t, held)
				soon(t, "a discard", func() error { return im.Discard(ctx, from, own-from, 0) })
				soon(t, "a flush", func() error { return im.Flush(ctx) })
				soon(t, "the held write", func() error { return <-held })
				require.NoError(t, im.Close())
			})
		})
		requireNotCorrupt(t, m.disk)
	}
}

// TestOverwritesAreInsideAtOnce: two overwrites in different regions are inside
// File.WriteAt at the same time, and so are two of one cluster and two that
// allocate.
func TestOverwritesAreInsideAtOnce(t *testing.T) {
	for name, offs := range map[string][2]int64{
		"regions": {64 << 10, 3 << 20}, "one table": {64 << 10, 128 << 10}, "one cluster": {64 << 10, 64<<10 + 2048}, "fresh": {5 << 20, 6 << 20},
	} {
		for _, flags := range []block.Flags{0, block.FUA} {
			t.Run(name+[]string{"", ", durable"}[flags&block.FUA], func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f, im := neighbourhood(t)
					g := newGate()
					defer g.open()
					f.Hook(func(op faultfile.Op) {
						if op.Kind&(faultfile.Write|faultfile.WriteSync) != 0 && op.Len == 1024 {
							g.pass()
						}
					}, nil)
					errs := make(chan error, 2)
					for _, off := range offs {
						go func() { errs <- im.WriteAt(t.Context(), make([]byte, 1024), off, flags) }()
					}
					synctest.Wait()
					require.EqualValues(t, 2, g.inside.Load(), "inside File.WriteAt")
					g.open()
					require.NoError(t, errors.Join(<-errs, <-errs))
					require.NoError(t, im.Close())
				})
			})
		}
	}
}

func requireNotCorrupt(t *testing.T, f block.File) {
	t.Helper()
	res, err := qcow2.Check(context.Background(), f, qcow2.CheckOptions{})
	require.NoError(t, err)
	require.Zero(t, res.Corruptions+res.CheckErrors, "%q", res.Problems)
}
