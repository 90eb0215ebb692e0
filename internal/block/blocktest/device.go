package blocktest

import (
	"bytes"
	"context"
	"math"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// A DeviceFactory makes a Device of size bytes that read zero, open for writing.
// The suite closes it.
type DeviceFactory func(t *testing.T, size int64) block.Device

// deviceSize is the size the suite asks for: not a multiple of a usual cluster.
const deviceSize = 2<<20 + 192<<10

// TestDevice runs the conformance suite of block.Device. What the Device says it
// cannot do (CanFUA, CanDiscard, ...) must be refused with ErrUnsupported or
// work; what it says it can must work.
func TestDevice(t *testing.T, create DeviceFactory) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, d block.Device)
	}{
		{"Info", deviceInfo},
		{"ReadsBack", deviceReadsBack},
		{"Ranges", deviceRanges},
		{"WriteZeroes", deviceWriteZeroes},
		{"Discard", deviceDiscard},
		{"Extents", deviceExtents},
		{"NoWait", deviceNoWait},
		{"Later", deviceLater},
		{"Buffers", deviceBuffers},
		{"Concurrent", deviceConcurrent},
		{"Random", deviceRandom},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := create(t, deviceSize)
			t.Cleanup(func() { _ = d.Close() }) // most tests have closed it
			c.test(t, d)
		})
	}
	t.Run("Closed", func(t *testing.T) { deviceClosed(t, create(t, deviceSize)) })
}

func deviceInfo(t *testing.T, d block.Device) {
	in := d.Info()
	require.EqualValues(t, deviceSize, in.Size)
	require.Positive(t, in.MinBlock)
	require.Zero(t, in.MinBlock&(in.MinBlock-1), "MinBlock is a power of two")
	require.GreaterOrEqual(t, in.PreferredBlock, in.MinBlock)
	require.GreaterOrEqual(t, in.MaxTransfer, 0)
	require.False(t, in.ReadOnly)
	require.Equal(t, in.CanFlush, in.CanFUA, "Flush and FUA belong together")
	if in.CanFastZero {
		require.True(t, in.CanZero)
	}
}

func deviceReadsBack(t *testing.T, d block.Device) {
	ctx := t.Context()
	require.True(t, bytes.Equal(make([]byte, deviceSize), readDevice(t, d, 0, deviceSize)), "a new disk reads zero")
	unit := int64(unitOf(d))
	for i, off := range []int64{0, unit, 4096, 64<<10 - unit, 1 << 20, deviceSize - 3*unit} {
		p := pattern(uint64(off), int(3*unit))
		require.NoError(t, d.WriteAt(ctx, p, off, fuaFlag(d, i%2 == 1)))
		require.Equal(t, p, readDevice(t, d, off, len(p)))
	}
	require.NoError(t, d.Flush(ctx))
	require.NoError(t, d.WriteAt(ctx, nil, 0, 0), "an empty write")
	require.NoError(t, d.ReadAt(ctx, nil, deviceSize, 0), "an empty read at the end")
}

func deviceRanges(t *testing.T, d block.Device) {
	ctx := t.Context()
	unit := int64(unitOf(d))
	p := pattern(9, int(2*unit))
	far := math.MaxInt64 - (unit - 1) // aligned, and off+n overflows
	for _, off := range []int64{-unit, -2 * unit, math.MinInt64, deviceSize - unit, deviceSize, deviceSize + unit, far} {
		require.ErrorIs(t, d.ReadAt(ctx, bytes.Clone(p), off, 0), block.ErrRange, "ReadAt %d", off)
		require.ErrorIs(t, d.WriteAt(ctx, p, off, 0), block.ErrRange, "WriteAt %d", off)
		requireRange(t, d.WriteZeroes(ctx, off, 2*unit, 0), d.Info().CanZero, "WriteZeroes %d", off)
		requireRange(t, d.Discard(ctx, off, 2*unit, 0), d.Info().CanDiscard, "Discard %d", off)
		_, err := d.AppendExtents(ctx, nil, off, 2*unit)
		require.ErrorIs(t, err, block.ErrRange, "AppendExtents %d", off)
	}
	for _, n := range []int64{-unit, deviceSize + unit, far} {
		requireRange(t, d.WriteZeroes(ctx, unit, n, 0), d.Info().CanZero, "WriteZeroes of %d", n)
		requireRange(t, d.Discard(ctx, unit, n, 0), d.Info().CanDiscard, "Discard of %d", n)
		_, err := d.AppendExtents(ctx, nil, unit, n)
		require.ErrorIs(t, err, block.ErrRange, "AppendExtents of %d", n)
	}
	require.EqualValues(t, deviceSize, d.Info().Size)
	require.True(t, bytes.Equal(make([]byte, deviceSize), readDevice(t, d, 0, deviceSize)), "a refused write writes nothing")
}

