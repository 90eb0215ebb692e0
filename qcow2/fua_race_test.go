package qcow2_test

import (
	"bytes"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// TestFUABesideTheWriteThatAllocates (design review 2.3): "is it durable?" must be
// asked after the entry was looked up, and of the slice as whoever changed the entry
// left it. Otherwise a FUA write into a cluster that another request is just taking
// finds a slice that is clean, then an entry that is new, and writes in place: it is
// acknowledged, and a power cut takes the entry away.
func TestFUABesideTheWriteThatAllocates(t *testing.T) {
	const cs = 4096
	ctx := t.Context()
	for range scaled(8) {
		d := newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: cs})
		im, err := qcow2.Open(ctx, d, qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir()})
		require.NoError(t, err)
		require.NoError(t, im.WriteAt(ctx, []byte{1}, 0, qcow2.FUA))
		for g := int64(1); g < 256; g++ {
			require.NoError(t, im.Flush(ctx)) // the slice is clean, and durable
			var both sync.WaitGroup
			start := make(chan struct{})
			both.Go(func() {
				<-start
				if err := im.WriteAt(ctx, bytes.Repeat([]byte{2}, sector), g*cs, 0); err != nil {
					t.Error(err)
				}
			})
			var left *simdisk.Disk
			both.Go(func() {
				<-start
				if err := im.WriteAt(ctx, bytes.Repeat([]byte{3}, sector), g*cs+sector, qcow2.FUA); err != nil {
					t.Error(err)
				}
				left = d.Crash(simdisk.DropAll)
			})
			close(start)
			both.Wait()
			after, err := qcow2.Open(ctx, left, qcow2.Options{ReadOnly: true})
			require.NoError(t, err)
			got := make([]byte, sector)
			require.NoError(t, after.ReadAt(ctx, got, g*cs+sector, 0))
			require.Equal(t, bytes.Repeat([]byte{3}, sector), got, "cluster %d: acknowledged with FUA, and lost", g)
			require.NoError(t, after.Close())
		}
		require.NoError(t, im.Close())
	}
}
