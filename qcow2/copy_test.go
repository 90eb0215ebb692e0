package qcow2_test

import (
	"bytes"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block/blocktest"
	"tidemark/internal/faultfile"
	"tidemark/qcow2"
)

// TestCopyBesideWriteInPlace: a write that begins where sub-clusters must be copied
// and ends in one that is the disk's own does not write the rest of that one: it may
// be another request's at that moment.
func TestCopyBesideWriteInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		const sub = 512
		f := faultfile.New(newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 32 * sub, ExtendedL2: true,
			BackingFile: "below", BackingFormat: "raw"}), faultfile.Fault{})
		im, err := qcow2.Open(ctx, f, qcow2.Options{Backing: blocktest.NewMemDevice(1 << 20)})
		require.NoError(t, err)
		want := make([]byte, 8*sub)
		fill := func(from, end int, b byte) []byte { return append([]byte(nil), fillBytes(want[from:end], b)...) }
		require.NoError(t, im.WriteAt(ctx, fill(2*sub, 3*sub, 1), 2*sub, 0)) // it gets a host cluster
		g := newGate()
		defer g.open()
		f.Hook(func(op faultfile.Op) {
			if op.Kind == faultfile.Write && op.Len > 100 {
				g.pass()
			}
		}, nil)
		slow := make(chan error, 1)
		end := 2*sub + 100
		go func() { slow <- im.WriteAt(ctx, fill(sub+7, end, 2), sub+7, 0) }()
		synctest.Wait()
		require.EqualValues(t, 1, g.inside.Load())
		require.NoError(t, im.WriteAt(ctx, fill(end+100, end+200, 3), int64(end+100), 0))
		g.open()
		require.NoError(t, <-slow)
		got := make([]byte, len(want))
		require.NoError(t, im.ReadAt(ctx, got, 0, 0))
		requireSame(t, want, got, "the disk")
		require.NoError(t, im.Close())
	})
}

func fillBytes(p []byte, b byte) []byte {
	copy(p, bytes.Repeat([]byte{b}, len(p)))
	return p
}
