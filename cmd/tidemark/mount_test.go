package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
)

// needMount skips where mounts cannot be made.
func needMount(t testing.TB) {
	t.Helper()
	testenv.Need(t, "root")
	testenv.Need(t, "fuse")
}

// startMount starts tidemark mount in a process of its own and waits until the
// files are there. Whatever happens, nothing is mounted when the test has ended.
func startMount(t testing.TB, target string, args ...string) *testenv.Process {
	t.Helper()
	needMount(t)
	unmountLater(t, target)
	p := testenv.Start(t, tidemark(t, append(append([]string{"mount"}, args...), target)...))
	awaitOutput(t, p, "file is ready")
	return p
}

func unmountLater(t testing.TB, target string) {
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) })
}

// emptyFile is what a disk can be mounted on.
func emptyFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	return path
}

// dd writes a string at an offset, and makes it durable.
func dd(t testing.TB, path, data string, off int64) {
	t.Helper()
	cmd := testenv.Command(t, "dd", "of="+path, "bs=64k", "oflag=seek_bytes", "conv=notrunc,fsync", "seek="+strconv.FormatInt(off, 10))
	cmd.Stdin = strings.NewReader(data)
	p := testenv.Start(t, cmd)
	require.NoError(t, p.Wait(t, serveLimit), p.Output())
}

// inImage reads an image that nobody serves.
func inImage(t testing.TB, image string, off int64, n int) string {
	t.Helper()
	d, err := openDisk(t.Context(), diskSpec{Image: image, ReadOnly: true})
	require.NoError(t, err)
	p := make([]byte, n)
	require.NoError(t, d.Device().ReadAt(t.Context(), p, off, 0))
	require.NoError(t, d.Close())
	return string(p)
}

func TestMountDirectory(t *testing.T) {
	dir, first, second := t.TempDir(), newImage(t, "64M"), newImage(t, "32M")
	p := startMount(t, dir, first, "other="+second)
	require.Equal(t, "disk.raw\nother.raw\n", testenv.Run(t, "ls", dir))
	dd(t, filepath.Join(dir, "disk.raw"), "first", 1<<20)
	dd(t, filepath.Join(dir, "other.raw"), "second", 2<<20)
	require.Equal(t, "67108864\n", testenv.Run(t, "stat", "-c", "%s", filepath.Join(dir, "disk.raw")))
	r := cli(t, "check", first)
	require.Equal(t, exitFailure, r.code, "it is in use: %v", r)

	testenv.Run(t, "umount", dir)
	require.NoError(t, p.Wait(t, serveLimit), p.Output())
	require.Contains(t, p.Output(), "everything is committed")
	require.Equal(t, "first", inImage(t, first, 1<<20, 5))
	require.Equal(t, "second", inImage(t, second, 2<<20, 6))
	for _, image := range []string{first, second} {
		r := cli(t, "check", image)
		require.Zero(t, r.code, r)
	}
}

// One image as one file; SIGTERM removes the mount, commits, and gives reserved
// space back.
func TestMountFile(t *testing.T) {
	path, image := emptyFile(t), newImage(t, "64M")
	p := startMount(t, path, image)
	require.Equal(t, image+"\n", testenv.Run(t, "findmnt", "-no", "SOURCE", path))
	dd(t, path, "tide", 5<<20)
	stopped(t, p)
	require.Zero(t, fileSize(t, path), "what was mounted on is there again")
	require.Equal(t, "tide", inImage(t, image, 5<<20, 4))
	require.Less(t, fileSize(t, image), int64(1<<20), "reserved space was given back")
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	require.NoError(t, err)
	return st.Size()
}

func TestMountReadOnly(t *testing.T) {
	path, image := emptyFile(t), newImage(t, "1M")
	before := digest(t, image)
	p := startMount(t, path, "-r", image)
	r := testenv.Try(t, "dd", "if=/dev/zero", "of="+path, "bs=4k", "count=1", "conv=notrunc")
	require.Contains(t, r.Stderr, "Read-only file system")
	testenv.Run(t, "cat", path)
	stopped(t, p)
	require.Equal(t, before, digest(t, image))
}

// A file becomes larger by truncate, never smaller.
func TestMountTruncate(t *testing.T) {
	path, image := emptyFile(t), newImage(t, "64M")
	p := startMount(t, path, image)
	testenv.Run(t, "truncate", "-s", "1G", path)
	dd(t, path, "far", 1<<30-3)
	r := testenv.Try(t, "truncate", "-s", "1M", path)
	require.Contains(t, r.Stderr, "Operation not permitted")
	stopped(t, p)
	require.Equal(t, "far", inImage(t, image, 1<<30-3, 3))
	r2 := cli(t, "check", image)
	require.Zero(t, r2.code, r2)
}

