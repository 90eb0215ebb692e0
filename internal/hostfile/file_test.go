//go:build linux

package hostfile_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/hostfile"
)

func TestFile(t *testing.T) {
	blocktest.TestFile(t, func(t *testing.T, size int64) block.File {
		f, err := hostfile.Create(filepath.Join(t.TempDir(), "disk"), size, hostfile.CreateOptions{})
		require.NoError(t, err)
		return f
	})
}

// Who does not open a file can say what it is called.
func TestID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	f, err := hostfile.Create(path, 4096, hostfile.CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	st, err := os.Lstat(path)
	require.NoError(t, err)
	require.NotEmpty(t, hostfile.ID(st))
	require.Equal(t, f.Info().ID, hostfile.ID(st))
}