// requireRange allows what a Device cannot do to be refused for that reason.
func requireRange(t *testing.T, err error, can bool, msg string, args ...any) {
	t.Helper()
	require.Error(t, err, append([]any{msg}, args...)...)
	if can {
		require.ErrorIs(t, err, block.ErrRange, append([]any{msg}, args...)...)
	}
}

func deviceWriteZeroes(t *testing.T, d block.Device) {
	ctx, unit := t.Context(), int64(unitOf(d))
	if !d.Info().CanZero {
		require.ErrorIs(t, d.WriteZeroes(ctx, 0, unit, 0), block.ErrUnsupported)
		return
	}
	ranges := []struct{ off, n int64 }{{0, unit}, {4096 - unit, 2 * unit}, {3 * unit, 200 << 10}, {64 << 10, 128 << 10}, {deviceSize - unit, unit}, {0, deviceSize}}
	for i, r := range ranges {
		want := pattern(uint64(i), deviceSize)
		require.NoError(t, d.WriteAt(ctx, want, 0, 0))
		f := fuaFlag(d, i%2 == 1)
		if i%3 == 1 {
			f |= block.MayUnmap
		}
		require.NoError(t, d.WriteZeroes(ctx, r.off, r.n, f))
		clear(want[r.off : r.off+r.n])
		require.True(t, bytes.Equal(want, readDevice(t, d, 0, deviceSize)), "zeroes at %d, %d bytes", r.off, r.n)
	}
	require.NoError(t, d.WriteZeroes(ctx, unit, 0, 0))

	want := pattern(99, deviceSize)
	require.NoError(t, d.WriteAt(ctx, want, 0, 0))
	switch err := d.WriteZeroes(ctx, 0, 128<<10, block.Fast); {
	case err == nil:
		require.True(t, d.Info().CanFastZero, "Fast worked, but CanFastZero is not set")
		clear(want[:128<<10])
	default:
		require.ErrorIs(t, err, block.ErrNotFast)
	}
	require.True(t, bytes.Equal(want, readDevice(t, d, 0, deviceSize)), "Fast: zeroes, or nothing done")
}

func deviceDiscard(t *testing.T, d block.Device) {
	ctx, unit := t.Context(), int64(unitOf(d))
	if !d.Info().CanDiscard {
		require.ErrorIs(t, d.Discard(ctx, 0, unit, 0), block.ErrUnsupported)
		return
	}
	want := pattern(21, deviceSize)
	require.NoError(t, d.WriteAt(ctx, want, 0, 0))
	for i, r := range []struct{ off, n int64 }{{0, unit}, {4096 - unit, 2 * unit}, {64 << 10, 300 << 10}, {deviceSize - 64<<10, 64 << 10}, {5 * unit, 0}} {
		require.NoError(t, d.Discard(ctx, r.off, r.n, fuaFlag(d, i%2 == 1)))
		got := readDevice(t, d, 0, deviceSize)
		requireOldOrZero(t, want[r.off:r.off+r.n], got[r.off:r.off+r.n])
		copy(want[r.off:r.off+r.n], got[r.off:])
		require.True(t, bytes.Equal(want, got), "outside the range at %d, %d bytes", r.off, r.n)
	}
	require.NoError(t, d.Flush(ctx))
	require.True(t, bytes.Equal(want, readDevice(t, d, 0, deviceSize)), "what a discard left stays")
	require.NoError(t, d.WriteAt(ctx, pattern(22, 4096), 64<<10, 0))
	require.Equal(t, pattern(22, 4096), readDevice(t, d, 64<<10, 4096))
}

