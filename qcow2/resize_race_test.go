package qcow2_test

import (
	"bytes"
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
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

// TestCopiedTableWhileTheL1TableMoves: the disk grows while an L2 table that was a
// snapshot's is only copied in memory. Wherever the power is cut meanwhile, what was
// flushed before is there: the larger L1 table names no copy that is not on the disk.
func TestCopiedTableWhileTheL1TableMoves(t *testing.T) {
	m := subject{name: "grown over a snapshot", size: 512 << 10, options: "cluster_size=4k", script: []string{"write -P 1 0 300k"}}.make(t)
	m.snapshot(t, "last")
	f := faultfile.New(m.disk, faultfile.Fault{})
	im := m.open(t, f, qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir()})
	at := len(m.content) - 4096
	require.NoError(t, im.WriteAt(t.Context(), []byte{3}, int64(at), 0)) // copies the table
	var mu sync.Mutex                                                    // the engine reserves beside it
	var left []*simdisk.Disk
	f.Hook(nil, func(op faultfile.Op, _ error) {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind&faultfile.Syncs != 0 {
			left = append(left, m.disk.Crash(simdisk.DropAll))
		}
	})
	require.NoError(t, im.Grow(t.Context(), 2<<30)) // more than one cluster of L1 table
	f.Hook(nil, nil)
	im.WaitIdle()
	require.Greater(t, len(left), 2)
	for _, d := range left {
		again := m.open(t, d, qcow2.Options{ReadOnly: true})
		requireRead(t, again, m.content[:at], 0)
		require.NoError(t, again.Close())
	}
	require.NoError(t, im.Close())
}
