package qcow2_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/qcow2"
)

// TestCloseFreesBesideRefusedRequests: what was discarded is free when the image is
// closed, whatever requests come, and are refused, meanwhile.
func TestCloseFreesBesideRefusedRequests(t *testing.T) {
	for range scaled(200) {
		ctx := t.Context()
		d := newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096})
		im, err := qcow2.Open(ctx, d, qcow2.Options{CommitInterval: -1})
		require.NoError(t, err)
		require.NoError(t, im.WriteAt(ctx, pattern(1<<20), 0, 0))
		require.NoError(t, im.Discard(ctx, 0, 1<<19, 0))
		var over atomic.Bool
		var late sync.WaitGroup
		for c := range int64(4) {
			late.Go(func() {
				for !over.Load() {
					if err := im.ReadAt(context.Background(), []byte{1}, c<<17, 0); err != nil && !errors.Is(err, block.ErrClosed) {
						t.Error(err)
					}
				}
			})
		}
		require.NoError(t, im.Close())
		over.Store(true)
		late.Wait()
		requireClean(t, d)
	}
}
