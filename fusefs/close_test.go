//go:build linux

package fusefs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
)

// umount(8) ends the service, and Close has nothing to do.
func TestUmountEnds(t *testing.T) {
	d := newFakeDevice(1 << 20)
	fs, path := mountFile(t, File{Device: d}, Options{})
	testenv.Run(t, testenv.Tool(t, "umount"), path)
	<-fs.Done()
	require.NoError(t, fs.Close(t.Context()))
	require.NoError(t, fs.Close(t.Context()), "twice")
	require.Zero(t, stat(t, path).Size, "the file that was mounted on is there again")
}

// Close does not remove what somebody else has mounted at the same place since.
func TestCloseLeavesOthersAlone(t *testing.T) {
	fs, path := mountFile(t, File{Device: newFakeDevice(1 << 20)}, Options{})
	require.NoError(t, unix.Unmount(path, 0))
	<-fs.Done()
	other := mountAtPath(t, path, []File{{Device: newFakeDevice(2 << 20)}}, Options{})
	require.NoError(t, fs.Close(t.Context()))
	require.EqualValues(t, 2<<20, stat(t, path).Size)
	closeFS(t, other)
}

// Who has it open is named, and cut off when the time is over: nothing reaches
// the Device any more.
func TestCloseCutsOff(t *testing.T) {
	d := newFakeDevice(1 << 20)
	fs, path := mountFile(t, File{Device: d}, Options{})
	cmd := testenv.Command(t, "sleep", "600")
	f := os.NewFile(uintptr(openToClose(t, path, unix.O_RDWR)), path)
	cmd.Stdin = f
	user := testenv.Start(t, cmd)
	fd := int(f.Fd())

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := fs.Close(ctx)
	require.ErrorContains(t, err, fmt.Sprintf("sleep (pid %d)", user.Cmd.Process.Pid))
	require.ErrorContains(t, err, "cut off")
	d.taken()
	_, err = unix.Pread(fd, make([]byte, 512), 0)
	require.Equal(t, unix.ESHUTDOWN, err)
	_, err = unix.Pwrite(fd, make([]byte, 512), 0)
	require.Equal(t, unix.ESHUTDOWN, err)
	require.Equal(t, unix.ESHUTDOWN, unix.Fsync(fd))
	require.Empty(t, d.taken())
	require.Zero(t, stat(t, path).Size, "it is out of sight")
	user.Kill()
	require.NoError(t, f.Close())
	<-fs.Done()
}

// Close waits for what is in progress.
func TestCloseWaits(t *testing.T) {
	d := newFakeDevice(1 << 20)
	fs, path := mountFile(t, File{Device: d}, Options{})
	started, finish := make(chan struct{}), make(chan struct{})
	d.onCall(func(_ context.Context, c call) error {
		if c.op == "write" {
			close(started)
			<-finish
		}
		return nil
	})
	writer := ddWrite(t, path)
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	closed := make(chan error, 1)
	go func() { closed <- fs.Close(ctx) }()
	cancel()
	select {
	case err := <-closed:
		t.Fatalf("closed while a write is in progress: %v", err)
	case <-time.After(50 * time.Millisecond): // nothing can tell that something goes on waiting
	}
	close(finish)
	<-closed // cut off, or the writer was quicker
	writer.Wait(t, closeLimit)
	<-fs.Done()
}

// What a server has left that was killed is replaced, also if something has it
// open still; what another program has left is not touched.
func TestStaleMount(t *testing.T) {
	p, path := startServer(t, serverSpec{Size: 1 << 20})
	fd := open(t, path, unix.O_RDWR)
	_, err := Mount(path, []File{{Device: newFakeDevice(4096)}}, Options{})
	require.ErrorIs(t, err, block.ErrInUse, "it is alive")
	require.ErrorContains(t, err, "umount it first")
	p.Kill()
	require.Equal(t, unix.ENOTCONN, unix.Fsync(fd), "it is dead")

	fs := mountAtPath(t, path, []File{{Device: newFakeDevice(2 << 20)}}, Options{})
	require.EqualValues(t, 2<<20, stat(t, path).Size)
	_, err = unix.Pread(fd, make([]byte, 512), 0)
	require.Equal(t, unix.ENOTCONN, err, "of the dead one")
	closeFS(t, fs)
	_, found, err := mountAt(path)
	require.NoError(t, err)
	require.False(t, found, "nothing is left below")
}

// Through a symbolic link, and in a directory with blanks.
func TestStaleMountByAnotherName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with a blank\tand a tab")
	require.NoError(t, os.Mkdir(dir, 0o700))
	link := dir + ".link"
	require.NoError(t, os.Symlink(filepath.Base(dir), link))
	p, _ := startServer(t, serverSpec{Size: 1 << 20, Target: dir})
	p.Kill()
	fs := mountAtPath(t, link, []File{{Name: "a.raw", Device: newFakeDevice(4096)}}, Options{})
	require.Equal(t, dir, fs.Target())
	stat(t, filepath.Join(link, "a.raw"))
}

func TestStaleMountOfAnother(t *testing.T) {
	needMount(t)
	dir := t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Mount("them", dir, "fuse.other", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	require.NoError(t, unix.Close(fd))
	_, err = Mount(dir, []File{{Name: "a.raw", Device: newFakeDevice(4096)}}, Options{})
	require.ErrorContains(t, err, "the server of what is mounted there (fuse.other) is gone: remove it with fusermount3 -uz")
}

// Of several mounts on one place the last one counts.
func TestMountAtTheTop(t *testing.T) {
	needMount(t)
	dir := t.TempDir()
	for _, source := range []string{"below", "above"} {
		require.NoError(t, unix.Mount(source, dir, "tmpfs", 0, ""))
		t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, 0)) })
	}
	m, found, err := mountAt(dir)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "above", m.source)
}

func TestParseMountinfo(t *testing.T) {
	for line, want := range map[string]mounted{
		`36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`: {"98:0", "/mnt2", "ext3", "/dev/root"},
		`40 35 0:42 / /a\040b\011c\134d rw - fuse.tidemark disk\0401.qcow2 rw,user_id=0`: {"0:42", "/a b\tc\\d", "fuse.tidemark", "disk 1.qcow2"},
		`41 35 0:43 / /x rw shared:2 master:3 - tmpfs none rw`:                           {"0:43", "/x", "tmpfs", "none"},
		`42 35 0:44 / /odd\9 rw - fuse a\ rw`:                                            {"0:44", `/odd\9`, "fuse", `a\`},
	} {
		got, ok := parseMountinfo(line)
		require.True(t, ok, line)
		require.Equal(t, want, got)
	}
	for _, line := range []string{"", "36 35", "36 35 98:0 /mnt1 /mnt2 rw", " - ", "36 35 98:0 / /m rw - ext3"} {
		_, ok := parseMountinfo(line)
		require.False(t, ok, line)
	}
}
