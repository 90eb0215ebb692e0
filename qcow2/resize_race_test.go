package qcow2_test

import (
	"bytes"
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/qcow2"
)

// TestTableAddedWhileTheL1TableMoves: a write makes a new L2 table while the disk grows
// and the copy of its L1 table is written. The larger table has it too.
func TestTableAddedWhileTheL1TableMoves(t *testing.T) {
	const cs, coverage, at = 512, 512 / 8 * 512, 8 * 512 / 8 * 512
	met := 0
	for before := range int64(6) { // so many tables: then one more is ready, or not
		f := faultfile.New(newDisk(t, qcow2.CreateOptions{Size: 16 * coverage, ClusterSize: cs}), faultfile.Fault{})
		im, err := qcow2.Open(t.Context(), f, qcow2.Options{CommitInterval: -1})
		require.NoError(t, err)
		for i := range before {
			require.NoError(t, im.WriteAt(t.Context(), []byte{1}, i*coverage, 0))
		}
		im.WaitIdle()
		want, done := bytes.Repeat([]byte{7}, cs), make(chan error, 1)
		// Growing holds what a reservation needs: the write is done if it needs none.
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		f.Hook(func(op faultfile.Op) {
			if op.Kind != faultfile.Write || op.Len != 4*cs {
				return // it is not the copy
			}
			go func() { done <- im.WriteAt(ctx, want, at, 0) }()
			for !im.Published(at/cs) && ctx.Err() == nil {
				runtime.Gosched()
			}
		}, nil)
		require.NoError(t, im.Grow(t.Context(), 4*cs/8*coverage))
		f.Hook(nil, nil)
		if <-done == nil {
			met++
			requireRead(t, im, want, at)
		}
		cancel()
		require.NoError(t, im.Close())
		requireClean(t, f)
	}
	require.NotZero(t, met, "a table was ready while the L1 table moved")
}
