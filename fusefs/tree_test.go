//go:build linux

package fusefs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st), path)
	return st
}

func TestDirectory(t *testing.T) {
	var files []File
	var names []string
	for i := range 300 { // more than one READDIR
		name := fmt.Sprintf("disk number %d of many, with a long name.raw", i)
		files = append(files, File{Name: name, Device: newFakeDevice(int64(i) * 512)})
		names = append(names, name)
	}
	_, dir := mountDir(t, files, Options{})
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	got := make([]string, 0, len(entries))
	for _, e := range entries {
		require.True(t, e.Type().IsRegular(), e.Name())
		got = append(got, e.Name())
	}
	require.ElementsMatch(t, names, got)
	for i, name := range names {
		st := stat(t, filepath.Join(dir, name))
		require.EqualValues(t, i*512, st.Size)
		require.EqualValues(t, i+2, st.Ino)
	}
	require.ErrorIs(t, unix.Access(filepath.Join(dir, "no such disk"), unix.F_OK), unix.ENOENT)
}

// The names do not change, whoever tries.
func TestDirectoryIsFixed(t *testing.T) {
	_, dir := mountDir(t, []File{{Name: "a.raw", Device: newFakeDevice(4096)}}, Options{})
	a, b := filepath.Join(dir, "a.raw"), filepath.Join(dir, "b.raw")
	_, create := unix.Open(b, unix.O_CREAT|unix.O_RDWR, 0o600)
	for name, err := range map[string]error{
		"create": create, "mknod": unix.Mknod(b, unix.S_IFREG|0o600, 0), "mkdir": unix.Mkdir(b, 0o700),
		"symlink": unix.Symlink(a, b), "link": unix.Link(a, b), "rename": unix.Rename(a, b),
		"unlink": unix.Unlink(a), "rmdir": unix.Rmdir(a),
		"chmod of the directory": unix.Chmod(dir, 0o700), "chown of the directory": unix.Chown(dir, 1, 1),
	} {
		if name == "rmdir" {
			require.ErrorIs(t, err, unix.ENOTDIR, "by the kernel")
			continue
		}
		require.ErrorIs(t, err, unix.EPERM, name)
	}
	stat(t, a)
}

func TestAttributes(t *testing.T) {
	d := newFakeDevice(1 << 20)
	allocated := int64(8192)
	_, path := mountFile(t, File{Device: d, Allocated: func() int64 { return allocated }}, Options{})
	st := stat(t, path)
	require.EqualValues(t, 1<<20, st.Size)
	require.EqualValues(t, 16, st.Blocks, "units of 512 bytes that are allocated")
	require.EqualValues(t, unix.S_IFREG|0o600, st.Mode)
	require.EqualValues(t, os.Geteuid(), st.Uid)

	require.NoError(t, unix.Chmod(path, 0o640))
	require.NoError(t, unix.Chown(path, 12, 34))
	then := time.Date(2001, 2, 3, 4, 5, 6, 7, time.UTC)
	require.NoError(t, os.Chtimes(path, then, then))
	st = stat(t, path)
	require.EqualValues(t, unix.S_IFREG|0o640, st.Mode)
	require.EqualValues(t, 12, st.Uid)
	require.EqualValues(t, 34, st.Gid)
	require.Equal(t, then.UnixNano(), st.Mtim.Nano())

	fd := open(t, path, unix.O_RDWR)
	_, err := unix.Pread(fd, make([]byte, 512), 0)
	require.NoError(t, err)
	st = stat(t, path)
	require.Equal(t, then.UnixNano(), st.Mtim.Nano(), "a read changes nothing")
	_, err = unix.Pwrite(fd, make([]byte, 512), 0)
	require.NoError(t, err)
	st = stat(t, path)
	require.WithinDuration(t, time.Now(), time.Unix(st.Mtim.Unix()), time.Minute, "a write sets the time")
}

// truncate(2) makes the disk larger, and never smaller.
func TestTruncate(t *testing.T) {
	d := newFakeDevice(4 << 20)
	d.size.Store(1 << 20)
	resize := func(_ context.Context, size int64) error { d.size.Store(size); return nil }
	_, path := mountFile(t, File{Device: d, Resize: resize}, Options{})
	fd := open(t, path, unix.O_RDWR)
	_, err := unix.Pwrite(fd, []byte("x"), 2<<20)
	require.Equal(t, unix.EFBIG, err, "a write does not make it larger")
	require.NoError(t, unix.Ftruncate(fd, 3<<20))
	require.EqualValues(t, 3<<20, d.size.Load())
	require.EqualValues(t, 3<<20, stat(t, path).Size)
	_, err = unix.Pwrite(fd, []byte("x"), 2<<20)
	require.NoError(t, err)
	require.NoError(t, unix.Truncate(path, 3<<20), "the size that it has")
	require.NoError(t, unix.Truncate(path, 4<<20))
	require.Equal(t, unix.EPERM, unix.Truncate(path, 4<<20-1))
	require.Equal(t, unix.EPERM, unix.Ftruncate(fd, 0))
	_, err = unix.Open(path, unix.O_RDWR|unix.O_TRUNC, 0)
	require.Equal(t, unix.EPERM, err)
	require.EqualValues(t, 4<<20, stat(t, path).Size)

	_, fixed := mountFile(t, File{Device: newFakeDevice(1 << 20)}, Options{})
	require.Equal(t, unix.EPERM, unix.Truncate(fixed, 2<<20), "this one keeps its size")
	require.NoError(t, unix.Truncate(fixed, 1<<20))
}

