//go:build linux

package hostfile_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
)

const machineSize = 32 << 20

// mountExt4 mounts the ext4 of a block device until the test ends.
func mountExt4(t *testing.T, device string) (dir string) {
	dir = t.TempDir()
	require.NoError(t, unix.Mount(device, dir, "ext4", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// afterPowerCut is what a file of a file system holds after a power cut: the blocks that
// have reached the device until now are mounted as another file system.
func afterPowerCut(t *testing.T, device *testenv.LoopDevice, name string) []byte {
	other := testenv.Loop(t, machineSize)
	from, err := os.Open(device.File)
	require.NoError(t, err)
	defer from.Close()
	to, err := os.OpenFile(other.Path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = io.Copy(to, from)
	require.NoError(t, err)
	require.NoError(t, to.Sync())
	require.NoError(t, to.Close())
	p, err := os.ReadFile(filepath.Join(mountExt4(t, other.Path), name))
	require.NoError(t, err)
	return p
}

// TestPowerCut: what Sync, WriteAtSync, Grow and Shrink have made durable is there after
// a power cut, and what nobody has is not: the test can tell.
func TestPowerCut(t *testing.T) {
	mkfs := testenv.Tool(t, "mkfs.ext4")
	device := testenv.Loop(t, machineSize)
	testenv.Run(t, mkfs, "-q", device.Path)
	path := filepath.Join(mountExt4(t, device.Path), "disk")
	f, err := hostfile.Create(path, 64<<10, hostfile.CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	left := func() []byte { return afterPowerCut(t, device, "disk") }
	holds := func(b byte, at int) bool {
		p := left()
		return len(p) >= at+4096 && bytes.Equal(p[at:at+4096], bytes.Repeat([]byte{b}, 4096))
	}

	_, err = f.Grow(t.Context(), 1<<20, 1<<20)
	require.NoError(t, err)
	require.Len(t, left(), 1<<20, "grown")

	durable, at := true, 0
	for tries := 0; durable && tries < 5; tries++ { // the kernel writes by itself now and then
		at += 64 << 10
		_, err = f.WriteAt(bytes.Repeat([]byte{1}, 4096), int64(at))
		require.NoError(t, err)
		durable = holds(1, at)
	}
	require.False(t, durable, "written: nothing has made it durable")
	require.NoError(t, f.Sync())
	require.True(t, holds(1, at), "synced")

	_, err = f.WriteAtSync(bytes.Repeat([]byte{2}, 4096), 4096)
	require.NoError(t, err)
	require.True(t, holds(2, 4096), "written durably")

	require.NoError(t, f.Shrink(t.Context(), 1<<20, 512<<10))
	require.Len(t, left(), 512<<10, "shrunk")
}
