//go:build linux

package qcow2_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/hostfile"
	"tidemark/qcow2"
)

func TestDevice(t *testing.T) {
	for name, o := range map[string]qcow2.CreateOptions{
		"default":      {},
		"512":          {ClusterSize: 512, RefcountBits: 64},
		"v2":           {Version: 2, ClusterSize: 4096},
		"2M-refcount1": {ClusterSize: 2 << 20, RefcountBits: 1},
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.TestDevice(t, func(t *testing.T, size int64) block.Device {
				o.Size = size
				return newImage(t, o, qcow2.Options{})
			})
		})
	}
}

// newImage makes an image in a scratch file and opens it. At the end of the
// test it must be closed or closable, and clean.
func newImage(t *testing.T, c qcow2.CreateOptions, o qcow2.Options) *qcow2.Image {
	t.Helper()
	ctx := context.Background()
	f, err := hostfile.Create(filepath.Join(t.TempDir(), "image.qcow2"), 0, hostfile.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, qcow2.Create(ctx, f, c))
	im, err := qcow2.Open(ctx, f, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			require.ErrorIs(t, err, block.ErrClosed)
		}
		res, err := qcow2.Check(ctx, f, qcow2.CheckOptions{})
		require.NoError(t, err)
		require.True(t, res.Clean(), "%+v", res)
		require.NoError(t, f.Close())
	})
	return im
}
