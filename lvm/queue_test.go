package lvm

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
)

// TestManyTransfers: what many write and read at a time, more of it than the queue has
// places for, is where it belongs, and so is what comes alone.
func TestManyTransfers(t *testing.T) {
	d := testenv.Loop(t, 64*mib)
	f, err := OpenDevice(d.Path, DeviceOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	require.NotNil(t, theQueue(), "the kernel has a queue here")
	const writers, each = 2 * queueDepth, 16
	block := func(i, k int) ([]byte, int64) {
		p := alignedBuffer(4*kib, 4*kib)
		n := i*each + k
		for at := 0; at < len(p); at += 8 {
			binary.LittleEndian.PutUint64(p[at:], uint64(n)+1)
		}
		return p, int64(n) * 4 * kib % (64 * mib)
	}
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for k := range each {
				p, off := block(i, k)
				_, err := f.WriteAt(p, off)
				found := alignedBuffer(len(p), len(p))
				if err == nil {
					_, err = f.ReadAt(found, off)
				}
				if err != nil || !bytes.Equal(p, found) {
					t.Errorf("block %d of writer %d: %v", k, i, err)
				}
			}
		})
	}
	wg.Wait()
	p, off := block(1, 1)
	_, err = f.WriteAt(p, off)
	require.NoError(t, err)
	q := theQueue()
	q.mu.Lock()
	defer q.mu.Unlock()
	require.Len(t, q.free, queueDepth, "every place was given back")
	require.Zero(t, q.inFlight.Load())
}

// TestFailedTransfer: what the device refuses is an error of that transfer, through the
// queue as well as without it.
func TestFailedTransfer(t *testing.T) {
	d := testenv.Loop(t, mib)
	f, err := OpenDevice(d.Path, DeviceOptions{})
	require.NoError(t, err)
	defer func() { require.NoError(t, f.Close()) }()
	q := theQueue()
	q.inFlight.Add(1) // as if another one was on its way
	defer q.inFlight.Add(-1)
	p := alignedBuffer(4*kib, 4*kib)
	require.ErrorIs(t, f.devices[0].write(p, 1), unix.EINVAL)
	require.ErrorIs(t, f.devices[0].write(p, mib), unix.ENOSPC)
	require.NoError(t, f.devices[0].write(p, 0))
}
