package qcow2_test

import (
	"bytes"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// TestCompletedBesideAllocatingWrite: a write into a cluster that another request
// has taken, and whose entry that one has not written yet, survives the death of
// the process when it is complete. (The crash lab found that it did not.)
func TestCompletedBesideAllocatingWrite(t *testing.T) {
	const slow = 3 * sector // the length of the write that takes the cluster
	d := simdisk.New(0, simdisk.Options{})
	require.NoError(t, qcow2.Create(t.Context(), d, qcow2.CreateOptions{Size: 1 << 20}))
	f := faultfile.New(d, faultfile.Fault{})
	im, err := qcow2.Open(t.Context(), f, qcow2.Options{})
	require.NoError(t, err)
	reached, release := make(chan struct{}), make(chan struct{})
	f.Hook(func(op faultfile.Op) {
		if op.Kind == faultfile.Write && op.Len == slow {
			close(reached)
			<-release
		}
	}, nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := im.WriteAt(t.Context(), make([]byte, slow), 0, 0); err != nil {
			t.Error(err)
		}
	})
	<-reached
	want := bytes.Repeat([]byte{7}, sector)
	require.NoError(t, im.WriteAt(t.Context(), want, 8*sector, 0))
	left := d.Crash(simdisk.KeepAll)
	close(release)
	wg.Wait()
	require.NoError(t, im.Close())

	again, err := qcow2.Open(t.Context(), left, qcow2.Options{ReadOnly: true})
	require.NoError(t, err)
	got := make([]byte, sector)
	require.NoError(t, again.ReadAt(t.Context(), got, 8*sector, 0))
	require.Equal(t, want, got)
}
