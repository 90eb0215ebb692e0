package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
)

// The disk that is served over NBD is a file as well, from the same engine: what
// is written through the one is read through the other at once.
func TestRunFiles(t *testing.T) {
	needMount(t)
	qemuIO := testenv.Tool(t, "qemu-io")
	dir := filepath.Join(t.TempDir(), "a pool")
	uri := nbdURI(filepath.Join(dir, "nbd.sock"), "disk1")
	unmountLater(t, filepath.Join(dir, "disks"))
	path := filepath.Join(dir, "disks", "disk1.raw")
	p := startRun(t, "--dir", dir, "--capacity", "2G", "--size", "10G", "disk1")
	require.Contains(t, p.Output(), "files     '"+path+"'\n")

	testenv.Run(t, qemuIO, "-f", "raw", "-c", "write -P 7 1M 1M", uri)
	testenv.Run(t, "cmp", "-n", "1M", "-i", "1M:0", path, sevens(t))
	dd(t, path, strings.Repeat("\a", 1<<20), 300<<20)
	out := testenv.Run(t, qemuIO, "-f", "raw", "-c", "read -P 7 300M 1M", uri)
	require.NotContains(t, out, "verification failed")
	testenv.Run(t, "fallocate", "--punch-hole", "-o", "1M", "-l", "1M", path)
	out = testenv.Run(t, qemuIO, "-f", "raw", "-c", "read -P 0 1M 1M", uri)
	require.NotContains(t, out, "verification failed")
	var s unix.Statfs_t
	require.NoError(t, unix.Statfs(path, &s))
	require.EqualValues(t, 2<<30, int64(s.Blocks)*s.Frsize)
	interrupt(t, p)
	require.NoDirExists(t, filepath.Join(dir, "disks"))
}

// sevens is a file of 1 MiB.
func sevens(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sevens")
	require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("\a", 1<<20)), 0o600))
	return path
}

// After SIGKILL the next one has the files again.
func TestRunFilesAfterKill(t *testing.T) {
	needMount(t)
	dir := t.TempDir()
	unmountLater(t, filepath.Join(dir, "disks"))
	p := startRun(t, "--dir", dir, "--capacity", "1G", "--size", "1G", "disk1")
	p.Kill()
	p = startRun(t, "--dir", dir)
	require.Contains(t, p.Output(), "removed what a server that died has left")
	require.Contains(t, p.Output(), "files     "+filepath.Join(dir, "disks", "disk1.raw"))
	interrupt(t, p)
}

// Who looks at the first lines only, and goes away, ends nothing.
func TestRunWithoutReader(t *testing.T) {
	dir := t.TempDir()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd := tidemark(t, "run", "--dir", dir, "--capacity", "1G", "--size", "1G", "disk1")
	cmd.Stdout, cmd.Stderr = w, w
	p := testenv.Start(t, cmd)
	require.NoError(t, w.Close())
	unmountLater(t, filepath.Join(dir, "disks"))
	_, err = r.Read(make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, r.Close())
	testenv.Run(t, testenv.Tool(t, "qemu-io"), "-f", "raw", "-c", "write 0 200M", nbdURI(filepath.Join(dir, "nbd.sock"), "disk1")) // changes what is shown
	require.NoError(t, p.Signal(os.Interrupt))
	_ = p.Wait(t, serveLimit) // it may say that it could not write
	_, err = os.Lstat(filepath.Join(dir, "nbd.sock"))
	require.ErrorIs(t, err, os.ErrNotExist, "it ended as it should")
	require.NoDirExists(t, filepath.Join(dir, "disks"))
}

// What stands in the way of the files is told, and everything else goes on.
func TestRunWithoutFiles(t *testing.T) {
	dir := t.TempDir()
	inTheWay := filepath.Join(dir, "disks", "something")
	require.NoError(t, os.MkdirAll(inTheWay, 0o700))
	p := startRun(t, "--dir", dir, "--capacity", "1G", "--size", "1G", "disk1")
	require.Contains(t, p.Output(), "files     none, because mount "+filepath.Dir(inTheWay)+": expected an empty directory, found something in it")
	interrupt(t, p)
	require.DirExists(t, inTheWay)

	p = startRun(t, "--dir", t.TempDir(), "--capacity", "1G", "--size", "1G", "--files", "off", "disk1")
	require.NotContains(t, p.Output(), "files ")
	interrupt(t, p)
}