func requireOldOrZero(t *testing.T, old, got []byte) {
	t.Helper()
	for i := range got {
		if got[i] != 0 && got[i] != old[i] {
			t.Fatalf("discarded byte %d of the range: expected %#x or 0, found %#x", i, old[i], got[i])
		}
	}
}

func deviceExtents(t *testing.T, d block.Device) {
	ctx := t.Context()
	checkExtents(t, d, make([]byte, deviceSize), 0, deviceSize)
	want := make([]byte, deviceSize)
	for _, off := range []int64{0, 128 << 10, 1 << 20, deviceSize - 64<<10} {
		p := pattern(uint64(off), 64<<10)
		require.NoError(t, d.WriteAt(ctx, p, off, 0))
		copy(want[off:], p)
		checkExtents(t, d, want, 0, deviceSize)
	}
	unit := int64(unitOf(d))
	for _, r := range []struct{ off, n int64 }{{0, unit}, {unit, deviceSize - unit}, {64<<10 - unit, 2 * unit}, {deviceSize - unit, unit}} {
		checkExtents(t, d, want, r.off, r.n)
	}
	ex, err := d.AppendExtents(ctx, nil, unit, 0)
	require.NoError(t, err, "an empty range")
	require.Empty(t, ex)

	// What dst holds already stays; with a full dst there is still progress.
	first := block.Extent{Off: -5, Len: 3}
	ex, err = d.AppendExtents(ctx, []block.Extent{first}, 0, deviceSize)
	require.NoError(t, err)
	require.Equal(t, first, ex[0])
	require.Greater(t, len(ex), 1)
}

// checkExtents asks until the range is covered, as a client does, and compares
// the answer with the content.
func checkExtents(t *testing.T, d block.Device, want []byte, off, n int64) {
	t.Helper()
	end := off + n
	for off < end {
		dst := make([]block.Extent, 0, 3)
		ex, err := d.AppendExtents(t.Context(), dst, off, end-off)
		require.NoError(t, err)
		require.NotEmpty(t, ex, "AppendExtents(%d, %d) makes progress", off, end-off)
		for i, e := range ex {
			require.Equal(t, off, e.Off, "extents without gaps, in order")
			require.Positive(t, e.Len)
			require.LessOrEqual(t, e.End(), end)
			if e.State.Has(block.Zero) {
				require.Equal(t, -1, nonZero(want[e.Off:e.End()]), "extent %+v says zero", e)
			}
			if !e.State.Has(block.Data) {
				require.EqualValues(t, -1, e.Host, "extent %+v has no data, hence no place", e)
				require.True(t, e.State.Has(block.Zero) || e.Depth > 0 || nonZero(want[e.Off:e.End()]) < 0, "extent %+v has no data but content", e)
			}
			if i > 0 {
				requireDifferent(t, ex[i-1], e)
			}
			off = e.End()
		}
	}
	require.Equal(t, end, off, "the last extent ends with the range")
}

// requireDifferent: neighbours that differ in nothing are one extent. Their
// places in the File differ where one does not go on where the other ends.
func requireDifferent(t *testing.T, a, b block.Extent) {
	t.Helper()
	goesOn := a.Host < 0 && b.Host < 0 || a.Host >= 0 && b.Host == a.Host+a.Len
	require.False(t, a.State == b.State && a.Depth == b.Depth && goesOn, "%+v and %+v are one extent", a, b)
}

func nonZero(p []byte) int {
	for i, b := range p {
		if b != 0 {
			return i
		}
	}
	return -1
}

