package qcow2_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/faultfile"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// TestZeroingThatFoundNoSpace: a cluster that the storage had no space to zero is
// zeroed when the wait for that is over.
func TestZeroingThatFoundNoSpace(t *testing.T) {
	ctx := t.Context()
	f := faultfile.New(newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096}), faultfile.Fault{})
	im, err := qcow2.Open(ctx, f, qcow2.Options{})
	require.NoError(t, err)
	got := bytes.Repeat([]byte{1}, 64<<10)
	require.NoError(t, im.WriteAt(ctx, got, 0, block.FUA))
	f.SetFault(faultfile.Fault{Kinds: faultfile.Zeroes, At: 3, Err: block.ErrNoSpace})
	require.NoError(t, im.WriteZeroes(ctx, 0, int64(len(got)), 0))
	require.Equal(t, 1, f.Injected())
	require.NoError(t, im.ReadAt(ctx, got, 0, 0))
	requireSame(t, make([]byte, len(got)), got, "zeroed")
	require.NoError(t, im.Close())
}

// TestRefcountTableThatFoundNoSpace: the sector of the refcount table for a new block
// is in a hole of the file, and the storage has no space for it. The write waits, as for
// any other space, and the image goes on.
func TestRefcountTableThatFoundNoSpace(t *testing.T) {
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 4 << 20, ClusterSize: 512})
	f := &holed{File: d}
	im, err := qcow2.Open(ctx, f, qcow2.Options{ReserveBytes: 16 << 10})
	require.NoError(t, err)
	h := im.Header()
	f.from, f.to = h.RefcountTableOffset, h.RefcountTableOffset+int64(h.RefcountTableClusters)*512
	want := bytes.Repeat([]byte{7}, 1<<20)
	require.NoError(t, im.WriteAt(ctx, want, 0, 0))
	require.Greater(t, f.writes, 1, "it was tried again")
	requireRead(t, im, want, 0)
	require.NoError(t, im.Close())
	requireClean(t, d)
}

// TestRingThatFoundNoSpace: the storage has no space for the number of the ring at first.
// The image has one when the wait for that is over.
func TestRingThatFoundNoSpace(t *testing.T) {
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 1 << 20})
	f := &holed{File: d, to: 65536}
	im, err := qcow2.Open(ctx, f, qcow2.Options{RedoDir: t.TempDir()})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(ctx, []byte{1}, 0, 0))
	h := im.Header()
	require.NotZero(t, h.Autoclear&format.AutoclearRedo)
	require.NoError(t, im.Close())
	requireClean(t, d)
}

// A holed file has no space for the first write between from and to.
type holed struct {
	block.File
	from, to int64
	writes   int
}

func (f *holed) WriteAt(p []byte, off int64) (int, error) {
	if f.full(off) {
		return 0, block.ErrNoSpace
	}
	return f.File.WriteAt(p, off)
}

func (f *holed) WriteAtSync(p []byte, off int64) (int, error) {
	if f.full(off) {
		return 0, block.ErrNoSpace
	}
	return f.File.WriteAtSync(p, off)
}

// full counts a write at off, and reports whether it is the first.
func (f *holed) full(off int64) bool {
	if off < f.from || off >= f.to {
		return false
	}
	f.writes++
	return f.writes == 1
}
