package qcow2_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/qcow2"
)

// TestLoggedBeforePublished: who can see an entry can build on it and complete, so
// its record is in the ring already. The window is some instructions wide; it is
// looked for often.
func TestLoggedBeforePublished(t *testing.T) {
	const cs, chunk, writes = 1024, 64, 1000
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: writes * chunk * cs, ClusterSize: cs})
	im, err := qcow2.Open(ctx, d, qcow2.Options{RedoDir: t.TempDir(), RedoSlots: 2 * writes * chunk, CommitInterval: -1, CacheBytes: 128 << 20})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(ctx, []byte{1}, 0, 0))
	require.NotZero(t, im.LogHead(), "there is a ring")
	for w := 1; w < scaled(writes); w++ {
		first, before := int64(w*chunk), im.LogHead()
		ready := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			close(ready)
			for n := int64(0); n < chunk; {
				if !im.Published(first + n) {
					continue
				}
				n++
				if records := im.LogHead() - before; records < uint64(n) {
					t.Errorf("%d entries can be seen, and there are %d records", n, records)
				}
			}
		})
		<-ready
		require.NoError(t, im.WriteAt(ctx, make([]byte, chunk*cs), first*cs, 0))
		wg.Wait()
		require.NoError(t, d.Sync()) // for its memory of what is pending
	}
	require.NoError(t, im.Close())
}

// TestReadyBelowEnd: what is ready for use lies below the image's end at every
// moment; entries that name it would be taken for bad ones else.
func TestReadyBelowEnd(t *testing.T) {
	ctx := t.Context()
	for range scaled(400) {
		im, err := qcow2.Open(ctx, newDisk(t, qcow2.CreateOptions{Size: 64 << 20}), qcow2.Options{})
		require.NoError(t, err)
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				if s := im.Stats(); s.Reserved > s.End {
					t.Errorf("%d bytes are ready, the image ends at %d", s.Reserved, s.End)
				} else if s.Reserved > 0 {
					return
				}
			}
		})
		require.NoError(t, im.WriteAt(ctx, []byte{1}, 0, 0))
		wg.Wait()
		require.NoError(t, im.Close())
	}
}
