//go:build linux

package rawimage_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/hostfile"
	"tidemark/internal/rawimage"
)

func TestDeviceOfHostFile(t *testing.T) {
	blocktest.TestDevice(t, func(t *testing.T, size int64) block.Device {
		f, err := hostfile.Create(filepath.Join(t.TempDir(), "disk"), size, hostfile.CreateOptions{})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, f.Close()) })
		im, err := rawimage.Open(f, rawimage.Options{DiscardsSafely: true, Data: f.Data})
		require.NoError(t, err)
		return im
	})
}
