package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// TestGiveBack: an image gives the end of its file back and goes on. What was
// flushed survives a power cut, and the next writer gets space as before.
func TestGiveBack(t *testing.T) {
	ctx := t.Context()
	d := simdisk.New(0, simdisk.Options{Foreign: true})
	require.NoError(t, qcow2.Create(ctx, d, qcow2.CreateOptions{Size: 64 << 20, ClusterSize: 4096}))
	_, err := d.Grow(ctx, 32<<20, 32<<20)
	require.NoError(t, err)
	im, err := qcow2.Open(ctx, d, qcow2.Options{ReserveBytes: 256 << 10})
	require.NoError(t, err)
	want := bytes.Repeat([]byte{7}, 1<<20)
	require.NoError(t, im.WriteAt(ctx, want, 0, 0))
	require.NoError(t, im.Flush(ctx))
	im.WaitIdle()

	size, err := im.GiveBack(ctx)
	require.NoError(t, err)
	require.Equal(t, im.Stats().End, size)
	require.Equal(t, size, d.Size())
	require.Less(t, size, int64(2<<20))
	again, err := im.GiveBack(ctx)
	require.NoError(t, err)
	require.Equal(t, size, again)

	cut := d.Crash(simdisk.DropAll)
	require.NoError(t, im.WriteAt(ctx, want, 16<<20, 0))
	for at := int64(0); at < 32<<20; at += 1 << 20 { // more than was reserved
		require.NoError(t, im.WriteAt(ctx, want, at, 0))
	}
	require.NoError(t, im.Close())
	for name, d := range map[string]*simdisk.Disk{"goes on": d, "power cut": cut} {
		im, err := qcow2.Open(ctx, d, qcow2.Options{})
		require.NoError(t, err, name)
		got := make([]byte, len(want))
		require.NoError(t, im.ReadAt(ctx, got, 0, 0), name)
		require.True(t, bytes.Equal(want, got), name)
		<-im.Settled()
		require.NoError(t, im.Close(), name)
		res, err := qcow2.Check(ctx, d, qcow2.CheckOptions{})
		require.NoError(t, err)
		require.True(t, res.Clean(), "%s: %q", name, res.Problems)
	}
}

// TestGiveBackKeepsWhatAnEntryNames: the counts say that nothing is behind the
// image's end, and an entry says otherwise. Its cluster stays.
func TestGiveBackKeepsWhatAnEntryNames(t *testing.T) {
	const cs, target = 4096, 5
	for kind, mark := range map[string]uint64{"plain": 1 << 63, "compressed": 1<<62 | 1<<58} { // of two sectors
		ctx := t.Context()
		d := simdisk.New(0, simdisk.Options{Foreign: true})
		require.NoError(t, qcow2.Create(ctx, d, qcow2.CreateOptions{Size: 64 << 20, ClusterSize: cs}))
		im, err := qcow2.Open(ctx, d, qcow2.Options{})
		require.NoError(t, err)
		require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{1}, cs), 0, 0))
		require.NoError(t, im.Close())
		table, named := l2TableOf(t, d), d.Size()+100*cs
		_, err = d.Grow(ctx, 32<<20, 32<<20)
		require.NoError(t, err)
		_, err = d.WriteAt(binary.BigEndian.AppendUint64(nil, mark|uint64(named)), table+target*8)
		require.NoError(t, err)

		im, err = qcow2.Open(ctx, d, qcow2.Options{})
		require.NoError(t, err)
		size, err := im.GiveBack(ctx)
		require.NoError(t, err)
		require.EqualValues(t, named+cs, size, kind)
		require.NoError(t, im.Close())
		require.EqualValues(t, named+cs, d.Size(), "%s: nor does closing", kind)
	}
}

// TestGiveBackRefused: an image that cannot give anything back is as it was.
func TestGiveBackRefused(t *testing.T) {
	ctx := t.Context()
	d := simdisk.New(0, simdisk.Options{})
	require.NoError(t, qcow2.Create(ctx, d, qcow2.CreateOptions{Size: 64 << 20, ClusterSize: 4096}))
	_, err := d.Grow(ctx, 32<<20, 32<<20)
	require.NoError(t, err)
	im, err := qcow2.Open(ctx, keeping{faultfile.New(d, faultfile.Fault{})}, qcow2.Options{})
	require.NoError(t, err)
	_, err = im.GiveBack(ctx)
	require.ErrorIs(t, err, block.ErrUnsupported)
	require.EqualValues(t, 32<<20, d.Size())
	require.NoError(t, im.WriteAt(ctx, make([]byte, 4096), 0, 0))
	require.NoError(t, im.Close())
	_, err = im.GiveBack(ctx)
	require.ErrorIs(t, err, block.ErrClosed)
	ro, err := qcow2.Open(ctx, d, qcow2.Options{ReadOnly: true})
	require.NoError(t, err)
	_, err = ro.GiveBack(ctx)
	require.ErrorIs(t, err, block.ErrReadOnly)
	require.NoError(t, ro.Close())
}

// A keeping file keeps its space.
type keeping struct{ block.File }

func (keeping) Shrink(context.Context, int64, int64) error { return block.ErrUnsupported }

// TestCloseEndsGivingBack: a pool that does not take space back holds up nobody who
// closes the image.
func TestCloseEndsGivingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		d := newDisk(t, qcow2.CreateOptions{Size: 64 << 20, ClusterSize: 4096})
		_, err := d.Grow(ctx, 32<<20, 32<<20)
		require.NoError(t, err)
		f := &reluctant{File: d}
		im, err := qcow2.Open(ctx, f, qcow2.Options{})
		require.NoError(t, err)
		given := make(chan error, 1)
		go func() {
			_, err := im.GiveBack(ctx)
			given <- err
		}()
		synctest.Wait()
		require.EqualValues(t, 1, f.asked.Load())
		closed := make(chan error, 1)
		go func() { closed <- im.Close() }()
		synctest.Wait()
		require.Len(t, closed, 1, "closing waits for the pool")
		require.NoError(t, <-closed)
		require.ErrorIs(t, <-given, context.Canceled)
	})
}

// A reluctant file does not answer who first wants it shorter.
type reluctant struct {
	block.File
	asked atomic.Int64
}

func (r *reluctant) Shrink(ctx context.Context, from, to int64) error {
	if r.asked.Add(1) > 1 {
		return r.File.Shrink(ctx, from, to)
	}
	<-ctx.Done()
	return ctx.Err()
}
