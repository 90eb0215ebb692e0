package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// A laterDisk begins writes, and ends them when a test says so. It is past the page
// cache, as one says of itself that does that.
type laterDisk struct {
	*simdisk.Disk
	begun  []begunWrite
	before func(n int) // of WriteAt
	sync   error
}

type begunWrite struct {
	p   []byte
	off int64
	to  block.Later
}

func (d *laterDisk) WriteLater(p []byte, off int64, to block.Later) bool {
	d.begun = append(d.begun, begunWrite{p, off, to})
	return true
}

func (d *laterDisk) WriteAt(p []byte, off int64) (int, error) {
	if d.before != nil {
		d.before(len(p))
	}
	return d.Disk.WriteAt(p, off)
}

func (d *laterDisk) Sync() error {
	if d.sync != nil {
		return d.sync
	}
	return d.Disk.Sync()
}

func (d *laterDisk) Info() block.FileInfo {
	i := d.Disk.Info()
	i.Direct = true
	return i
}

// end ends the only write that was begun.
func (d *laterDisk) end(t *testing.T) {
	require.Len(t, d.begun, 1)
	w := d.begun[0]
	d.begun = nil
	_, err := d.Disk.WriteAt(w.p, w.off)
	require.NoError(t, err)
	w.to.Ended(true)
}

// told is a block.Later that passes on what it is told.
type told chan bool

func (c told) Ended(ok bool) { c <- ok }

// beginning is f, or f as a file that begins writes.
func beginning(f block.File, later bool) block.File {
	if later {
		return simdisk.Later(f)
	}
	return f
}

// writeLater writes as a server does: the write is begun, and done where that does not
// work.
func writeLater(ctx context.Context, im *qcow2.Image, p []byte, off int64) error {
	to := make(told, 1)
	if im.WriteLater(p, off, to) && <-to {
		return nil
	}
	return im.WriteAt(ctx, p, off, 0)
}

// openLater opens an image with clusters that have content, and those that are ready.
func openLater(t *testing.T, o qcow2.Options) (*laterDisk, *qcow2.Image) {
	d := &laterDisk{Disk: simdisk.New(0, simdisk.Options{})}
	require.NoError(t, qcow2.Create(t.Context(), d, qcow2.CreateOptions{Size: 8 << 20}))
	im, err := qcow2.Open(t.Context(), d, o)
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 4*cluster), 0, 0))
	require.NoError(t, im.Flush(t.Context()))
	im.WaitIdle()
	return d, im
}

const cluster = 64 << 10

// TestBegunWriteIsFlushed: a write that was begun, in place or into a new cluster, is
// covered by a flush that is asked for when it has ended.
func TestBegunWriteIsFlushed(t *testing.T) {
	for _, off := range []int64{8 * sector, 5 * cluster} {
		d, im := openLater(t, qcow2.Options{RedoDir: t.TempDir()})
		to, want := make(told, 1), bytes.Repeat([]byte{7}, sector)
		require.True(t, im.WriteLater(want, off, to))
		require.Empty(t, to)
		d.end(t)
		require.True(t, <-to)
		require.NoError(t, im.Flush(t.Context()))
		left := d.Crash(simdisk.DropAll)
		require.NoError(t, im.Close())
		again, err := qcow2.Open(t.Context(), left, qcow2.Options{ReadOnly: true})
		require.NoError(t, err)
		got := make([]byte, sector)
		require.NoError(t, again.ReadAt(t.Context(), got, off, 0))
		require.Equal(t, want, got, "at %d", off)
	}
}

// A flusher is a block.Later that flushes while it is told, as a client does that goes on
// sooner than who has told it.
type flusher struct {
	im   *qcow2.Image
	done chan error
}

func (f flusher) Ended(bool) {
	done := make(chan error)
	go func() { done <- f.im.Flush(context.Background()) }()
	f.done <- <-done
}

