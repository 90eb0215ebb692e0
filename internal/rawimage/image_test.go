package rawimage_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/faultfile"
	"tidemark/internal/rawimage"
	"tidemark/internal/simdisk"
)

func TestDevice(t *testing.T) {
	for name, o := range map[string]rawimage.Options{
		"plain":           {},
		"discards":        {DiscardsSafely: true},
		"ignores discard": {DiscardsSafely: true, IgnoreDiscard: true},
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.TestDevice(t, func(t *testing.T, size int64) block.Device {
				im, err := rawimage.Open(simdisk.New(size, simdisk.Options{}), o)
				require.NoError(t, err)
				return im
			})
		})
	}
}

// counted counts the operations of f by kind.
func counted(f *faultfile.File) map[faultfile.Kind]int {
	n := map[faultfile.Kind]int{}
	f.Hook(func(op faultfile.Op) { n[op.Kind]++ }, nil)
	return n
}

func TestReadOnly(t *testing.T) {
	d := simdisk.New(1<<20, simdisk.Options{})
	_, err := d.WriteAt([]byte{7}, 100)
	require.NoError(t, err)
	f := faultfile.New(d, faultfile.Fault{})
	count := counted(f)
	im, err := rawimage.Open(f, rawimage.Options{ReadOnly: true, DiscardsSafely: true})
	require.NoError(t, err)
	in := im.Info()
	require.True(t, in.ReadOnly)
	require.False(t, in.CanZero || in.CanDiscard || in.CanFUA)
	ctx, p := t.Context(), make([]byte, 1)
	require.NoError(t, im.ReadAt(ctx, p, 100, 0))
	require.Equal(t, byte(7), p[0])
	require.ErrorIs(t, im.WriteAt(ctx, p, 0, 0), block.ErrReadOnly)
	require.ErrorIs(t, im.WriteZeroes(ctx, 0, 1, 0), block.ErrReadOnly)
	require.ErrorIs(t, im.Discard(ctx, 0, 1, 0), block.ErrReadOnly)
	require.NoError(t, im.Flush(ctx))
	require.NoError(t, im.Close())
	require.Equal(t, map[faultfile.Kind]int{faultfile.Read: 1}, count)
}

// TestFlush: one Sync covers all that had returned, and none is made for nothing.
// The first one is made in any case: a process that died may have left something.
func TestFlush(t *testing.T) {
	f := faultfile.New(simdisk.New(1<<20, simdisk.Options{}), faultfile.Fault{})
	im, err := rawimage.Open(f, rawimage.Options{DiscardsSafely: true})
	require.NoError(t, err)
	ctx, p := t.Context(), make([]byte, 4096)
	count := counted(f)
	syncs := func() int { return count[faultfile.Sync] }
	for i, mutate := range []func() error{
		func() error { return nil },
		func() error { return im.WriteAt(ctx, p, 0, 0) },
		func() error { return im.WriteAt(ctx, p, 0, block.NoWait) },
		func() error { return im.WriteZeroes(ctx, 0, 4096, 0) },
		func() error { return im.Discard(ctx, 0, 4096, 0) },
	} {
		require.NoError(t, mutate())
		require.NoError(t, im.Flush(ctx))
		require.Equal(t, i+1, syncs())
		require.NoError(t, im.Flush(ctx))
		require.Equal(t, i+1, syncs(), "nothing new")
	}
	require.NoError(t, im.WriteAt(ctx, p, 0, block.FUA))
	require.Equal(t, 1, count[faultfile.WriteSync])
	n := syncs()
	require.NoError(t, im.WriteZeroes(ctx, 0, 4096, block.FUA))
	require.NoError(t, im.Discard(ctx, 0, 4096, block.FUA))
	require.Equal(t, n+2, syncs())
	require.NoError(t, im.WriteAt(ctx, p, 0, 0))
	n = syncs()
	require.NoError(t, im.Close())
	require.Equal(t, n+1, syncs(), "closing makes it durable")
}

// TestFailedSyncIsFinal: whoever asked for it.
func TestFailedSyncIsFinal(t *testing.T) {
	ctx, p, boom := t.Context(), make([]byte, 4096), errors.New("boom")
	for name, provoke := range map[string]func(im *rawimage.Image) error{
		"flush":       func(im *rawimage.Image) error { return im.Flush(ctx) },
		"FUA write":   func(im *rawimage.Image) error { return im.WriteAt(ctx, p, 0, block.FUA) },
		"FUA zeroes":  func(im *rawimage.Image) error { return im.WriteZeroes(ctx, 0, 4096, block.FUA) },
		"FUA discard": func(im *rawimage.Image) error { return im.Discard(ctx, 0, 4096, block.FUA) },
	} {
		f := faultfile.New(simdisk.New(1<<20, simdisk.Options{}), faultfile.Fault{At: 1, Kinds: faultfile.Syncs, Err: boom})
		im, err := rawimage.Open(f, rawimage.Options{DiscardsSafely: true})
		require.NoError(t, err)
		require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{3}, 4096), 8192, 0))
		require.ErrorIs(t, provoke(im), boom, name)
		require.ErrorIs(t, im.Poisoned(), boom, name)
		for what, err := range map[string]error{
			"flush":   im.Flush(ctx),
			"write":   im.WriteAt(ctx, p, 0, 0),
			"zeroes":  im.WriteZeroes(ctx, 0, 4096, 0),
			"discard": im.Discard(ctx, 0, 4096, 0),
		} {
			require.ErrorIs(t, err, boom, "%s, then %s", name, what)
			require.ErrorContains(t, err, "stopped accepting writes")
		}
		require.NoError(t, im.ReadAt(ctx, p, 8192, 0), "reads go on")
		require.Equal(t, byte(3), p[0])
		clear(p)
		require.ErrorIs(t, im.Close(), boom)
	}
}

