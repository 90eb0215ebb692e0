package qcow2_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// Who finds no L2 table, and then that somebody has made it, needs no other: in an image
// that is as large as it may become there is none, and its disk is empty all the same.
func TestLastTableIsMadeOnce(t *testing.T) {
	const size, writers = 4 << 20, 8
	bound := qcow2.Bound(format.Geometry{Version: 3, ClusterBits: 16, RefcountOrder: 4}, size)
	for n := range 1000 {
		p := simdisk.New(0, simdisk.Options{MaxSize: bound})
		require.NoError(t, qcow2.Create(t.Context(), p, qcow2.CreateOptions{Size: size}))
		im, err := qcow2.Open(t.Context(), p, qcow2.Options{})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		var wg sync.WaitGroup
		errs := make([]error, writers)
		for i := range writers {
			wg.Go(func() {
				off := int64(i) * size / writers
				if i%2 == 0 {
					errs[i] = im.WriteAt(ctx, make([]byte, 4096), off, 0)
				} else {
					errs[i] = im.WriteZeroes(ctx, off, 64<<10, block.MayUnmap)
				}
			})
		}
		wg.Wait()
		cancel()
		for _, err := range errs {
			require.NoError(t, err, "image %d", n)
		}
		require.NoError(t, im.Close())
		requireClean(t, p)
	}
}