// Holes cost nothing: a copy finds them, what is punched is given back, du and df
// tell the truth.
func TestMountSparse(t *testing.T) {
	path, image := emptyFile(t), newImage(t, "1G")
	p := startMount(t, path, image)
	dd(t, path, strings.Repeat("tide", 4<<20), 512<<20)
	copied := filepath.Join(t.TempDir(), "copy")
	testenv.Run(t, "cp", path, copied)
	testenv.Run(t, "cmp", path, copied)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(copied, &st))
	require.Less(t, st.Blocks*512, int64(64<<20), "the copy has the holes")
	before, _ := strconv.Atoi(strings.Fields(testenv.Run(t, "du", "-k", path))[0])
	require.InDelta(t, 16<<10, before, 2<<10, "du, KiB")
	testenv.Run(t, "fallocate", "--punch-hole", "-o", "512M", "-l", "16M", path)
	testenv.Run(t, "cmp", "-n", "16M", "-i", "512M:0", path, "/dev/zero")

	var host, shown unix.Statfs_t
	require.NoError(t, unix.Statfs(filepath.Dir(image), &host))
	require.NoError(t, unix.Statfs(path, &shown))
	require.Equal(t, int64(host.Blocks)*host.Frsize, int64(shown.Blocks)*shown.Frsize)
	require.InDelta(t, int64(host.Bavail)*host.Frsize, int64(shown.Bavail)*shown.Frsize, 8<<30)
	stopped(t, p)
}

// --fork returns when the files are there, and what serves them goes on alone.
func TestMountFork(t *testing.T) {
	needMount(t)
	path, image := emptyFile(t), newImage(t, "64M")
	unmountLater(t, path)
	p := testenv.Start(t, tidemark(t, "mount", "--fork", image, path))
	require.NoError(t, p.Wait(t, serveLimit), p.Output())
	require.Contains(t, p.Output(), "file is ready")
	dd(t, path, "tide", 0)
	testenv.Run(t, "umount", path)
	testenv.Eventually(t, serveLimit, "the server has ended", func() bool {
		d, err := openDisk(t.Context(), diskSpec{Image: image})
		if err != nil {
			return false
		}
		return d.Close() == nil
	})
	require.Equal(t, "tide", inImage(t, image, 0, 4))
}

// An error before that is told, once, with its exit code.
func TestMountForkFails(t *testing.T) {
	needMount(t)
	none := filepath.Join(t.TempDir(), "none.qcow2")
	p := testenv.Start(t, tidemark(t, "mount", "--fork", none, emptyFile(t)))
	require.ErrorContains(t, p.Wait(t, serveLimit), "exit status 1")
	require.Equal(t, 1, strings.Count(p.Output(), "tidemark: "), p.Output())
	require.Contains(t, p.Output(), "none.qcow2")
}

// After SIGKILL the next server takes the place, and the data is there.
func TestMountAfterKill(t *testing.T) {
	path, image := emptyFile(t), newImage(t, "64M")
	p := startMount(t, path, image)
	dd(t, path, "tide", 3<<20)
	p.Kill()
	r := testenv.Try(t, "cat", path)
	require.Contains(t, r.Stderr, "Transport endpoint is not connected")
	p = startMount(t, path, image)
	require.Contains(t, p.Output(), "removed what a server that died has left")
	require.Equal(t, "tide", testenv.Run(t, "dd", "if="+path, "bs=4", "count=1", "skip=786432", "status=none"))

	r2 := cli(t, "mount", newImage(t, "1M"), path)
	require.Equal(t, exitFailure, r2.code, r2)
	require.Contains(t, r2.stderr, "in use: tidemark serves "+image+" there: umount it first, or choose another place")
	stopped(t, p)
}

// Whoever has a file open is served on, until he closes it or the patience of the
// one who asked is over: a second signal ends at once.
func TestMountStopsWhileInUse(t *testing.T) {
	path, image := emptyFile(t), newImage(t, "64M")
	open := func() *testenv.Process {
		cmd := testenv.Command(t, "sleep", "600")
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		f := os.NewFile(uintptr(fd), path)
		cmd.Stdin = f
		user := testenv.Start(t, cmd)
		require.NoError(t, f.Close())
		return user
	}
	p := startMount(t, path, image)
	user := open()
	require.NoError(t, p.Signal(syscall.SIGTERM))
	awaitOutput(t, p, "the mount is in use")
	require.Contains(t, p.Output(), "sleep (pid "+strconv.Itoa(user.Cmd.Process.Pid)+")")
	user.Kill()
	require.NoError(t, p.Wait(t, serveLimit), p.Output())

	p = startMount(t, path, image)
	user = open()
	require.NoError(t, p.Signal(syscall.SIGTERM))
	awaitOutput(t, p, "the mount is in use")
	require.NoError(t, p.Signal(syscall.SIGTERM))
	require.Error(t, p.Wait(t, 5*time.Second))
	user.Kill()
}

