package qcow2_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/qcow2"
)

// TestReservedCountsAreDurable: the counts of a reservation are written durably by
// itself, also when a commit, which syncs later, writes counts at that moment. The
// window is small; it is looked for often.
func TestReservedCountsAreDurable(t *testing.T) {
	f := faultfile.New(newDisk(t, qcow2.CreateOptions{Size: 1 << 20}), faultfile.Fault{})
	im, err := qcow2.Open(t.Context(), f, qcow2.Options{})
	require.NoError(t, err)
	var durable atomic.Int64
	f.Hook(func(op faultfile.Op) {
		if op.Kind == faultfile.WriteSync {
			durable.Add(1)
		}
	}, nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = im.WriteCounts()
			}
		}
	})
	missed := 0
	for range scaled(16000) {
		before := durable.Load()
		require.NoError(t, im.CountDurably(100))
		if durable.Load() == before {
			missed++
		}
	}
	close(stop)
	wg.Wait()
	require.Zero(t, missed, "reservations whose counts a commit had taken")
}
