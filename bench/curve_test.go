package bench

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/qcow2"
)

// How cost grows with what is larger. Each benchmark is a curve: its cases differ in
// one size.

func sizeName(n int64) string {
	if n >= 1<<40 {
		return fmt.Sprint(n>>40, "T")
	}
	return fmt.Sprint(n>>30, "G")
}

// BenchmarkOpen opens disks that are allocated as a whole.
func BenchmarkOpen(b *testing.B) {
	for _, size := range []int64{1 << 30, 64 << 30, 1 << 40, 16 << 40} {
		b.Run("size="+sizeName(size), func(b *testing.B) {
			f := newMappedFile(size)
			b.ReportAllocs()
			for b.Loop() {
				im, err := qcow2.Open(context.Background(), f, qcow2.Options{CommitInterval: -1})
				check(b, err)
				check(b, im.Close())
			}
		})
	}
}

// overwrite writes 4 KiB at random in an image that is allocated as a whole.
func overwrite(b *testing.B, size int64, scattered bool) {
	ctx := context.Background()
	f := newMappedFile(size)
	f.scattered = scattered
	im, err := qcow2.Open(ctx, f, qcow2.Options{CommitInterval: -1})
	check(b, err)
	defer im.Close()
	p, rng := make([]byte, blockSize), rand.New(rand.NewPCG(1, 1))
	for off := int64(0); off < size; off += 32 << 20 { // what can be in the cache is
		check(b, im.WriteAt(ctx, p, off, 0))
	}
	b.SetBytes(blockSize)
	b.ReportAllocs()
	for b.Loop() {
		if err := im.WriteAt(ctx, p, rng.Int64N(size/blockSize)*blockSize, 0); err != nil {
			b.Fatal(err) // check would take most of the time that an overwrite does
		}
	}
}

var mappedSizes = []int64{1 << 30, 64 << 30, 256 << 30, 512 << 30, 1 << 40}

func BenchmarkMapped(b *testing.B) {
	for _, size := range mappedSizes {
		b.Run("size="+sizeName(size), func(b *testing.B) { overwrite(b, size, false) })
	}
}

func BenchmarkMappedScattered(b *testing.B) {
	for _, size := range mappedSizes {
		b.Run("size="+sizeName(size), func(b *testing.B) { overwrite(b, size, true) })
	}
}

// BenchmarkChain reads 4 KiB at random through chains whose base has the data.
func BenchmarkChain(b *testing.B) {
	const size = 1 << 30
	for _, n := range []int{1, 2, 4, 8, 16} {
		b.Run(fmt.Sprint("images=", n), func(b *testing.B) {
			ctx := context.Background()
			base, err := qcow2.Open(ctx, newMappedFile(size), qcow2.Options{ReadOnly: true})
			check(b, err)
			var top block.Device = base
			for range n - 1 {
				f := &hollowFile{}
				check(b, qcow2.Create(ctx, f, qcow2.CreateOptions{Size: size, BackingFile: "below", BackingFormat: "qcow2"}))
				top, err = qcow2.Open(ctx, f, qcow2.Options{ReadOnly: true, Backing: top})
				check(b, err)
			}
			p, rng := make([]byte, blockSize), rand.New(rand.NewPCG(1, 1))
			b.SetBytes(blockSize)
			b.ReportAllocs()
			for b.Loop() {
				check(b, top.ReadAt(ctx, p, rng.Int64N(size/blockSize)*blockSize, 0))
			}
		})
	}
}

// BenchmarkIdle has many disks open, of 100 GiB, in which something was written, and
// tells what each of them costs.
func BenchmarkIdle(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprint("disks=", n), func(b *testing.B) {
			var bytes, routines float64
			for b.Loop() {
				bytes, routines = idle(b, n)
			}
			b.ReportMetric(bytes, "B/disk")
			b.ReportMetric(routines, "goroutines/disk")
		})
	}
}

// idle opens n disks, writes into each, flushes, and returns what one has then.
func idle(t testing.TB, n int) (bytes, routines float64) {
	ctx := context.Background()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	started := runtime.NumGoroutine()
	var list []*qcow2.Image
	files := make([]hollowFile, n)
	for i := range files {
		f := &files[i]
		require.NoError(t, qcow2.Create(ctx, f, qcow2.CreateOptions{Size: 100 << 30}))
		im, err := qcow2.Open(ctx, f, qcow2.Options{CommitInterval: -1})
		require.NoError(t, err)
		require.NoError(t, im.WriteAt(ctx, make([]byte, 1<<20), 0, 0))
		require.NoError(t, im.Flush(ctx))
		list = append(list, im)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	bytes = float64(after.HeapAlloc) - float64(before.HeapAlloc)
	for i := range files {
		bytes -= float64(files[i].bytes())
	}
	routines = float64(runtime.NumGoroutine() - started)
	for _, im := range list {
		require.NoError(t, im.Close())
	}
	return bytes / float64(n), routines / float64(n)
}

// metadata uses all of a large disk that is allocated as a whole, and returns what the
// engine keeps of its metadata in memory, in bytes.
func metadata(t testing.TB, size int64) float64 {
	ctx := context.Background()
	f := newMappedFile(size)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	im, err := qcow2.Open(ctx, f, qcow2.Options{CommitInterval: -1})
	require.NoError(t, err)
	p := make([]byte, blockSize)
	for off := int64(0); off < size; off += size >> 15 {
		require.NoError(t, im.ReadAt(ctx, p, off, 0))
		if off%(size>>11) == 0 { // counts are needed for what is freed
			require.NoError(t, im.Discard(ctx, off, clusterSize, 0))
		}
	}
	require.NoError(t, im.Flush(ctx))
	// What is freed is so in the background, which makes garbage: the least of several is
	// nearest to what is kept.
	bytes := math.Inf(1)
	for range 5 {
		runtime.GC()
		runtime.ReadMemStats(&after)
		bytes = min(bytes, float64(after.HeapAlloc)-float64(before.HeapAlloc)-float64(f.bytes()))
	}
	require.NoError(t, im.Close())
	return bytes
}

// BenchmarkMetadata tells what the metadata of a disk of 16 TiB takes, all of which is
// used.
func BenchmarkMetadata(b *testing.B) {
	var bytes float64
	for b.Loop() {
		bytes = metadata(b, 16<<40)
	}
	b.ReportMetric(bytes, "B")
}

// TestMappedImage: what is computed is an image that every check finds clean, and that
// goes on to be one when it is written.
func TestMappedImage(t *testing.T) {
	for _, scattered := range []bool{false, true} {
		mappedImage(t, scattered)
	}
}

func mappedImage(t *testing.T, scattered bool) {
	ctx := t.Context()
	f := newMappedFile(3<<30 + 512)
	f.scattered = scattered
	im, err := qcow2.Open(ctx, f, qcow2.Options{})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(ctx, make([]byte, 1<<20), 1<<30, 0))
	require.NoError(t, im.Discard(ctx, 2<<30, 1<<20, 0))
	require.NoError(t, im.Close())
	r, err := qcow2.Check(ctx, f, qcow2.CheckOptions{})
	require.NoError(t, err)
	require.True(t, r.Clean(), "%q", r.Problems)
}

// TestIdleDisks: what a disk costs that nobody uses.
func TestIdleDisks(t *testing.T) {
	bytes, routines := idle(t, 50)
	t.Logf("measured: an idle disk of 100 GiB takes %.1f KiB", bytes/1024)
	require.Less(t, bytes, 64.0*1024)
	require.Less(t, routines, 1.0)
}