// A disk that grows by another way is seen to, and can be used at once.
func TestGrowsByItself(t *testing.T) {
	d := newFakeDevice(2 << 20)
	d.size.Store(1 << 20)
	_, path := mountFile(t, File{Device: d}, Options{})
	fd := open(t, path, unix.O_RDWR)
	require.EqualValues(t, 1<<20, stat(t, path).Size)
	d.size.Store(2 << 20)
	n, err := unix.Pwrite(fd, []byte("x"), 2<<20-1)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.EqualValues(t, 2<<20, stat(t, path).Size)
}

func TestStatfs(t *testing.T) {
	var free atomic.Int64
	free.Store(3 << 30)
	_, dir := mountDir(t, []File{{Name: "a.raw", Device: newFakeDevice(1 << 20)}}, Options{Space: func() (int64, int64) { return 10 << 30, free.Load() }})
	var s unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &s))
	require.EqualValues(t, 4096, s.Bsize)
	require.EqualValues(t, 4096, s.Frsize)
	require.EqualValues(t, 10<<30/4096, s.Blocks)
	require.EqualValues(t, 3<<30/4096, s.Bfree)
	require.EqualValues(t, 3<<30/4096, s.Bavail)
	free.Store(0)
	require.NoError(t, unix.Statfs(dir, &s))
	require.Zero(t, s.Bavail, "it is asked each time")

	_, path := mountFile(t, File{Device: newFakeDevice(1 << 20)}, Options{})
	require.NoError(t, unix.Statfs(path, &s))
	require.EqualValues(t, 1<<20/4096, s.Blocks)
	require.Zero(t, s.Bfree)
}

func TestReadOnly(t *testing.T) {
	d := newFakeDevice(1 << 20)
	_, path := mountFile(t, File{Device: d}, Options{ReadOnly: true})
	_, err := unix.Open(path, unix.O_RDWR, 0)
	require.Equal(t, unix.EROFS, err)
	require.Equal(t, unix.EROFS, unix.Truncate(path, 2<<20))
	require.EqualValues(t, unix.S_IFREG|0o400, stat(t, path).Mode)
	_, err = unix.Pread(open(t, path, unix.O_RDONLY), make([]byte, 512), 0)
	require.NoError(t, err)
	var s unix.Statfs_t
	require.NoError(t, unix.Statfs(path, &s))
	require.NotZero(t, s.Flags&unix.ST_RDONLY, "the kernel knows")

	// A Device that is read-only beside one that is not.
	_, dir := mountDir(t, []File{{Name: "ro.raw", Device: &readOnlyDevice{newFakeDevice(1 << 20)}}, {Name: "rw.raw", Device: d}}, Options{})
	_, err = unix.Open(filepath.Join(dir, "ro.raw"), unix.O_WRONLY, 0)
	require.Equal(t, unix.EROFS, err)
	open(t, filepath.Join(dir, "rw.raw"), unix.O_WRONLY)
}

type readOnlyDevice struct{ *fakeDevice }

func (d *readOnlyDevice) Info() block.DeviceInfo {
	in := d.fakeDevice.Info()
	in.ReadOnly = true
	return in
}

// What cannot be shown is refused, with what to do.
func TestMountRefuses(t *testing.T) {
	needMount(t)
	d := newFakeDevice(4096)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.Mkdir(path("empty"), 0o700))
	require.NoError(t, os.WriteFile(path("content"), []byte("dear"), 0o600))
	require.NoError(t, os.WriteFile(path("file"), nil, 0o600))
	require.NoError(t, unix.Mkfifo(path("fifo"), 0o600))
	one := []File{{Name: "a.raw", Device: d}}
	for _, c := range []struct {
		target string
		files  []File
		want   string
	}{
		{"none", one, "no such file or directory: make a directory there (mkdir), or for a single disk an empty file (touch)"},
		{"none/below", one, "no such file or directory"},
		{"", one, "expected an empty directory, found "},
		{"content", one, "expected an empty file, found 4 bytes"},
		{"fifo", one, "expected a directory or a regular file, found p"},
		{"file", append([]File{{Name: "b.raw", Device: d}}, one...), "it is a file, which can become one disk, found 2: use a directory"},
		{"file", nil, "found 0"},
		{"empty", append([]File{{Name: "a.raw", Device: d}}, one...), `two files have the name "a.raw"`},
		{"empty", []File{{Name: "a/b", Device: d}}, `file "a/b": expected a name of 1 to 255 bytes without a slash`},
		{"empty", []File{{Name: "", Device: d}}, `file ""`},
		{"empty", []File{{Name: "..", Device: d}}, `file ".."`},
		{"empty", []File{{Name: strings.Repeat("x", 256), Device: d}}, "expected a name of 1 to 255 bytes"},
		{"empty", []File{{Name: "a"}}, `file "a" has no device`},
	} {
		_, err := Mount(path(c.target), c.files, Options{})
		require.ErrorContains(t, err, c.want, c.target)
		require.ErrorContains(t, err, "mount "+path(c.target)+": ", "it names the place")
		_, found, err := mountAt(path(c.target))
		require.NoError(t, err)
		require.False(t, found, "nothing is left: %s", c.target)
	}
}
