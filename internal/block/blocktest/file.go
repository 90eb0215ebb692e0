package blocktest

import (
	"bytes"
	"context"
	"io"
	"math"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// A FileFactory makes a File of size bytes that read zero, open for writing. The
// suite closes it.
type FileFactory func(t *testing.T, size int64) block.File

// fileSize is the size the suite asks for: no power of two, several pages.
const fileSize = 1<<20 + 64<<10

// TestFile runs the conformance suite of block.File.
func TestFile(t *testing.T, create FileFactory) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, f block.File)
	}{
		{"Info", fileInfo},
		{"ReadsBack", fileReadsBack},
		{"ReadPastEnd", fileReadPastEnd},
		{"Ranges", fileRanges},
		{"WriteZeroes", fileWriteZeroes},
		{"Discard", fileDiscard},
		{"Grow", fileGrow},
		{"Shrink", fileShrink},
		{"Buffers", fileBuffers},
		{"Later", fileLater},
		{"Concurrent", fileConcurrent},
		{"Random", fileRandom},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := create(t, fileSize)
			t.Cleanup(func() { _ = f.Close() }) // most tests have closed it
			c.test(t, f)
		})
	}
	t.Run("Closed", func(t *testing.T) { fileClosed(t, create(t, fileSize)) })
	t.Run("Empty", func(t *testing.T) {
		f := create(t, 0)
		require.Zero(t, f.Size())
		n, err := f.ReadAt(make([]byte, alignOf(f)), 0)
		require.Zero(t, n)
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, f.Close())
	})
}

func fileInfo(t *testing.T, f block.File) {
	in := f.Info()
	require.Positive(t, in.Align)
	require.Zero(t, in.Align&(in.Align-1), "Align is a power of two")
	require.Positive(t, in.TearUnit)
	require.Zero(t, in.TearUnit&(in.TearUnit-1), "TearUnit is a power of two")
	require.False(t, in.ReadOnly)
	require.EqualValues(t, fileSize, f.Size())
	_, err := f.WriteAt(aligned(f, pattern(1, alignOf(f))), 0)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.Equal(t, in, f.Info(), "Info does not change")
}

func fileReadsBack(t *testing.T, f block.File) {
	a := alignOf(f)
	if f.Info().FreshZero {
		require.Equal(t, make([]byte, fileSize), readFile(t, f, 0, fileSize))
	}
	for i, write := range []func([]byte, int64) (int, error){f.WriteAt, f.WriteAtSync} {
		for _, off := range []int64{0, int64(a), 4096, 64<<10 - int64(a), fileSize - 3*int64(a)} {
			p := aligned(f, pattern(uint64(off)+uint64(i), 3*a))
			n, err := write(p, off)
			require.NoError(t, err)
			require.Equal(t, len(p), n)
			require.Equal(t, p, readFile(t, f, off, len(p)))
		}
	}
	require.NoError(t, f.Sync())
	n, err := f.WriteAt(nil, 0)
	require.NoError(t, err, "an empty write")
	require.Zero(t, n)
}

func fileReadPastEnd(t *testing.T, f block.File) {
	a := alignOf(f)
	tail := aligned(f, pattern(7, a))
	_, err := f.WriteAt(tail, fileSize-int64(a))
	require.NoError(t, err)

	p := aligned(f, pattern(8, 2*a))
	n, err := f.ReadAt(p, fileSize-int64(a))
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, a, n, "what there is")
	require.Equal(t, tail, p[:n])

	n, err = f.ReadAt(p[:a], fileSize-int64(a))
	require.Equal(t, a, n)
	if err != nil { // io.ReaderAt allows both
		require.ErrorIs(t, err, io.EOF)
	}
	for _, off := range []int64{fileSize, fileSize + 4096, 1 << 50} {
		n, err = f.ReadAt(p, off)
		require.ErrorIs(t, err, io.EOF)
		require.Zero(t, n)
	}
	for _, off := range []int64{-int64(a), fileSize - int64(a), fileSize, 1 << 50} {
		require.False(t, f.ReadNow(p, off), "at %d", off)
	}
	n, err = f.ReadAt(p, -int64(a))
	require.Error(t, err)
	require.NotErrorIs(t, err, io.EOF)
	require.Zero(t, n)
}

