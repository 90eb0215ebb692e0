package qcow2_test

import (
	"bytes"
	"context"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// TestSettleSparesWhatIsReservedMeanwhile: a cluster on the list of what a dead
// writer had reserved may be free; a request that gets it while the list is being
// settled keeps it. (The crash lab found that it did not: the cluster was counted
// 0 under the request's data, and given to the next one.)
func TestSettleSparesWhatIsReservedMeanwhile(t *testing.T) {
	ctx := t.Context()
	d := simdisk.New(0, simdisk.Options{})
	require.NoError(t, qcow2.Create(ctx, d, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096}))
	first, err := qcow2.Open(ctx, d, qcow2.Options{ReserveBytes: 64 << 10})
	require.NoError(t, err)
	require.NoError(t, first.WriteAt(ctx, make([]byte, 8192), 0, 0))
	require.NoError(t, first.Discard(ctx, 0, 8192, 0))
	require.NoError(t, first.Flush(ctx))
	first.WaitIdle() // its clusters are free in memory
	require.NoError(t, first.WriteAt(ctx, make([]byte, 512), 512<<10, 0))
	require.NoError(t, first.Flush(ctx)) // and in the file, but for the list
	first.WaitIdle()
	d = d.Crash(simdisk.KeepAll)

	f := faultfile.New(d, faultfile.Fault{})
	settling, settle, reserving := make(chan struct{}), make(chan struct{}), make(chan struct{})
	syncs, zeroes := 0, 0
	f.Hook(func(op faultfile.Op) {
		switch op.Kind {
		case faultfile.Sync:
			if syncs++; syncs == 1 { // S3
				close(settling)
				<-settle
			}
		case faultfile.Zeroes: // R4: allocating is held
			if zeroes++; zeroes == 1 {
				close(reserving)
			}
		}
	}, nil)
	im, err := qcow2.Open(ctx, f, qcow2.Options{ReserveBytes: 32 << 10})
	require.NoError(t, err)
	<-settling // the tables have been read
	written := make(chan error, 1)
	want := bytes.Repeat([]byte{7}, 16<<10)
	go func() { written <- im.WriteAt(ctx, want, 64<<10, 0) }()
	<-reserving
	close(settle)
	require.NoError(t, <-written)
	<-im.Settled()
	im.WaitIdle()
	require.NoError(t, im.WriteAt(ctx, make([]byte, 256<<10), 128<<10, 0)) // whatever is free
	got := make([]byte, len(want))
	require.NoError(t, im.ReadAt(ctx, got, 64<<10, 0))
	require.True(t, bytes.Equal(want, got))
	require.NoError(t, im.Close())
	res, err := qcow2.Check(ctx, d, qcow2.CheckOptions{})
	require.NoError(t, err)
	require.True(t, res.Clean(), "%q", res.Problems)
}

// TestLeaksAreGivenBackBesideAHeldWrite (design review 4.1): a write waits for space
// that settling is about to give back. Settling does not need what the wait holds.
func TestLeaksAreGivenBackBesideAHeldWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		p := newPool(1 << 20)
		require.NoError(t, qcow2.Create(ctx, p, qcow2.CreateOptions{Size: 64 << 20, ClusterSize: 4096}))
		im, err := qcow2.Open(ctx, p, qcow2.Options{CommitInterval: -1})
		require.NoError(t, err)
		c := make([]byte, 4096)
		require.NoError(t, im.WriteAt(ctx, c, 0, block.FUA)) // and all of the pool is reserved
		im.WaitIdle()                                        // the process dies
		f := faultfile.New(p, faultfile.Fault{})
		s3 := stopsOf(f).at(kindOf(faultfile.Sync))
		im, err = qcow2.Open(ctx, f, qcow2.Options{CommitInterval: -1})
		require.NoError(t, err)
		<-s3.reached
		patience, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		held := make(chan error, 1)
		go func() { held <- im.WriteAt(patience, c, 4096, 0) }()
		synctest.Wait()
		s3.release()
		require.NoError(t, <-held, "about 1 MB was given back meanwhile")
		require.NoError(t, im.Close())
	})
}

// TestSettlingThatCannotReadCounts: what settling cannot read it leaves, with the list,
// to the next opening. A read that fails has damaged nothing, so the image goes on.
func TestSettlingThatCannotReadCounts(t *testing.T) {
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096})
	o := qcow2.Options{CommitInterval: -1}
	im, err := qcow2.Open(ctx, d, o)
	require.NoError(t, err)
	want := bytes.Repeat([]byte{7}, 4096)
	require.NoError(t, im.WriteAt(ctx, want, 0, block.FUA))
	im.WaitIdle() // the process dies, with much that is reserved
	d = d.Crash(simdisk.KeepAll)

	f := faultfile.New(d, faultfile.Fault{})
	s3 := stopsOf(f).at(kindOf(faultfile.Sync))
	im, err = qcow2.Open(ctx, f, o)
	require.NoError(t, err)
	<-s3.reached
	f.SetFault(faultfile.Fault{Kinds: faultfile.Read, At: 1, Err: syscall.EIO})
	s3.release()
	<-im.Settled()
	require.Equal(t, 1, f.Injected())
	require.NoError(t, im.WriteAt(ctx, want, 4096, block.FUA))
	require.NoError(t, im.Close())

	im, err = qcow2.Open(ctx, d, o)
	require.NoError(t, err)
	<-im.Settled()
	requireRead(t, im, want, 0)
	requireRead(t, im, want, 4096)
	require.NoError(t, im.Close())
	requireClean(t, d)
}