// TestBegunWriteIsFlushedAtOnce: when a client is told, the write counts already.
func TestBegunWriteIsFlushedAtOnce(t *testing.T) {
	for _, off := range []int64{8 * sector, 5 * cluster} {
		d, im := openLater(t, qcow2.Options{RedoDir: t.TempDir(), CommitInterval: -1})
		want, to := bytes.Repeat([]byte{7}, sector), flusher{im, make(chan error, 1)}
		require.True(t, im.WriteLater(want, off, to))
		d.end(t)
		require.NoError(t, <-to.done)
		again, err := qcow2.Open(t.Context(), d.Crash(simdisk.DropAll), qcow2.Options{ReadOnly: true})
		require.NoError(t, err)
		got := make([]byte, sector)
		require.NoError(t, again.ReadAt(t.Context(), got, off, 0))
		require.True(t, bytes.Equal(want, got), "at %d: % x ...", off, got[:8])
		require.NoError(t, im.Close())
	}
}

// TestBegunWriteIsInProgress: until it has ended, the cluster that it goes to is given
// to nobody else, although it was discarded, and Close waits.
func TestBegunWriteIsInProgress(t *testing.T) {
	d, im := openLater(t, qcow2.Options{ReserveBytes: 2 * cluster})
	to := make(told, 1)
	require.True(t, im.WriteLater(make([]byte, sector), cluster, to))
	host := d.begun[0].off
	require.NoError(t, im.Discard(t.Context(), cluster, cluster, 0))
	for gc := int64(8); gc < 24; gc++ {
		require.NoError(t, im.Flush(t.Context()))
		require.NoError(t, im.WriteAt(t.Context(), bytes.Repeat([]byte{9}, cluster), gc*cluster, 0))
		es, err := im.AppendExtents(t.Context(), nil, gc*cluster, cluster)
		require.NoError(t, err)
		require.False(t, es[0].Host <= host && host < es[0].Host+es[0].Len, "guest cluster %d has it", gc)
	}
	closed := make(chan error, 1)
	go func() { closed <- im.Close() }()
	for im.WriteLater(make([]byte, sector), 0, to) {
		d.begun[1].to.Ended(false)
		d.begun = d.begun[:1]
		require.False(t, <-to)
	}
	require.Empty(t, closed)
	d.end(t)
	<-to
	require.NoError(t, <-closed)
	requireClean(t, d.Disk)
}

// TestBegunWriteAndPoison: what has ended when the image had stopped is not done.
func TestBegunWriteAndPoison(t *testing.T) {
	d, im := openLater(t, qcow2.Options{})
	to := make(told, 1)
	require.NoError(t, im.WriteAt(t.Context(), make([]byte, sector), 0, 0))
	require.True(t, im.WriteLater(make([]byte, sector), 0, to))
	d.sync = errors.New("on purpose")
	require.ErrorIs(t, im.Flush(t.Context()), d.sync)
	d.end(t)
	require.False(t, <-to)
	require.ErrorIs(t, im.WriteAt(t.Context(), make([]byte, sector), 0, 0), d.sync)
	require.False(t, im.WriteLater(make([]byte, sector), 0, to))
	require.Error(t, im.Close())
}

// TestBegunBesideAllocatingWrite: without a ring, a write through an entry that another
// request has not written yet does not survive the process; it has to be done again,
// by who may wait for the entry.
func TestBegunBesideAllocatingWrite(t *testing.T) {
	d, im := openLater(t, qcow2.Options{})
	const slow = 3 * sector // the length of the write that takes the cluster
	reached, release := make(chan struct{}), make(chan struct{})
	d.before = func(n int) {
		if n == slow {
			close(reached)
			<-release
		}
	}
	done := make(chan error, 1)
	go func() { done <- im.WriteAt(t.Context(), make([]byte, slow), 6*cluster, 0) }()
	<-reached
	to := make(told, 1)
	require.True(t, im.WriteLater(make([]byte, sector), 6*cluster+8*sector, to))
	d.end(t)
	require.False(t, <-to)
	close(release)
	require.NoError(t, <-done)
	require.NoError(t, im.Close())
}

// TestNotBegun: what has no place, or has its place in more than one piece, waits for the
// page cache, or is outside, is not begun.
func TestNotBegun(t *testing.T) {
	d, im := openLater(t, qcow2.Options{})
	require.False(t, im.WriteLater(make([]byte, sector), 64*cluster, nil), "without a ring it would have to write a table")
	require.False(t, im.WriteLater(make([]byte, 2*cluster), 3*cluster, nil))
	require.False(t, im.WriteLater(make([]byte, sector), 8<<20, nil))
	require.Empty(t, d.begun)
	require.NoError(t, im.Close())
	require.False(t, im.WriteLater(make([]byte, sector), 0, nil))
}
