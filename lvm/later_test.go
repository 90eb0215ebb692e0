package lvm

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// told is a block.Later that passes on what it is told.
type told chan bool

func (c told) Ended(ok bool) { c <- ok }

func openLoop(t *testing.T, size int64) *File {
	f, err := OpenDevice(testenv.Loop(t, size).Path, DeviceOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	require.NotNil(t, theQueue(), "the kernel has a queue here")
	return f
}

// TestWritesAreBegun: writes that were begun together are where they belong when they
// have ended, those that the queue has no place for are not begun, and Close waits.
func TestWritesAreBegun(t *testing.T) {
	f := openLoop(t, 8*mib)
	const n = 2 * queueDepth
	to := make(told, n)
	begun := 0
	blocks := make([][]byte, n)
	for i := range blocks {
		blocks[i] = alignedBuffer(4*kib, 4*kib)
		copy(blocks[i], bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 2*kib))
		if f.WriteLater(blocks[i], int64(i)*4*kib, to) {
			begun++
			continue
		}
		_, err := f.WriteAt(blocks[i], int64(i)*4*kib)
		require.NoError(t, err)
	}
	require.GreaterOrEqual(t, begun, queueDepth)
	for range begun {
		require.True(t, <-to)
	}
	p := alignedBuffer(4*kib, 4*kib)
	for i, want := range blocks {
		_, err := f.ReadAt(p, int64(i)*4*kib)
		require.NoError(t, err)
		require.Equal(t, want, p, "block %d", i)
	}
	q := theQueue()
	q.mu.Lock()
	require.Len(t, q.free, queueDepth, "every place was given back")
	q.mu.Unlock()
	require.Zero(t, q.inFlight.Load())
	require.Empty(t, f.blocks.held)

	require.True(t, f.WriteLater(blocks[0], 0, to))
	require.NoError(t, f.Close())
	f.blocks.mu.Lock()
	defer f.blocks.mu.Unlock()
	require.Empty(t, f.blocks.held, "Close has waited")
	require.True(t, <-to)
}

// TestNotBegun: what is no whole blocks of aligned memory, or is beside somebody who
// modifies a block, is not begun, and nothing of it stays behind.
func TestNotBegun(t *testing.T) {
	f := openLoop(t, mib)
	to := make(told, 1)
	p := alignedBuffer(8*kib, 4*kib)
	require.False(t, f.WriteLater(p[:4*kib], 100, to))
	require.False(t, f.WriteLater(p[:100], 0, to))
	require.False(t, f.WriteLater(p[1:4*kib+1], 0, to))
	require.False(t, f.WriteLater(nil, 0, to))
	r := f.blocks.lock(512, 1024, true)
	require.False(t, f.WriteLater(p, 0, to))
	require.True(t, f.WriteLater(p, 4*kib, to))
	require.True(t, <-to)
	f.blocks.unlock(r)
	require.Empty(t, f.blocks.held)
	f.Freeze(ErrUnusable)
	require.False(t, f.WriteLater(p, 0, to))
}

// TestBegunAndFailed: what the device, or the queue, refuses is told.
func TestBegunAndFailed(t *testing.T) {
	f := openLoop(t, mib)
	to := make(told, 1)
	p := alignedBuffer(4*kib, 4*kib)
	for _, off := range []int64{1, mib} {
		r, ok := f.blocks.tryLock(0, 4*kib)
		require.True(t, ok)
		require.True(t, theQueue().begin(f.devices[0], p, off, &laterWrite{f, r, to}))
		require.False(t, <-to, "at %d", off)
	}
	require.Empty(t, f.blocks.held)
	require.Zero(t, theQueue().inFlight.Load())
}
