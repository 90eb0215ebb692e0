package main

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
)

// The real engine under fio, and under a loop device with a file system; also with a
// single processor, on which who waits for the kernel must not keep it waiting.
func TestMountWorkloads(t *testing.T) {
	for _, processors := range []string{"2", "1"} {
		t.Run("GOMAXPROCS="+processors, func(t *testing.T) {
			t.Setenv("GOMAXPROCS", processors) // of the program that mounts
			testMountWorkloads(t)
		})
	}
}

func testMountWorkloads(t *testing.T) {
	path, image := emptyFile(t), newImage(t, "512M")
	p := startMount(t, path, image)
	for _, options := range []string{
		"--ioengine=io_uring --direct=1 --iodepth=16 --bs=4k --size=64m",
		"--ioengine=libaio --direct=1 --iodepth=8 --bsrange=512-128k --blockalign=512 --size=64m --offset=64m",
		"--ioengine=psync --bs=4k --size=16m --numjobs=4 --thread --offset=128m --offset_increment=16m --fsync=32",
	} {
		args := append(strings.Fields(options), "--name=v", "--filename="+path, "--rw=randwrite", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0")
		testenv.Run(t, testenv.Tool(t, "fio"), args...)
	}
	testenv.Run(t, "fallocate", "--punch-hole", "-o", "0", "-l", "512M", path)
	testenv.Need(t, "loop")
	device := strings.TrimSpace(testenv.Run(t, "losetup", "-f", "--show", "--direct-io=on", path))
	mnt := t.TempDir()
	t.Cleanup(func() {
		_ = unix.Unmount(mnt, unix.MNT_DETACH)
		testenv.Try(t, "losetup", "-d", device)
	})
	testenv.Run(t, testenv.Tool(t, "mkfs.ext4"), "-q", "-F", device)
	testenv.Run(t, "mount", device, mnt)
	data := bytes.Repeat([]byte("tidemark"), 1<<20)
	for _, name := range []string{"a", "b", "c", "d"} {
		require.NoError(t, os.WriteFile(filepath.Join(mnt, name), data, 0o600))
	}
	testenv.Run(t, "sync", "-f", mnt)
	testenv.Run(t, "fstrim", mnt)
	testenv.Run(t, "umount", mnt)
	testenv.Run(t, "e2fsck", "-fn", device)
	testenv.Run(t, "losetup", "-d", device)
	stopped(t, p)
	r := cli(t, "check", image)
	require.Zero(t, r.code, r)
	testenv.Run(t, testenv.Tool(t, "qemu-img"), "check", image)
}

// Random operations on the file of an image, compared with an array of bytes as they
// go, and in the end with what QEMU finds in the image; the server is stopped and
// started again on the way.
func TestMountRandomOperations(t *testing.T) {
	for _, processors := range []string{"2", "1"} {
		t.Run("GOMAXPROCS="+processors, func(t *testing.T) {
			t.Setenv("GOMAXPROCS", processors)
			_, rng := testenv.Seed(t)
			path, image := emptyFile(t), newImage(t, "4M")
			want := make([]byte, 4<<20)
			for range 4 {
				p := startMount(t, path, image)
				f, err := os.OpenFile(path, os.O_RDWR, 0)
				require.NoError(t, err)
				for i := range 1000 {
					randomOperation(t, f, want, rng, i)
				}
				got, err := io.ReadAll(f)
				require.NoError(t, err)
				require.True(t, bytes.Equal(want, got), "the whole file")
				require.NoError(t, f.Close())
				stopped(t, p)
			}
			raw := filepath.Join(t.TempDir(), "raw")
			require.NoError(t, os.WriteFile(raw, want, 0o600))
			testenv.Run(t, testenv.Tool(t, "qemu-img"), "compare", "-f", "qcow2", "-F", "raw", image, raw)
			testenv.Run(t, "qemu-img", "check", image)
		})
	}
}

// randomOperation does one, and reads what it has changed and what is around it.
func randomOperation(t *testing.T, f *os.File, want []byte, rng *rand.Rand, i int) {
	t.Helper()
	off := rng.IntN(len(want))
	n := 1 + rng.IntN(min(len(want)-off, 1<<(1+rng.IntN(18))))
	zero := func(mode uint32) {
		require.NoError(t, unix.Fallocate(int(f.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)))
		clear(want[off : off+n])
	}
	switch rng.IntN(8) {
	case 0:
		zero(unix.FALLOC_FL_PUNCH_HOLE)
	case 1:
		zero(unix.FALLOC_FL_ZERO_RANGE)
	case 2:
		require.NoError(t, f.Sync())
	default:
		for k := range want[off : off+n] {
			want[off+k] = byte(rng.Uint32())
		}
		_, err := f.WriteAt(want[off:off+n], int64(off))
		require.NoError(t, err)
	}
	from, to := max(0, off-4096), min(len(want), off+n+4096)
	got := make([]byte, to-from)
	_, err := f.ReadAt(got, int64(from))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want[from:to], got), "operation %d: bytes %d to %d", i, from, to)
}
