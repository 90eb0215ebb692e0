package qcow2_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// inItsBound is an image in a file that cannot become larger than the image's bound.
func inItsBound(t *testing.T, c qcow2.CreateOptions, o qcow2.Options) (*simdisk.Disk, *qcow2.Image) {
	t.Helper()
	g, err := c.Geometry()
	require.NoError(t, err)
	d := simdisk.New(0, simdisk.Options{Foreign: true, DiscardForeign: true, MaxSize: qcow2.Bound(g, c.Size)})
	require.NoError(t, qcow2.Create(t.Context(), d, c))
	im, err := qcow2.Open(t.Context(), d, o)
	require.NoError(t, err)
	return d, im
}

// TestChurnOutgrowsTheVolume (Proxmox bug 6543): weeks of discards and rewrites leave
// holes, the image grows for them, and one day the volume that was measured for it is
// full. Here it has no byte more than the bound.
func TestChurnOutgrowsTheVolume(t *testing.T) {
	for _, c := range []qcow2.CreateOptions{
		{Size: 2<<20 + sector, ClusterSize: 4096},
		{Size: 512 << 10, ClusterSize: 512, RefcountBits: 64},
		{Size: 4 << 20},
	} {
		for _, ring := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d, ring %v", c.ClusterSize, ring), func(t *testing.T) {
				_, rng := testenv.Seed(t)
				o := qcow2.Options{CommitInterval: -1}
				if ring {
					o.RedoDir = t.TempDir()
				}
				d, im := inItsBound(t, c, o)
				ctx, want := t.Context(), make([]byte, c.Size)
				for i := range 1200 {
					if i%300 == 299 {
						require.NoError(t, im.Close())
						var err error
						im, err = qcow2.Open(ctx, d, o)
						require.NoError(t, err)
					}
					off := rng.Int64N(c.Size)
					n := min(1+rng.Int64N(c.Size/8), c.Size-off)
					p := want[off : off+n]
					var err error
					switch rng.IntN(8) {
					case 0, 1:
						err = im.Discard(ctx, off, n, 0)
						require.NoError(t, im.ReadAt(ctx, p, off, 0))
					case 2:
						clear(p)
						err = im.WriteZeroes(ctx, off, n, qcow2.MayUnmap)
					case 3:
						err = im.Flush(ctx)
					default:
						p[0], p[len(p)-1] = byte(rng.Uint32()), byte(rng.Uint32())
						err = im.WriteAt(ctx, p, off, 0)
					}
					require.NoError(t, err, "request %d", i)
				}
				require.NoError(t, im.WriteAt(ctx, want, 0, 0), "and all of it at last")
				requireRead(t, im, want, 0)
				require.NoError(t, im.Close())
				requireClean(t, d)
			})
		}
	}
}

// TestFilledToTheLastByte (Incus PR 3537): a volume that was sized without the image's
// own needs is full before the disk is. In the bound every byte can be written, in
// whatever order.
func TestFilledToTheLastByte(t *testing.T) {
	for _, c := range []qcow2.CreateOptions{
		{Size: 1}, {Size: 3 * sector, ClusterSize: 512}, {Size: 1<<20 + 5, ClusterSize: 512, RefcountBits: 64},
		{Size: 2<<20 - 1, ClusterSize: 2048, Version: 2}, {Size: 8<<20 + 7*sector, ClusterSize: 8192, RefcountBits: 1},
		{Size: 16<<20 + 1}, {Size: 9<<20 + sector, ClusterSize: 2 << 20},
	} {
		cs := c.ClusterSize
		if cs == 0 {
			cs = 1 << 16
		}
		clusters := (c.Size + cs - 1) / cs
		for order, place := range map[string]func(i int64) int64{
			"upwards":   func(i int64) int64 { return i },
			"downwards": func(i int64) int64 { return clusters - 1 - i },
			"scattered": func(i int64) int64 { return i * 7919 % clusters }, // a prime that divides no clusters here
		} {
			t.Run(fmt.Sprintf("%d in %d, %s", c.Size, cs, order), func(t *testing.T) {
				d, im := inItsBound(t, c, qcow2.Options{})
				want := make([]byte, c.Size)
				for i := range clusters {
					off := place(i) * cs
					p := want[off:min(off+cs, c.Size)]
					copy(p, bytes.Repeat([]byte{byte(i) | 1}, len(p)))
					require.NoError(t, im.WriteAt(t.Context(), p, off, 0), "cluster %d, number %d of %d", place(i), i, clusters)
				}
				require.NoError(t, im.Flush(t.Context()))
				requireRead(t, im, want, 0)
				require.NoError(t, im.Close())
				requireClean(t, d)
			})
		}
	}
}

