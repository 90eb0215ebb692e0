package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRedoDirIsOurs: a directory that others may write to, or that is a link, is
// not trusted with what is replayed into images.
func TestRedoDirIsOurs(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	require.True(t, ours(dir))
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(dir, link))
	require.False(t, ours(link))
	require.NoError(t, os.Chmod(dir, 0o770))
	require.False(t, ours(dir))
	require.False(t, ours(filepath.Join(dir, "missing")))
	if got := redoDir(); got != "" {
		require.True(t, ours(got), got)
	}
}
