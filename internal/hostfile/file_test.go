//go:build linux

package hostfile_test

import (
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
