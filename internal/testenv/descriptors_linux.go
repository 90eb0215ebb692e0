package testenv

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// CopyDescriptors copies the descriptors that this process has of a file, until the test
// ends, as a child has them between fork and exec. It must have some.
func CopyDescriptors(t testing.TB, path string) {
	t.Helper()
	path, err := filepath.EvalSymlinks(path)
	require.NoError(t, err)
	all, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	found := false
	for _, e := range all {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || to != path {
			continue
		}
		n, err := strconv.Atoi(e.Name())
		require.NoError(t, err)
		fd, err := unix.FcntlInt(uintptr(n), unix.F_DUPFD_CLOEXEC, 0)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, unix.Close(fd)) })
		found = true
	}
	require.True(t, found, "no descriptor of %s", path)
}