// TestFailedWriteIsAnError and nothing more.
func TestFailedWriteIsAnError(t *testing.T) {
	ctx, p, boom := t.Context(), make([]byte, 4096), errors.New("boom")
	f := faultfile.New(simdisk.New(1<<20, simdisk.Options{}), faultfile.Fault{At: 1, Kinds: faultfile.Write, Err: boom})
	im, err := rawimage.Open(f, rawimage.Options{})
	require.NoError(t, err)
	require.ErrorIs(t, im.WriteAt(ctx, p, 0, 0), boom)
	require.NoError(t, im.Poisoned())
	require.NoError(t, im.WriteAt(ctx, p, 0, 0))
	require.NoError(t, im.Flush(ctx))
	require.NoError(t, im.Close())
}

// TestShrunkFile: bytes that have gone are an error, not zeroes.
func TestShrunkFile(t *testing.T) {
	d := simdisk.New(1<<20, simdisk.Options{})
	im, err := rawimage.Open(d, rawimage.Options{})
	require.NoError(t, err)
	require.NoError(t, d.Shrink(t.Context(), 1<<20, 4096))
	require.NoError(t, im.ReadAt(t.Context(), make([]byte, 4096), 0, 0))
	require.ErrorContains(t, im.ReadAt(t.Context(), make([]byte, 4096), 2048, 0), "expected 4096 bytes, found 2048")
	require.EqualValues(t, 1<<20, im.Info().Size)
}

// TestExtents are what the file says of its holes.
func TestExtents(t *testing.T) {
	holes := func(off, n int64) (bool, int64, error) { // data in every second 4 KiB
		return off/4096%2 == 1, min(4096-off%4096, n), nil
	}
	im, err := rawimage.Open(simdisk.New(1<<20, simdisk.Options{}), rawimage.Options{Data: holes})
	require.NoError(t, err)
	got, err := im.AppendExtents(t.Context(), make([]block.Extent, 0, 10), 1000, 8000)
	require.NoError(t, err)
	hole, data := block.Allocated|block.Zero, block.Allocated|block.Data
	require.Equal(t, []block.Extent{
		{Off: 1000, Len: 3096, State: hole, Host: -1},
		{Off: 4096, Len: 4096, State: data, Host: 4096},
		{Off: 8192, Len: 808, State: hole, Host: -1},
	}, got)
	got, err = im.AppendExtents(t.Context(), nil, 1000, 8000)
	require.NoError(t, err)
	require.Len(t, got, 1, "stops when it is full")

	// Pieces that continue each other are one extent.
	im, err = rawimage.Open(simdisk.New(1<<20, simdisk.Options{}), rawimage.Options{
		Data: func(_, n int64) (bool, int64, error) { return true, min(n, 512), nil },
	})
	require.NoError(t, err)
	got, err = im.AppendExtents(t.Context(), make([]block.Extent, 0, 10), 0, 4096)
	require.NoError(t, err)
	require.Equal(t, []block.Extent{{Off: 0, Len: 4096, State: data, Host: 0}}, got)

	boom := errors.New("boom")
	im, err = rawimage.Open(simdisk.New(1<<20, simdisk.Options{}), rawimage.Options{
		Data: func(int64, int64) (bool, int64, error) { return false, 0, boom },
	})
	require.NoError(t, err)
	_, err = im.AppendExtents(t.Context(), nil, 0, 4096)
	require.ErrorIs(t, err, boom)
}

// A slowFile says that zeroing is not cheap.
type slowFile struct{ *simdisk.Disk }

func (f slowFile) Info() block.FileInfo {
	in := f.Disk.Info()
	in.ZeroCheap = false
	return in
}

func TestSlowZeroes(t *testing.T) {
	im, err := rawimage.Open(slowFile{simdisk.New(1<<20, simdisk.Options{})}, rawimage.Options{})
	require.NoError(t, err)
	require.False(t, im.Info().CanFastZero)
	require.ErrorIs(t, im.WriteZeroes(t.Context(), 0, 4096, block.Fast), block.ErrNotFast)
	require.NoError(t, im.WriteZeroes(t.Context(), 0, 4096, 0))
}

// The disk may be shorter than its file, and become larger up to any size that the
// file can have.
func TestGrow(t *testing.T) {
	d := simdisk.New(1<<20, simdisk.Options{})
	_, err := rawimage.Open(d, rawimage.Options{Size: 2 << 20})
	require.ErrorContains(t, err, "its file has only")
	im, err := rawimage.Open(d, rawimage.Options{Size: 512 << 10})
	require.NoError(t, err)
	require.EqualValues(t, 512<<10, im.Info().Size)
	require.ErrorIs(t, im.WriteAt(t.Context(), []byte{1}, 512<<10, 0), block.ErrRange)
	require.NoError(t, im.Grow(t.Context(), 3<<20))
	require.NoError(t, im.WriteAt(t.Context(), []byte{1}, 3<<20-1, 0))
	require.ErrorContains(t, im.Grow(t.Context(), 1), "expected at least")
	require.EqualValues(t, 3<<20, im.Info().Size)
}
