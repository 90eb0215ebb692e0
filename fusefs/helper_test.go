//go:build linux

package fusefs

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
)

// nobody is a user without rights.
const nobody = 65534

// asUser marks the test program that inOwnNamespace starts.
const asUser = "TIDEMARK_FUSEFS_NAMESPACE"

// inOwnNamespace runs the rest of a test in a mount namespace of its own, in
// which everybody may open /dev/fuse, as udev has it on most systems. It reports
// false where the rest is not to be run, because it was.
func inOwnNamespace(t *testing.T) bool {
	t.Helper()
	needMount(t)
	testenv.Tool(t, "fusermount3")
	if os.Getenv(asUser) != "" {
		dir := t.TempDir()
		node := filepath.Join(dir, "fuse")
		require.NoError(t, unix.Mount("none", dir, "tmpfs", 0, ""))
		require.NoError(t, unix.Mknod(node, unix.S_IFCHR, int(unix.Mkdev(10, 229))))
		require.NoError(t, unix.Chmod(node, 0o666))
		require.NoError(t, unix.Mount(node, "/dev/fuse", "", unix.MS_BIND, ""))
		t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
		return true
	}
	cmd := testenv.Command(t, "/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), asUser+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	p := testenv.Start(t, cmd)
	require.NoError(t, p.Wait(t, time.Minute), p.Output())
	require.Contains(t, p.Output(), "--- PASS: "+t.Name()+" ")
	return false
}

// Without root everything goes through fusermount3: mounting on a directory and
// on a file, unmounting, and removing what a killed server has left.
func TestWithoutRoot(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	for _, kind := range []string{"directory", "file"} {
		t.Run(kind, func(t *testing.T) {
			dir := nobodysDir(t)
			target := filepath.Join(dir, "target")
			if kind == "directory" {
				require.NoError(t, os.Mkdir(target, 0o700))
			} else {
				require.NoError(t, os.WriteFile(target, nil, 0o600))
			}
			require.NoError(t, os.Chown(target, nobody, nobody))
			path := target
			if kind == "directory" {
				path = filepath.Join(target, "disk.raw")
			}
			as := &syscall.Credential{Uid: nobody, Gid: nobody}

			p, _ := startServerAs(t, as, serverSpec{Size: 1 << 20, Target: target})
			dd := testenv.Command(t, "dd", "if=/dev/zero", "of="+path, "bs=64k", "count=16", "conv=notrunc,fsync")
			dd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
			require.NoError(t, testenv.Start(t, dd).Wait(t, closeLimit))
			require.Equal(t, unix.EACCES, unix.Access(path, unix.F_OK), "root is not let in without AllowOther")
			p.Kill()

			p, _ = startServerAs(t, as, serverSpec{Size: 1 << 20, Target: target})
			require.Contains(t, p.Output(), "removed what a server that died has left")
			stopServer(t, p)
			_, found, err := mountAt(target)
			require.NoError(t, err)
			require.False(t, found)

			p, _ = startServerAs(t, as, serverSpec{Size: 1 << 20, Target: target, ReadOnly: true})
			dd = testenv.Command(t, "dd", "if=/dev/zero", "of="+path, "bs=64k", "count=1", "conv=notrunc")
			dd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
			writer := testenv.Start(t, dd)
			require.Error(t, writer.Wait(t, closeLimit))
			require.Contains(t, writer.Output(), "Read-only file system")
			testenv.Run(t, "umount", target)
			require.NoError(t, p.Wait(t, closeLimit), "umount ends it")
		})
	}
}

// What fusermount3 says is passed on, with what to do.
func TestWithoutRootRefused(t *testing.T) {
	if !inOwnNamespace(t) {
		return
	}
	as := &syscall.Credential{Uid: nobody, Gid: nobody}
	dir := nobodysDir(t)
	p := launchServer(t, as, serverSpec{Size: 1 << 20, Target: dir, AllowOther: true})
	require.Error(t, p.Wait(t, closeLimit))
	require.Contains(t, p.Output(), "user_allow_other")
	require.Contains(t, p.Output(), "or leave --allow-other out")
	notTheirs := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(notTheirs), 0o755))
	p = launchServer(t, as, serverSpec{Size: 1 << 20, Target: notTheirs})
	require.Error(t, p.Wait(t, closeLimit))
	require.Contains(t, p.Output(), "mount "+notTheirs+": ")
}

// Another user is kept out by root's mount; with AllowOther the modes of the files
// decide, which chmod changes.
func TestAllowOther(t *testing.T) {
	needMount(t)
	read := func(path string) string {
		cmd := testenv.Command(t, "dd", "if="+path, "bs=4k", "count=1", "status=none", "of=/dev/null")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		p := testenv.Start(t, cmd)
		_ = p.Wait(t, closeLimit)
		return p.Output()
	}
	for _, allow := range []bool{false, true} {
		dir := nobodysDir(t)
		fs := mountAtPath(t, dir, []File{{Name: "disk.raw", Device: newFakeDevice(1 << 20)}}, Options{AllowOther: allow})
		path := fs.Path("disk.raw")
		require.Contains(t, read(path), "Permission denied", "AllowOther %v, mode 0600", allow)
		require.NoError(t, os.Chmod(path, 0o644))
		if allow {
			require.Empty(t, read(path))
		} else {
			require.Contains(t, read(path), "Permission denied", "it is not theirs")
		}
		closeFS(t, fs)
	}
}

// nobodysDir is a directory of nobody's that nobody can reach.
func nobodysDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "tidemark-fusefs-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chown(dir, nobody, nobody))
	return dir
}