func fileRanges(t *testing.T, f block.File) {
	a := int64(alignOf(f))
	before := readFile(t, f, 0, fileSize)
	p := aligned(f, pattern(9, int(2*a)))
	far := math.MaxInt64 - (a - 1) // aligned, and off+n overflows
	for _, off := range []int64{-a, -2 * a, math.MinInt64, fileSize - a, fileSize, fileSize + a, far} {
		n, err := f.WriteAt(p, off)
		require.ErrorIs(t, err, block.ErrRange, "WriteAt %d", off)
		require.Zero(t, n)
		n, err = f.WriteAtSync(p, off)
		require.ErrorIs(t, err, block.ErrRange, "WriteAtSync %d", off)
		require.Zero(t, n)
		require.ErrorIs(t, f.WriteZeroes(off, 2*a), block.ErrRange, "WriteZeroes %d", off)
	}
	for _, n := range []int64{-a, fileSize + a, far} {
		require.ErrorIs(t, f.WriteZeroes(0, n), block.ErrRange, "WriteZeroes of %d", n)
		require.ErrorIs(t, f.WriteZeroes(a, n), block.ErrRange, "WriteZeroes of %d", n)
	}
	require.EqualValues(t, fileSize, f.Size(), "a refused write does not grow the file")
	require.Equal(t, before, readFile(t, f, 0, fileSize), "a refused write writes nothing")
	require.NoError(t, f.Sync(), "a refused write is no failed Sync")
}

func fileWriteZeroes(t *testing.T, f block.File) {
	a := int64(alignOf(f))
	for _, r := range []struct{ off, n int64 }{{0, a}, {a, a}, {4096 - a, 2 * a}, {3 * a, 200 << 10}, {fileSize - a, a}, {0, fileSize}} {
		want := fill(t, f, uint64(r.off+r.n))
		require.NoError(t, f.WriteZeroes(r.off, r.n))
		clear(want[r.off : r.off+r.n])
		require.True(t, bytes.Equal(want, readFile(t, f, 0, fileSize)), "zeroes at %d, %d bytes", r.off, r.n)
	}
	require.NoError(t, f.WriteZeroes(a, 0))
	require.NoError(t, f.Sync())
}

func fileDiscard(t *testing.T, f block.File) {
	const off, n = 128 << 10, 256 << 10
	want := fill(t, f, 11)
	require.NoError(t, f.Discard(off, n))
	require.NoError(t, f.Discard(off, 0))
	got := readFile(t, f, 0, fileSize)
	require.True(t, bytes.Equal(want[:off], got[:off]), "before the range")
	require.True(t, bytes.Equal(want[off+n:], got[off+n:]), "behind the range")
	require.EqualValues(t, fileSize, f.Size())

	p := aligned(f, pattern(12, n/2))
	_, err := f.WriteAt(p, off)
	require.NoError(t, err)
	require.NoError(t, f.WriteZeroes(off+n/2, n/2))
	require.True(t, bytes.Equal(p, readFile(t, f, off, n/2)), "written after the discard")
	require.True(t, bytes.Equal(make([]byte, n/2), readFile(t, f, off+n/2, n/2)), "zeroed after the discard")
}

func fileGrow(t *testing.T, f block.File) {
	ctx := t.Context()
	want := fill(t, f, 13)
	size, err := f.Grow(ctx, fileSize/2, fileSize/2)
	require.NoError(t, err)
	require.EqualValues(t, fileSize, size, "large enough already")

	const need, wanted = fileSize + 64<<10, fileSize + 512<<10
	size, err = f.Grow(ctx, need, wanted)
	require.NoError(t, err)
	require.GreaterOrEqual(t, size, int64(need))
	require.Equal(t, size, f.Size())
	require.True(t, bytes.Equal(want, readFile(t, f, 0, fileSize)), "growing keeps the content")
	fresh := int(size - fileSize)
	if f.Info().FreshZero {
		require.True(t, bytes.Equal(make([]byte, fresh), readFile(t, f, fileSize, fresh)), "fresh space reads zero")
	}
	p := aligned(f, pattern(14, fresh))
	_, err = f.WriteAt(p, fileSize)
	require.NoError(t, err)
	require.True(t, bytes.Equal(p, readFile(t, f, fileSize, fresh)))

	again, err := f.Grow(ctx, need, wanted)
	require.NoError(t, err)
	require.GreaterOrEqual(t, again, size, "asking again never shrinks")

	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, err = f.Grow(gone, need, need)
	require.NoError(t, err, "what is there needs no waiting")
}

