package qcow2_test

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/qcow2"
)

// TestFailedSyncIsRemembered: after a failed sync reads return what the storage may
// not have. The next process in the same boot does not build on that: it opens the
// image when the cache has been dropped, with what was flushed, and not with what
// the ring says.
func TestFailedSyncIsRemembered(t *testing.T) {
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 1 << 20})
	o := qcow2.Options{RedoDir: t.TempDir()}
	im, err := qcow2.Open(ctx, d, o)
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(ctx, []byte{1}, 0, 0))
	require.NoError(t, im.Flush(ctx))
	require.NoError(t, im.WriteAt(ctx, []byte{2}, 1<<16, 0))
	im.WaitIdle() // see TestPoison
	d.FailSync(syscall.EIO)
	require.ErrorIs(t, im.Flush(ctx), syscall.EIO)
	require.ErrorIs(t, im.Close(), syscall.EIO)

	var distrust *qcow2.DistrustError
	_, err = qcow2.Open(ctx, d, o)
	require.ErrorAs(t, err, &distrust)
	_, err = qcow2.Open(ctx, d, o)
	require.ErrorAs(t, err, &distrust, "asking again does not mend it")
	d.Evict()
	o.DropRedo = true
	im, err = qcow2.Open(ctx, d, o)
	require.NoError(t, err)
	got := make([]byte, 1)
	require.NoError(t, im.ReadAt(ctx, got, 0, 0))
	require.Equal(t, byte(1), got[0], "it was flushed")
	require.NoError(t, im.ReadAt(ctx, got, 1<<16, 0))
	require.Zero(t, got[0], "the sync that failed had lost it")
	require.NoError(t, im.WriteAt(ctx, []byte{3}, 1<<17, block.FUA))
	require.NoError(t, im.Close())
	requireClean(t, d)
}

// TestFailedSyncIsRememberedWithoutARing (design review 2.12): as
// TestCacheLiesAfterAFailedSync, where no cluster was reserved in this process, so that
// there is no ring to mark. Engine: poison() marks im.ring only; startLog runs in
// reserve().
func TestFailedSyncIsRememberedWithoutARing(t *testing.T) {
	for _, version := range []int{2, 3} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			ctx := t.Context()
			d := newDisk(t, qcow2.CreateOptions{Size: 1 << 20, Version: version})
			im, err := qcow2.Open(ctx, d, qcow2.Options{})
			require.NoError(t, err)
			require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{1}, 65536), 0, 0))
			require.NoError(t, im.Close())
			o := qcow2.Options{RedoDir: t.TempDir()}
			im, err = qcow2.Open(ctx, d, o)
			require.NoError(t, err)
			require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{2}, 65536), 0, 0)) // in place
			im.WaitIdle()                                                             // see TestPoison
			d.FailSync(syscall.EIO)
			require.ErrorIs(t, im.Flush(ctx), syscall.EIO)
			require.Error(t, im.Close())
			var distrust *qcow2.DistrustError
			_, err = qcow2.Open(ctx, d, o)
			require.ErrorAs(t, err, &distrust)
			d.Evict()
			o.DropRedo = true
			im, err = qcow2.Open(ctx, d, o)
			require.NoError(t, err)
			requireRead(t, im, bytes.Repeat([]byte{1}, 65536), 0)
			require.NoError(t, im.Close())
			o.DropRedo = false
			im, err = qcow2.Open(ctx, d, o)
			require.NoError(t, err, "it is mended")
			require.NoError(t, im.Close())
		})
	}
}
