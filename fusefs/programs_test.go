//go:build linux

package fusefs

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
)

// What fio has written is what it reads, through every kind of I/O that Linux
// has, with one processor and with two. (qemu-storage-daemon 7.2 fails the first
// line at depth 2.)
func TestFio(t *testing.T) {
	fio := testenv.Tool(t, "fio")
	for _, env := range []string{"GOMAXPROCS=2", "GOMAXPROCS=1"} {
		_, path := startServer(t, serverSpec{Disk: sparseFile(t, 64<<20)}, env)
		for name, options := range map[string]string{
			"io_uring": "--ioengine=io_uring --direct=1 --iodepth=16 --rw=randwrite --bs=4k --size=64m",
			"libaio":   "--ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite --bsrange=512-256k --blockalign=512 --size=64m",
			"psync":    "--ioengine=psync --rw=randwrite --bsrange=512-64k --bs_unaligned --size=16m",
			"jobs":     "--ioengine=psync --rw=randrw --bs=4k --size=16m --numjobs=4 --thread --offset_increment=16m --fsync=64",
			"large":    "--ioengine=io_uring --direct=1 --iodepth=4 --rw=write --bs=1m --size=64m",
			"mmap":     "--ioengine=mmap --rw=randwrite --bs=4k --size=16m",
		} {
			t.Run(env+"/"+name, func(t *testing.T) {
				args := append([]string{"--name=" + name, "--filename=" + path, "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--group_reporting"},
					strings.Fields(options)...)
				testenv.Run(t, fio, args...)
			})
		}
	}
}

// A loop device, a file system on it, files, and everything as it was after the
// server has been restarted.
func TestLoopDevice(t *testing.T) {
	for _, direct := range []string{"on", "off"} {
		t.Run("direct-io="+direct, func(t *testing.T) {
			_, rng := testenv.Seed(t)
			disk := sparseFile(t, 256<<20)
			spec := serverSpec{Disk: disk}
			p, path := startServer(t, spec, "GOMAXPROCS=1")
			unmount := mountLoop(t, path, direct, true)
			sums := writeFiles(t, unmount.dir, rng)
			removed := allocatedBytes(t, disk)
			require.NoError(t, os.RemoveAll(filepath.Join(unmount.dir, "0")))
			unix.Sync() // or the blocks are not free yet
			testenv.Run(t, testenv.Tool(t, "fstrim"), unmount.dir)
			require.Less(t, allocatedBytes(t, disk), removed-filesBytes/4, "what was trimmed is given back")
			unmount.all()
			stopServer(t, p)

			p, _ = startServer(t, serverSpec{Disk: disk, Target: path})
			unmount = mountLoop(t, path, direct, false)
			for name, sum := range sums {
				if !strings.HasPrefix(name, "0/") {
					require.Equal(t, sum, sumOf(t, filepath.Join(unmount.dir, name)), name)
				}
			}
			unmount.all()
			stopServer(t, p)
		})
	}
}

// A loopMount is a file system in a file, and how to be rid of it.
type loopMount struct {
	t      testing.TB
	device string
	dir    string
}

func mountLoop(t testing.TB, path, direct string, format bool) *loopMount {
	t.Helper()
	testenv.Need(t, "loop")
	m := &loopMount{t: t, dir: t.TempDir()}
	m.device = strings.TrimSpace(testenv.Run(t, testenv.Tool(t, "losetup"), "-f", "--show", "--direct-io="+direct, path))
	t.Cleanup(func() { // what a failed test has left
		_ = unix.Unmount(m.dir, unix.MNT_DETACH)
		if m.device != "" {
			testenv.Try(t, "losetup", "-d", m.device)
		}
	})
	if format {
		testenv.Run(t, testenv.Tool(t, "mkfs.ext4"), "-q", "-F", m.device)
	}
	testenv.Run(t, testenv.Tool(t, "e2fsck"), "-fn", m.device)
	testenv.Run(t, "mount", m.device, m.dir)
	return m
}

// all unmounts, and requires that the file system is clean.
func (m *loopMount) all() {
	m.t.Helper()
	testenv.Run(m.t, "umount", m.dir)
	testenv.Run(m.t, "e2fsck", "-fn", m.device)
	testenv.Run(m.t, "losetup", "-d", m.device)
	m.device = ""
}

const (
	filesCount = 200
	filesBytes = 200 * 300 << 10 // about
)

// writeFiles writes many files, some with fsync, and returns their sums.
func writeFiles(t testing.TB, dir string, rng *rand.Rand) map[string]string {
	t.Helper()
	sums := make(map[string]string)
	for i := range filesCount {
		name := fmt.Sprintf("%d/file %d", i%2, i)
		p := make([]byte, 200<<10+rng.IntN(200<<10))
		noise(rng, p)
		require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700))
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(t, err)
		_, err = f.Write(p)
		require.NoError(t, err)
		if i%10 == 0 {
			require.NoError(t, f.Sync())
		}
		require.NoError(t, f.Close())
		sums[name] = fmt.Sprintf("%x", sha256.Sum256(p))
	}
	unix.Sync()
	return sums
}

func sumOf(t testing.TB, path string) string {
	t.Helper()
	p, err := os.ReadFile(path)
	require.NoError(t, err)
	return fmt.Sprintf("%x", sha256.Sum256(p))
}

// allocatedBytes is what a file of the host takes.
func allocatedBytes(t testing.TB, path string) int64 {
	t.Helper()
	return stat(t, path).Blocks * 512
}

// The server is killed under a file system: everybody gets errors, nobody hangs,
// and after the next start what was synced is there.
func TestKilledUnderLoop(t *testing.T) {
	_, rng := testenv.Seed(t)
	disk := sparseFile(t, 256<<20)
	p, path := startServer(t, serverSpec{Disk: disk})
	m := mountLoop(t, path, "on", true)
	sums := writeFiles(t, m.dir, rng)
	p.Kill()
	testenv.Run(t, "umount", "-l", m.dir)
	testenv.Run(t, "losetup", "-d", m.device)
	m.device = ""

	p, _ = startServer(t, serverSpec{Disk: disk, Target: path})
	require.Contains(t, p.Output(), "removed what a server that died has left")
	device := strings.TrimSpace(testenv.Run(t, "losetup", "-f", "--show", path))
	r := testenv.Try(t, "e2fsck", "-fy", device) // 1: the journal was replayed
	require.LessOrEqual(t, r.ExitCode, 1, r)
	testenv.Run(t, "losetup", "-d", device)
	m = mountLoop(t, path, "on", false)
	for name, sum := range sums {
		require.Equal(t, sum, sumOf(t, filepath.Join(m.dir, name)), name)
	}
	m.all()
	stopServer(t, p)
}

// cp finds the holes, with what stat says and SEEK_DATA.
func TestSparseCopy(t *testing.T) {
	disk := sparseFile(t, 64<<20)
	d := openFileDevice(t, disk)
	require.NoError(t, d.WriteAt(t.Context(), []byte(strings.Repeat("data", 1024)), 32<<20, 0))
	used := func() int64 { return allocatedBytes(t, disk) }
	_, path := mountFile(t, File{Device: d, Allocated: used}, Options{})
	to := filepath.Join(t.TempDir(), "copy")
	testenv.Run(t, "cp", path, to)
	require.Equal(t, sumOf(t, disk), sumOf(t, to))
	require.Less(t, allocatedBytes(t, to), int64(1<<20))
}