// deviceNoWait: with NoWait everything works, or answers ErrWouldBlock with
// nothing done and works without it.
func deviceNoWait(t *testing.T, d block.Device) {
	ctx := t.Context()
	want := make([]byte, deviceSize)
	for i := range 32 {
		off := int64(i) * 68 << 10 % (deviceSize - 8192)
		off -= off % int64(unitOf(d))
		p := pattern(uint64(i), 8192)
		f := block.NoWait | fuaFlag(d, i%4 == 3)
		err := d.WriteAt(ctx, p, off, f)
		if err != nil {
			require.ErrorIs(t, err, block.ErrWouldBlock)
			require.Equal(t, want[off:off+8192], readDevice(t, d, off, 8192), "nothing done")
			require.NoError(t, d.WriteAt(ctx, p, off, f&^block.NoWait))
		}
		copy(want[off:], p)
		got := make([]byte, 8192)
		if err := d.ReadAt(ctx, got, off, block.NoWait); err != nil {
			require.ErrorIs(t, err, block.ErrWouldBlock)
			got = readDevice(t, d, off, 8192)
		}
		require.Equal(t, p, got)
	}
	require.True(t, bytes.Equal(want, readDevice(t, d, 0, deviceSize)))
}

func deviceBuffers(t *testing.T, d block.Device) {
	p := pattern(16, 8192)
	require.NoError(t, d.WriteAt(t.Context(), p, 4096, 0))
	require.Equal(t, pattern(16, 8192), p, "a write does not change its buffer")
	clear(p)
	require.NoError(t, d.Flush(t.Context()))
	require.Equal(t, pattern(16, 8192), readDevice(t, d, 4096, 8192), "a write does not keep its buffer")
}

// deviceConcurrent lets workers write neighbouring blocks, so that several
// share a cluster, a table and an allocation.
func deviceConcurrent(t *testing.T, d block.Device) {
	const workers, rounds, blockSize = 4, 40, 4096
	ctx := t.Context()
	want := make([]byte, deviceSize)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range rounds {
				off := int64(i*workers+w) * blockSize // of this worker alone
				p := want[off : off+blockSize]
				copy(p, pattern(uint64(off), blockSize))
				if err := d.WriteAt(ctx, p, off, fuaFlag(d, i%8 == 0)); err != nil {
					t.Errorf("write at %d: %v", off, err)
				}
				if err := deviceOp(ctx, d, i, off, p); err != nil {
					t.Errorf("worker %d, round %d: %v", w, i, err)
				}
				got := make([]byte, blockSize)
				if err := d.ReadAt(ctx, got, off, 0); err != nil || !bytes.Equal(p, got) {
					t.Errorf("read at %d: %v, or not what this worker left", off, err)
				}
			}
		})
	}
	wg.Wait()
	require.Equal(t, -1, firstDifference(want, readDevice(t, d, 0, deviceSize)), "first byte that differs")
}

func deviceOp(ctx context.Context, d block.Device, i int, off int64, p []byte) error {
	switch in := d.Info(); i % 4 {
	case 0:
		return d.Flush(ctx)
	case 1:
		if !in.CanZero {
			return nil
		}
		clear(p)
		return d.WriteZeroes(ctx, off, int64(len(p)), block.MayUnmap)
	case 2:
		_, err := d.AppendExtents(ctx, nil, 0, in.Size)
		return err
	default:
		if !in.CanDiscard {
			return nil
		}
		if err := d.Discard(ctx, off, int64(len(p)), 0); err != nil {
			return err
		}
		return d.WriteAt(ctx, p, off, 0)
	}
}

func deviceClosed(t *testing.T, d block.Device) {
	ctx := t.Context()
	require.NoError(t, d.WriteAt(ctx, pattern(1, 4096), 0, 0))
	require.NoError(t, d.Close())
	for name, err := range map[string]error{
		"ReadAt":      d.ReadAt(ctx, make([]byte, 4096), 0, 0),
		"WriteAt":     d.WriteAt(ctx, make([]byte, 4096), 0, 0),
		"WriteZeroes": d.WriteZeroes(ctx, 0, 4096, 0),
		"Discard":     d.Discard(ctx, 0, 4096, 0),
		"Flush":       d.Flush(ctx),
	} {
		require.ErrorIs(t, err, block.ErrClosed, name)
	}
	_, err := d.AppendExtents(ctx, nil, 0, 4096)
	require.ErrorIs(t, err, block.ErrClosed, "AppendExtents")
	if err := d.Close(); err != nil {
		require.ErrorIs(t, err, block.ErrClosed)
	}
	d.Info()
}