// A volume grows under its writer; on a full pool a write waits until there is
// space, however long that takes, and df shows the pool.
func TestMountVolume(t *testing.T) {
	needMount(t)
	dir := filepath.Join(t.TempDir(), "pool")
	socket := filepath.Join(dir, "spm.sock")
	p := testenv.Start(t, tidemark(t, "spm", "--dir", dir, "--capacity", "384M", "--patience", "1s"))
	awaitOutput(t, p, "ready: ")
	for _, name := range []string{"disk1", "filler"} {
		r := cli(t, "volume", "create", "--spm", socket, "--size", "4G", name)
		require.Zero(t, r.code, r)
	}
	mnt := t.TempDir()
	server := startMount(t, mnt, "--spm", socket, "disk1")
	path := filepath.Join(mnt, "disk1.raw")
	var s unix.Statfs_t
	require.NoError(t, unix.Statfs(mnt, &s))
	require.EqualValues(t, 384<<20, int64(s.Blocks)*s.Frsize, "df shows the pool")

	r := testenv.Try(t, "truncate", "-s", "8G", path)
	require.Contains(t, r.Stderr, "Operation not permitted", "its bound is for the size that it has")
	writer := testenv.Start(t, testenv.Command(t, "dd", "if=/dev/zero", "of="+path, "bs=1M", "count=300", "conv=notrunc,fsync"))
	awaitOutput(t, server, "writes wait for space")
	time.Sleep(1500 * time.Millisecond) // longer than the pool's patience: it is not the mount's
	select {
	case <-writer.Done():
		t.Fatalf("the write did not wait: %s", writer.Output())
	default:
	}
	r2 := cli(t, "volume", "remove", "--spm", socket, "filler")
	require.Zero(t, r2.code, r2)
	require.NoError(t, writer.Wait(t, serveLimit), writer.Output())
	stopped(t, server)
}

func TestMountPlan(t *testing.T) {
	for _, c := range []struct {
		args []string
		env  string
		want []mountFile
		spm  string
	}{
		{[]string{"/a/disk.qcow2", "dir"}, "", []mountFile{{"disk.raw", "/a/disk.qcow2"}}, ""},
		{[]string{"disk.img", "x=disk.qcow2", "dir"}, "", []mountFile{{"disk.raw", "disk.img"}, {"x.raw", "disk.qcow2"}}, ""},
		{[]string{"./a=b.qcow2", "dir"}, "", []mountFile{{"a=b.raw", "./a=b.qcow2"}}, ""},
		{[]string{"x=/a=b", "dir"}, "", []mountFile{{"x.raw", "/a=b"}}, ""},
		{[]string{"vm1", "./f.qcow2", "dir"}, "/s", []mountFile{{"vm1.raw", "vm1"}, {"f.raw", "./f.qcow2"}}, "/s"},
		{[]string{"./f.qcow2", "dir"}, "/s", []mountFile{{"f.raw", "./f.qcow2"}}, ""},
		{[]string{".qcow2", "dir"}, "", []mountFile{{".qcow2.raw", ".qcow2"}}, ""},
	} {
		o := &mountOptions{discard: &choice{value: "unmap"}, format: &choice{value: formatQCOW2}, backing: &backingChoice{}}
		p, err := o.plan(c.args, c.env)
		require.NoError(t, err, "%v", c.args)
		require.Equal(t, c.want, p.files)
		require.Equal(t, c.spm, p.spm)
		require.Equal(t, "dir", p.target)
	}
}

func TestMountMistakes(t *testing.T) {
	image := newImage(t, "1M")
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "expected [NAME=]IMAGE... and DIR or FILE, found 0 operands"},
		{[]string{image}, "found 1 operands"},
		{[]string{"a/d.qcow2", "b/d.qcow2", "dir"}, "a/d.qcow2 and b/d.qcow2 would both be d.raw: name one of them, as NAME=b/d.qcow2"},
		{[]string{"x=d", "y=d", "dir"}, "d is given twice"},
		{[]string{"=d", "dir"}, "=d: expected NAME=IMAGE or IMAGE"},
		{[]string{"x=", "dir"}, "x=: expected NAME=IMAGE or IMAGE"},
		{[]string{"--spm", "/s", "./d", "dir"}, "expected the name or UUID of a volume, found the path ./d"},
		{[]string{"-f", "vmdk", "d", "dir"}, "expected"},
		{[]string{"--no-such-option", "d", "dir"}, "see tidemark mount --help"},
		{[]string{image + ".none", t.TempDir()}, "no such file"},
		{[]string{image, filepath.Join(t.TempDir(), "none")}, "make a directory there (mkdir), or for a single disk an empty file (touch)"},
		{[]string{image, filepath.Dir(image)}, "expected an empty directory, found disk.qcow2 in it"},
	} {
		r := cli(t, append([]string{"mount"}, c.args...)...)
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, c.want)
	}
}

// What was opened is closed when the mount cannot be made.
func TestMountFailsHalfWay(t *testing.T) {
	image := newImage(t, "1M")
	before := digest(t, image)
	r := cli(t, "mount", image, filepath.Join(t.TempDir(), "none"))
	require.Equal(t, exitFailure, r.code, r)
	require.Equal(t, before, digest(t, image))
	d, err := openDisk(context.Background(), diskSpec{Image: image})
	require.NoError(t, err, "it is not locked")
	require.NoError(t, d.Close())
}