func fileShrink(t *testing.T, f block.File) {
	ctx := t.Context()
	want := fill(t, f, 15)
	const to = 256 << 10
	require.Error(t, f.Shrink(ctx, fileSize-4096, to), "from another size")
	require.EqualValues(t, fileSize, f.Size())
	err := f.Shrink(ctx, fileSize, to)
	if err != nil {
		require.ErrorIs(t, err, block.ErrUnsupported)
		require.EqualValues(t, fileSize, f.Size())
		require.True(t, bytes.Equal(want, readFile(t, f, 0, fileSize)))
		return
	}
	require.EqualValues(t, to, f.Size())
	require.ErrorIs(t, f.Shrink(ctx, fileSize, to), block.ErrStale, "a late duplicate")
	require.ErrorIs(t, f.Shrink(ctx, to, 2*to), block.ErrRange, "Shrink does not grow")
	require.EqualValues(t, to, f.Size())
	_, err = f.WriteAt(aligned(f, pattern(1, alignOf(f))), to)
	require.ErrorIs(t, err, block.ErrRange)
	require.True(t, bytes.Equal(want[:to], readFile(t, f, 0, to)))

	size, err := f.Grow(ctx, fileSize, fileSize)
	require.NoError(t, err)
	if f.Info().FreshZero {
		require.True(t, bytes.Equal(make([]byte, size-to), readFile(t, f, to, int(size-to))), "space that comes back reads zero")
	}
}

// fileBuffers checks that the caller's memory is the caller's again afterwards.
func fileBuffers(t *testing.T, f block.File) {
	p := aligned(f, pattern(16, 8192))
	want := bytes.Clone(p)
	_, err := f.WriteAt(p, 4096)
	require.NoError(t, err)
	require.Equal(t, want, p, "a write does not change its buffer")
	clear(p)
	require.NoError(t, f.Sync())
	require.Equal(t, want, readFile(t, f, 4096, len(want)), "a write does not keep its buffer")
}

func fileConcurrent(t *testing.T, f block.File) {
	const workers, each = 4, 128 << 10
	a := int64(alignOf(f))
	var wg sync.WaitGroup
	for w := range int64(workers) {
		wg.Go(func() {
			base := w * each
			for i := range int64(32) {
				off := base + i*a%each
				p := aligned(f, pattern(uint64(w<<8|i), int(a)))
				if _, err := f.WriteAt(p, off); err != nil {
					t.Errorf("write at %d: %v", off, err)
				}
				got := aligned(f, make([]byte, a))
				if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(p, got) {
					t.Errorf("read at %d: %v, or not what this worker wrote", off, err)
				}
				if err := concurrentOp(t.Context(), f, i, base+each-a, a); err != nil {
					t.Errorf("worker %d, operation %d: %v", w, i, err)
				}
			}
		})
	}
	wg.Wait()
}

// concurrentOp is one of the operations that are not a plain read or write.
func concurrentOp(ctx context.Context, f block.File, i, off, n int64) error {
	switch i % 6 {
	case 0:
		return f.Sync()
	case 1:
		return f.WriteZeroes(off, n)
	case 2:
		return f.Discard(off, n)
	case 3:
		size := f.Size()
		_, err := f.Grow(ctx, size+4096, size+8192)
		return err
	case 4:
		_, err := f.WriteAtSync(aligned(f, pattern(uint64(i), int(n))), off)
		return err
	default:
		f.Info()
		return nil
	}
}

func fileClosed(t *testing.T, f block.File) {
	ctx := t.Context()
	require.NoError(t, f.Close())
	p := aligned(f, make([]byte, alignOf(f)))
	for name, op := range map[string]func() error{
		"ReadAt":      func() error { _, err := f.ReadAt(p, 0); return err },
		"WriteAt":     func() error { _, err := f.WriteAt(p, 0); return err },
		"WriteAtSync": func() error { _, err := f.WriteAtSync(p, 0); return err },
		"WriteZeroes": func() error { return f.WriteZeroes(0, 4096) },
		"Discard":     func() error { return f.Discard(0, 4096) },
		"Grow":        func() error { _, err := f.Grow(ctx, fileSize*2, fileSize*2); return err },
		"Shrink":      func() error { return f.Shrink(ctx, fileSize, 4096) },
		"Sync":        f.Sync,
	} {
		err := op()
		if name == "Shrink" && err != nil && !isClosed(err) {
			require.ErrorIs(t, err, block.ErrUnsupported) // it refuses anyway
			continue
		}
		require.ErrorIs(t, err, block.ErrClosed, name)
	}
	require.False(t, f.ReadNow(p, 0))
	if err := f.Close(); err != nil {
		require.ErrorIs(t, err, block.ErrClosed)
	}
	f.Info()
	f.Size()
}
