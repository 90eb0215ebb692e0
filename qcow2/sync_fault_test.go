package qcow2_test

import (
	"bytes"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// TestFUAGetsTheErrorOfAnothersWriteback (design review 2.12): a failed writeback is
// reported once, to whoever asks first. If that is the FUA write of one connection,
// its error is also that of what another one has written and not flushed: the flush
// that comes later must not succeed, and neither may anything that follows.
func TestFUAGetsTheErrorOfAnothersWriteback(t *testing.T) {
	const cs = 4096
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: cs})
	im, err := qcow2.Open(ctx, d, qcow2.Options{CommitInterval: -1})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{1}, 4*cs), 0, 0))
	require.NoError(t, im.Flush(ctx))
	before := d.Syncs()

	others := bytes.Repeat([]byte{2}, cs)
	require.NoError(t, im.WriteAt(ctx, others, 0, 0)) // in place: nothing but bytes
	im.WaitIdle()                                     // see TestPoison
	d.FailSync(syscall.EIO)                           // of the writeback of that
	require.ErrorIs(t, im.WriteAt(ctx, bytes.Repeat([]byte{3}, cs), 2*cs, qcow2.FUA), syscall.EIO)
	require.Equal(t, before, d.Syncs(), "it was a durable write that was told")
	require.ErrorIs(t, im.Flush(ctx), syscall.EIO, "of the other one")
	require.ErrorIs(t, im.WriteAt(ctx, others, 3*cs, qcow2.FUA), syscall.EIO)
	require.ErrorIs(t, im.WriteAt(ctx, others, 3*cs, 0), syscall.EIO)
	require.ErrorIs(t, im.Flush(ctx), syscall.EIO)
	require.ErrorIs(t, im.Close(), syscall.EIO)
	left, err := qcow2.Open(ctx, d.Crash(simdisk.DropAll), qcow2.Options{ReadOnly: true})
	require.NoError(t, err)
	requireRead(t, left, bytes.Repeat([]byte{1}, cs), 0) // which nobody said was otherwise
}

// TestCacheLiesAfterAFailedSync (design review 2.12): after a failed sync reads return
// the new bytes, until the host drops its cache; then the old ones. The image says so
// to nobody that could build on it: it takes no writes and acknowledges no flush, and
// in the same boot it is opened again only behind the cache.
func TestCacheLiesAfterAFailedSync(t *testing.T) {
	const cs = 4096
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: cs})
	o := qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir()}
	im, err := qcow2.Open(ctx, d, o)
	require.NoError(t, err)
	flushed, lost := bytes.Repeat([]byte{1}, cs), bytes.Repeat([]byte{2}, cs)
	require.NoError(t, im.WriteAt(ctx, flushed, 0, 0))
	require.NoError(t, im.Flush(ctx))
	require.NoError(t, im.WriteAt(ctx, lost, 0, 0))    // bytes only
	require.NoError(t, im.WriteAt(ctx, lost, 8*cs, 0)) // an entry too
	im.WaitIdle()                                      // see TestPoison
	d.FailSync(syscall.EIO)
	require.ErrorIs(t, im.Flush(ctx), syscall.EIO)
	requireRead(t, im, lost, 0)
	requireRead(t, im, lost, 8*cs)
	for range 2 { // the storage would say that all is well
		require.ErrorIs(t, im.Flush(ctx), syscall.EIO)
		require.ErrorIs(t, im.WriteAt(ctx, flushed, 0, 0), syscall.EIO)
	}
	require.ErrorIs(t, im.Close(), syscall.EIO)

	var distrust *qcow2.DistrustError
	_, err = qcow2.Open(ctx, d, o)
	require.ErrorAs(t, err, &distrust, "the cache still lies")
	d = d.Crash(simdisk.DropAll) // the cache is dropped
	o.DropRedo = true
	im, err = qcow2.Open(ctx, d, o)
	require.NoError(t, err)
	requireRead(t, im, flushed, 0)
	requireRead(t, im, make([]byte, cs), 8*cs)
	<-im.Settled()
	require.NoError(t, im.Close())
	requireClean(t, d)
}

// TestSyncBesideAFailedDurableWrite: a durable write that fails may have dropped what a
// Sync beside it covers. Until it has told, nobody is told that he is durable.
func TestSyncBesideAFailedDurableWrite(t *testing.T) {
	const cs = 4096
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		d := newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: cs})
		f := faultfile.New(d, faultfile.Fault{})
		im, err := qcow2.Open(ctx, f, qcow2.Options{CommitInterval: -1})
		require.NoError(t, err)
		require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{1}, 4*cs), 0, 0))
		require.NoError(t, im.Flush(ctx))
		require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{2}, cs), 0, 0))
		synctest.Wait()
		told := make(chan struct{})
		f.Hook(nil, func(op faultfile.Op, _ error) {
			if op.Kind == faultfile.WriteSync {
				<-told
			}
		})
		d.FailSync(syscall.EIO)
		durable, flushed := make(chan error, 1), make(chan error, 1)
		go func() { durable <- im.WriteAt(ctx, bytes.Repeat([]byte{3}, cs), 2*cs, qcow2.FUA) }()
		synctest.Wait()
		go func() { flushed <- im.Flush(ctx) }()
		synctest.Wait()
		require.Empty(t, durable)
		require.Empty(t, flushed, "the cluster that is flushed is lost")
		close(told)
		require.ErrorIs(t, <-durable, syscall.EIO)
		require.ErrorIs(t, <-flushed, syscall.EIO)
		require.ErrorIs(t, im.Close(), syscall.EIO)
	})
}
