package qcow2_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

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
	first, err := qcow2.Open(ctx, d, qcow2.Options{ReserveBytes: 32 << 10})
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
