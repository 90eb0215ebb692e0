//go:build linux

package hostfile_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
)

// TestReadNow: what was just written is in the page cache, and is read from there.
func TestReadNow(t *testing.T) {
	f, err := hostfile.Create(filepath.Join(t.TempDir(), "disk"), 64<<10, hostfile.CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	want := bytes.Repeat([]byte{7}, 4096)
	_, err = f.WriteAt(want, 8192)
	require.NoError(t, err)
	got := make([]byte, len(want))
	require.True(t, f.ReadNow(got, 8192))
	require.Equal(t, want, got)
	require.True(t, f.ReadNow(got[:1000], 8192+100))
	require.Equal(t, want[:1000], got[:1000])
}
