//go:build linux

package hostfile_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/hostfile"
)

// TestWriteBack: what was hinted at has its place in the storage afterwards, without a
// sync; and the hint is nothing when the file is closed.
func TestWriteBack(t *testing.T) {
	const size = 3*4<<20 + 4096
	path := filepath.Join(t.TempDir(), "disk")
	f, err := hostfile.Create(path, size, hostfile.CreateOptions{})
	require.NoError(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{7}, size), 0)
	require.NoError(t, err)
	f.WriteBack(0, size)
	f.WriteBack(4096, 4096) // again
	f.WriteBack(size, 1<<30)
	require.Zero(t, dirtyPages(t, path, size), "all of it has been waited for")
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	f.WriteBack(0, 4096)
}

// dirtyPages is how many pages of the first n bytes are dirty or being written.
func dirtyPages(t *testing.T, path string, n uint64) uint64 {
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	var stat unix.Cachestat_t
	err = unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Len: n}, &stat, 0)
	if err != nil {
		t.Skipf("cachestat: %v", err)
	}
	return stat.Dirty + stat.Writeback
}
