//go:build linux

package fusefs

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/testenv"
)

// closeLimit bounds the end of a mount in a test.
const closeLimit = time.Minute

// rescueAfter is longer than any test has a mount.
const rescueAfter = 20 * time.Second

// needMount skips a test where mounts cannot be made.
func needMount(t testing.TB) {
	t.Helper()
	testenv.Need(t, "root")
	testenv.Need(t, "fuse")
}

// mountFile shows a Device as a file, and returns the file's path.
func mountFile(t testing.TB, f File, o Options) (*FS, string) {
	t.Helper()
	target := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(target, nil, 0o600))
	return mountAtPath(t, target, []File{f}, o), target
}

// mountDir shows Devices in a directory.
func mountDir(t testing.TB, files []File, o Options) (*FS, string) {
	t.Helper()
	target := t.TempDir()
	return mountAtPath(t, target, files, o), target
}

func mountAtPath(t testing.TB, target string, files []File, o Options) *FS {
	t.Helper()
	needMount(t)
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	fs, err := Mount(target, files, o)
	require.NoError(t, err)
	// A test that hangs in a request to its own process could not even be killed.
	rescue := time.AfterFunc(rescueAfter, func() {
		fs.requests.advance(stopped)
		_ = unix.Unmount(fs.Target(), unix.MNT_FORCE)
	})
	t.Cleanup(func() {
		rescue.Stop()
		closeFS(t, fs)
	})
	return fs
}

// closeFS ends a mount; whoever has it open is a mistake of the test.
func closeFS(t testing.TB, fs *FS) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	require.NoError(t, fs.Close(ctx))
}

// open opens a file of a mount in this process; see fileDevice for why not by
// os.Open.
func open(t testing.TB, path string, flags int) int {
	t.Helper()
	fd := openToClose(t, path, flags)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// openToClose is open for a test that closes the file by itself.
func openToClose(t testing.TB, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	require.NoError(t, err, path)
	return fd
}

// A mounted file is a Device like any other, whatever it is mounted as.
func TestMountConformance(t *testing.T) {
	needMount(t)
	for name, o := range map[string]Options{"MaxWrite=default": {}, "MaxWrite=4096": {MaxWrite: 4096}, "MaxWrite=1M": {MaxWrite: 1 << 20}} {
		t.Run(name, func(t *testing.T) {
			blocktest.TestDevice(t, func(t *testing.T, size int64) block.Device {
				_, path := mountFile(t, File{Device: blocktest.NewMemDevice(size)}, o)
				return openFileDevice(t, path)
			})
		})
	}
	t.Run("directory", func(t *testing.T) {
		blocktest.TestDevice(t, func(t *testing.T, size int64) block.Device {
			other := File{Name: "other.raw", Device: blocktest.NewMemDevice(4096)}
			_, dir := mountDir(t, []File{other, {Name: "disk.raw", Device: blocktest.NewMemDevice(size)}}, Options{})
			return openFileDevice(t, filepath.Join(dir, "disk.raw"))
		})
	})
	t.Run("a file below", func(t *testing.T) {
		blocktest.TestDevice(t, func(t *testing.T, size int64) block.Device {
			_, path := mountFile(t, File{Device: openFileDevice(t, sparseFile(t, size))}, Options{})
			return openFileDevice(t, path)
		})
	})
}
