package qcow2_test

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// TestChurnOutgrowsTheVolumeOfSeveral: as TestChurnOutgrowsTheVolume, and several clients
// unmap, write and flush at a time. What a commit in progress has unlinked is neither
// free yet nor waiting for a commit: who allocates meanwhile waits for it.
func TestChurnOutgrowsTheVolumeOfSeveral(t *testing.T) {
	c := qcow2.CreateOptions{Size: 1 << 20}
	_, im := inItsBound(t, c, qcow2.Options{RedoDir: t.TempDir()})
	churnOfSeveral(t, c, im)
	require.NoError(t, im.Close())
}

// TestChurnStaysInTheBound: the same in a file that could be larger.
func TestChurnStaysInTheBound(t *testing.T) {
	c := qcow2.CreateOptions{Size: 1 << 20}
	g, err := c.Geometry()
	require.NoError(t, err)
	im, err := qcow2.Open(t.Context(), newDisk(t, c), qcow2.Options{RedoDir: t.TempDir()})
	require.NoError(t, err)
	churnOfSeveral(t, c, im)
	require.LessOrEqual(t, im.Stats().End, qcow2.Bound(g, c.Size))
	require.NoError(t, im.Close())
}

// churnOfSeveral unmaps, writes and flushes, each of several clients in its own part of
// the disk.
func churnOfSeveral(t *testing.T, c qcow2.CreateOptions, im *qcow2.Image) {
	_, rng := testenv.Seed(t)
	const clients = 2
	part := c.Size / clients
	var wg sync.WaitGroup
	for i := range int64(clients) {
		own := testenv.Rand(rng.Uint64())
		wg.Go(func() {
			ctx := context.Background()
			for n := range 9000 {
				size := 1 + own.Int64N(150<<10)
				off := i*part + own.Int64N(part-size+1)
				var err error
				switch own.IntN(9) {
				case 0:
					err = im.WriteZeroes(ctx, off, size, qcow2.MayUnmap)
				case 1:
					err = im.Discard(ctx, off, size, 0)
				case 2:
					err = im.Flush(ctx)
				default:
					err = im.WriteAt(ctx, make([]byte, size), off, 0)
				}
				if err != nil {
					t.Errorf("request %d of client %d: %v", n, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
