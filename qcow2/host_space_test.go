package qcow2_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/faultfile"
	"tidemark/qcow2"
)

// TestZeroingThatFoundNoSpace: a cluster that the storage had no space to zero is
// zeroed when the wait for that is over.
func TestZeroingThatFoundNoSpace(t *testing.T) {
	ctx := t.Context()
	f := faultfile.New(newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096}), faultfile.Fault{})
	im, err := qcow2.Open(ctx, f, qcow2.Options{})
	require.NoError(t, err)
	got := bytes.Repeat([]byte{1}, 64<<10)
	require.NoError(t, im.WriteAt(ctx, got, 0, block.FUA))
	f.SetFault(faultfile.Fault{Kinds: faultfile.Zeroes, At: 3, Err: block.ErrNoSpace})
	require.NoError(t, im.WriteZeroes(ctx, 0, int64(len(got)), 0))
	require.Equal(t, 1, f.Injected())
	require.NoError(t, im.ReadAt(ctx, got, 0, 0))
	requireSame(t, make([]byte, len(got)), got, "zeroed")
	require.NoError(t, im.Close())
}
