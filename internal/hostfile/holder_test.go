//go:build linux

package hostfile

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
)

// Files that nobody has locked are not asked about: they may be on a file system
// that never answers.
func TestHoldersAskAboutLockedFilesOnly(t *testing.T) {
	dir := t.TempDir()
	other, err := os.Create(filepath.Join(dir, "other"))
	require.NoError(t, err)
	defer other.Close()
	f, err := Create(filepath.Join(dir, "image"), 0, CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	file, err := os.Stat(f.Path())
	require.NoError(t, err)

	asked := map[string]bool{}
	stat := func(path string) (os.FileInfo, error) {
		asked[path] = true
		return os.Stat(path)
	}
	fd := func(n int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n) }
	require.Contains(t, holdersBy(stat, file, os.Getpid(), -1), fmt.Sprintf("(pid %d)", os.Getpid()))
	require.True(t, asked[fd(f.fd())])
	require.False(t, asked[fd(int(other.Fd()))])
}

// Who was started as /proc/self/exe is called exe by the kernel, which says nothing.
func TestProcessName(t *testing.T) {
	proc := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(proc, "comm"), []byte("exe\n"), 0o600))
	require.Equal(t, "exe (pid 7)", processName(proc, "7"))
	require.NoError(t, os.Symlink("/usr/bin/server (deleted)", filepath.Join(proc, "exe")))
	require.Equal(t, "server (pid 7)", processName(proc, "7"))
	require.NoError(t, os.WriteFile(filepath.Join(proc, "comm"), []byte("qemu-nbd\n"), 0o600))
	require.Equal(t, "qemu-nbd (pid 7)", processName(proc, "7"))
}

// A lock ends with Close, and is not left by an open that failed, although a child that was
// just begun has a copy of the descriptor.
func TestLockEndsUnderACopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	f, err := Create(path, 4096, CreateOptions{})
	require.NoError(t, err)
	fd, err := unix.Open(path, unix.O_RDWR|openFlags, 0)
	require.NoError(t, err)
	testenv.CopyDescriptors(t, path)
	_, err = adopt(fd, path, Options{})
	require.ErrorIs(t, err, block.ErrInUse)
	require.NoError(t, f.Close())
	f, err = Open(path, Options{})
	require.NoError(t, err)
	require.NoError(t, f.Close())
}
