package qcow2_test

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/qcow2"
)

// TestReaperMissesNoEnd: whatever begins and ends while clusters are unlinked, they
// are free when nothing is in progress any more. Each round ends with that, so that each
// may end just as the reaper finds nothing left to do.
func TestReaperMissesNoEnd(t *testing.T) {
	ctx := t.Context()
	im, err := qcow2.Open(ctx, newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096}), qcow2.Options{CommitInterval: -1})
	require.NoError(t, err)
	for range scaled(2000) {
		var wg sync.WaitGroup
		for c := range int64(4) {
			wg.Go(func() {
				off := c * 64 << 10
				for range 2 {
					_ = im.WriteAt(ctx, []byte{1}, off, 0)
					_ = im.Discard(ctx, off, 4096, 0)
					_ = im.Flush(ctx)
				}
			})
		}
		idle := make(chan struct{})
		go func() {
			wg.Wait()
			im.WaitIdle()
			close(idle)
		}()
		select {
		case <-idle:
		case <-time.After(time.Minute):
			t.Fatal("the reaper waits for a request to end that has ended, and writes wait for the reaper")
		}
	}
	require.NoError(t, im.Close())
}
