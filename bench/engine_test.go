package bench

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/hostfile"
	"tidemark/qcow2"
)

const (
	blockSize = 4 << 10
	diskSize  = 64 << 30
	hotSet    = 64 << 20 // what is overwritten and read
)

// A countingFile counts the syncs of a File.
type countingFile struct {
	block.File
	syncs atomic.Int64
}

func (f *countingFile) Sync() error {
	f.syncs.Add(1)
	return f.File.Sync()
}

func (f *countingFile) WriteAtSync(p []byte, off int64) (int, error) {
	f.syncs.Add(1)
	return f.File.WriteAtSync(p, off)
}

// A bed is an image in a file of the host.
type bed struct {
	*qcow2.Image
	file *countingFile
}

func newBed(b *testing.B, c qcow2.CreateOptions, o qcow2.Options) *bed {
	b.Helper()
	ctx := context.Background()
	f, err := hostfile.Create(filepath.Join(b.TempDir(), "image.qcow2"), 0, hostfile.CreateOptions{})
	check(b, err)
	c.Size = diskSize
	check(b, qcow2.Create(ctx, f, c))
	d := &bed{file: &countingFile{File: f}}
	o.RedoDir = b.TempDir()
	d.Image, err = qcow2.Open(ctx, d.file, o)
	check(b, err)
	b.Cleanup(func() {
		check(b, d.Close())
		check(b, f.Close())
	})
	return d
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// write is what a front end does: inline if that can be, else as it comes.
func (d *bed) write(ctx context.Context, p []byte, off int64) error {
	err := d.WriteAt(ctx, p, off, block.NoWait)
	if errors.Is(err, block.ErrWouldBlock) {
		err = d.WriteAt(ctx, p, off, 0)
	}
	return err
}

// fill writes the hot set, so that it is allocated and durable.
func (d *bed) fill(b *testing.B) {
	b.Helper()
	ctx := context.Background()
	p := make([]byte, 1<<20)
	for off := int64(0); off < hotSet; off += int64(len(p)) {
		check(b, d.write(ctx, p, off))
	}
	check(b, d.Flush(ctx))
}

// measure runs op and reports what it costs, and the syncs per flush if there
// are flushes.
func (d *bed) measure(b *testing.B, flushes bool, op func(i int) error) {
	b.SetBytes(blockSize)
	b.ReportAllocs()
	before, i := d.file.syncs.Load(), 0
	for b.Loop() {
		check(b, op(i))
		i++
	}
	if flushes {
		b.ReportMetric(float64(d.file.syncs.Load()-before)/float64(i), "syncs/flush")
	}
}

func BenchmarkEngine(b *testing.B) {
	ctx := context.Background()
	p := make([]byte, blockSize)
	hot := func(rng *rand.Rand) int64 { return rng.Int64N(hotSet/blockSize) * blockSize }
	b.Run("op=overwrite/bs=4k", func(b *testing.B) {
		d, rng := newBed(b, qcow2.CreateOptions{}, qcow2.Options{}), rand.New(rand.NewPCG(1, 1))
		d.fill(b)
		d.measure(b, false, func(int) error { return d.write(ctx, p, hot(rng)) })
	})
	b.Run("op=allocate/bs=4k", func(b *testing.B) {
		d := newBed(b, qcow2.CreateOptions{}, qcow2.Options{})
		d.measure(b, false, func(i int) error { return d.write(ctx, p, int64(i)<<16%diskSize) })
	})
	b.Run("op=read/bs=4k", func(b *testing.B) {
		d, rng := newBed(b, qcow2.CreateOptions{}, qcow2.Options{}), rand.New(rand.NewPCG(1, 1))
		d.fill(b)
		d.measure(b, false, func(int) error { return d.ReadAt(ctx, p, hot(rng), 0) })
	})
	b.Run("op=flush/clean", func(b *testing.B) {
		d := newBed(b, qcow2.CreateOptions{}, qcow2.Options{})
		d.fill(b)
		d.measure(b, true, func(int) error { return d.Flush(ctx) })
	})
	b.Run("op=overwrite+flush/bs=4k", func(b *testing.B) {
		d, rng := newBed(b, qcow2.CreateOptions{}, qcow2.Options{}), rand.New(rand.NewPCG(1, 1))
		d.fill(b)
		d.measure(b, true, func(int) error { return errors.Join(d.write(ctx, p, hot(rng)), d.Flush(ctx)) })
	})
	b.Run("op=allocate+flush/bs=4k", func(b *testing.B) {
		d := newBed(b, qcow2.CreateOptions{}, qcow2.Options{})
		d.measure(b, true, func(i int) error { return errors.Join(d.write(ctx, p, int64(i)<<16%diskSize), d.Flush(ctx)) })
	})
	b.Run("op=copy+flush/bs=4k", func(b *testing.B) {
		d := newBed(b, qcow2.CreateOptions{BackingFile: "base", BackingFormat: "raw"}, qcow2.Options{Backing: blocktest.NewMemDevice(1 << 30)})
		d.measure(b, true, func(i int) error { return errors.Join(d.write(ctx, p, int64(i)<<16%(1<<30)), d.Flush(ctx)) })
	})
	b.Run("op=overwrite+fua/bs=4k", func(b *testing.B) {
		d, rng := newBed(b, qcow2.CreateOptions{}, qcow2.Options{}), rand.New(rand.NewPCG(1, 1))
		d.fill(b)
		d.measure(b, true, func(int) error { return d.WriteAt(ctx, p, hot(rng), block.FUA) })
	})
	b.Run("op=overwrite/bs=4k/writers=8", func(b *testing.B) {
		d := newBed(b, qcow2.CreateOptions{}, qcow2.Options{})
		d.fill(b)
		d.together(b, hot)
	})
	b.Run("op=overwrite+flush/bs=4k/writers=8", func(b *testing.B) {
		d := newBed(b, qcow2.CreateOptions{}, qcow2.Options{})
		d.fill(b)
		before := d.file.syncs.Load()
		d.together(b, hot, func() error { return d.Flush(ctx) })
		b.ReportMetric(float64(d.file.syncs.Load()-before)/float64(b.N), "syncs/flush")
	})
}

// together has 8 writers write where place says, each followed by what else there is.
func (d *bed) together(b *testing.B, place func(*rand.Rand) int64, then ...func() error) {
	b.SetBytes(blockSize)
	b.ReportAllocs()
	b.SetParallelism(8 / runtime.GOMAXPROCS(0))
	var seed atomic.Uint64
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		rng, p := rand.New(rand.NewPCG(seed.Add(1), 1)), make([]byte, blockSize)
		for pb.Next() {
			if err := d.write(context.Background(), p, place(rng)); err != nil {
				b.Error(err)
			}
			for _, f := range then {
				if err := f(); err != nil {
					b.Error(err)
				}
			}
		}
	})
}
