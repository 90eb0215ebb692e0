//go:build linux && !race

package qcow2_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/qcow2"
)

// TestHotPathsAllocateNothing: neither an overwrite, inline or not, nor a read, of data
// or of nothing, nor a flush that finds nothing to do, makes garbage. (Under the race
// detector sync.Pool drops what it is given, so not there.)
func TestHotPathsAllocateNothing(t *testing.T) {
	ctx := t.Context()
	f, err := hostfile.Create(filepath.Join(t.TempDir(), "image"), 0, hostfile.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, qcow2.Create(ctx, f, qcow2.CreateOptions{Size: 64 << 20}))
	im, err := qcow2.Open(ctx, f, qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir()})
	require.NoError(t, err)
	p := make([]byte, 64<<10)
	for off := int64(0); off < 8<<20; off += int64(len(p)) {
		require.NoError(t, im.WriteAt(ctx, p, off, 0))
	}
	require.NoError(t, im.Flush(ctx))
	im.WaitIdle()
	for name, request := range map[string]func() error{
		"overwrite":         func() error { return im.WriteAt(ctx, p[:4096], 1<<20, 0) },
		"overwrite, inline": func() error { return im.WriteAt(ctx, p[:4096], 1<<20, block.NoWait) },
		"overwrite, large":  func() error { return im.WriteAt(ctx, p, 1<<20, 0) },
		"read":              func() error { return im.ReadAt(ctx, p[:4096], 1<<20, 0) },
		"read of zeroes":    func() error { return im.ReadAt(ctx, p[:4096], 16<<20, block.NoWait) },
	} {
		var failed error
		n := testing.AllocsPerRun(200, func() {
			if err := request(); err != nil {
				failed = err
			}
		})
		require.NoError(t, failed, name)
		require.Zero(t, n, name)
	}
	require.NoError(t, im.Flush(ctx))
	require.Zero(t, testing.AllocsPerRun(200, func() { _ = im.Flush(ctx) }), "flush of nothing")
	require.NoError(t, im.Close())
	require.NoError(t, f.Close())
}