// TestClustersStrandedAtEachFlush (cloud-hypervisor PR 8597): every flush leaves a
// cluster behind that nobody uses and no check counts as leaked. Overwrites and flushes
// take no space at all, and new data what it needs.
func TestClustersStrandedAtEachFlush(t *testing.T) {
	const cs, n = 4096, 300
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 64 << 20, ClusterSize: cs})
	im, err := qcow2.Open(ctx, d, qcow2.Options{CommitInterval: -1, ReserveBytes: 64 << 10, RedoDir: t.TempDir()})
	require.NoError(t, err)
	p := bytes.Repeat([]byte{1}, cs)
	for i := range int64(n) {
		require.NoError(t, im.WriteAt(ctx, p, i*cs, 0))
		require.NoError(t, im.Flush(ctx))
	}
	im.WaitIdle()
	before := im.Stats()
	require.LessOrEqual(t, before.Used(), int64(n+8)*cs, "data, one L2 table, and what an empty image has")
	for i := range int64(n) {
		require.NoError(t, im.WriteAt(ctx, p, i*cs, 0))
		require.NoError(t, im.Flush(ctx))
	}
	require.Equal(t, before, im.Stats(), "overwrites")
	for i := range int64(n) { // the same space again and again
		require.NoError(t, im.Discard(ctx, i%7*cs, cs, 0))
		require.NoError(t, im.WriteAt(ctx, p, i%7*cs, 0))
		require.NoError(t, im.Flush(ctx))
	}
	im.WaitIdle()
	require.LessOrEqual(t, im.Stats().End, before.End+64<<10, "what was dropped is used again")
	require.NoError(t, im.Close())
	require.LessOrEqual(t, d.Size(), int64(n+8)*cs+64<<10)
	requireClean(t, d)
}

// TestOpenGrowsNothing (cloud-hypervisor commit 29720f07a): a small file that claims a
// disk of 1 TiB became 32 MiB large when it was opened. Opening writes nothing, grows
// nothing, and takes memory for what the file has, not for what it claims.
func TestOpenGrowsNothing(t *testing.T) {
	img := testenv.Tool(t, "qemu-img")
	for _, options := range []string{"cluster_size=64k", "cluster_size=4k", "extended_l2=on,cluster_size=64k", "compat=0.10,cluster_size=64k"} {
		t.Run(options, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image.qcow2")
			size := "1T"
			if options == "cluster_size=4k" {
				size = "64G"
			}
			testenv.Run(t, img, "create", "-q", "-f", "qcow2", "-o", options, path, size)
			d, err := simdisk.Import(path, simdisk.Options{})
			require.NoError(t, err)
			before := d.State()
			f := faultfile.New(d, faultfile.Fault{})
			var changed []faultfile.Op
			f.Hook(func(op faultfile.Op) {
				if op.Kind&(faultfile.Mutations&^faultfile.Grow) != 0 {
					changed = append(changed, op)
				}
			}, nil)
			var start, end runtime.MemStats
			runtime.ReadMemStats(&start)
			im, err := qcow2.Open(t.Context(), f, qcow2.Options{})
			require.NoError(t, err)
			runtime.ReadMemStats(&end)
			require.Less(t, end.TotalAlloc-start.TotalAlloc, uint64(4*before.Size()+1<<20))
			require.NoError(t, im.ReadAt(t.Context(), make([]byte, 4096), im.Info().Size-4096, 0))
			<-im.Settled()
			require.Empty(t, changed)
			f.Hook(nil, nil)
			require.NoError(t, im.Close())
			h := im.Header()
			require.Less(t, d.Size(), before.Size()+h.ClusterSize(), "the last cluster may be made whole")
		})
	}
}

// TestChurnOutgrowsTheVolumeOfOneThatDies (Proxmox bug 6543, rule 15, 17, 18): as
// TestChurnOutgrowsTheVolume, and the process dies now and then. What it had reserved
// may become tables again, and what it had freed in memory only is given back.
func TestChurnOutgrowsTheVolumeOfOneThatDies(t *testing.T) {
	_, rng := testenv.Seed(t)
	c := qcow2.CreateOptions{Size: 2<<20 + sector, ClusterSize: 4096}
	o := qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir()}
	d, im := inItsBound(t, c, o)
	ctx, want := t.Context(), make([]byte, c.Size)
	for i := range 1200 {
		if i%200 == 199 {
			im.WaitIdle()
			var err error
			im, err = qcow2.Open(ctx, d, o)
			require.NoError(t, err)
			<-im.Settled()
		}
		off := rng.Int64N(c.Size)
		n := min(1+rng.Int64N(c.Size/8), c.Size-off)
		p := want[off : off+n]
		var err error
		switch rng.IntN(8) {
		case 0, 1:
			err = im.Discard(ctx, off, n, 0)
			require.NoError(t, im.ReadAt(ctx, p, off, 0))
		case 2:
			err = im.Flush(ctx)
		default:
			p[0], p[len(p)-1] = byte(rng.Uint32()), byte(rng.Uint32())
			err = im.WriteAt(ctx, p, off, 0)
		}
		require.NoError(t, err, "request %d", i)
	}
	require.NoError(t, im.WriteAt(ctx, want, 0, 0), "and all of it at last")
}
