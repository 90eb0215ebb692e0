//go:build linux

package main_test

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
	"tidemark/internal/testenv/guest"
	"tidemark/internal/testenv/guest/wire"
	"tidemark/nbd"
	"tidemark/spm"
)

// What a guest writes on its disk: 1,000 files, 256 MiB in all, four at a time,
// every tenth with an fsync.
func guestTree(t *testing.T) wire.Tree {
	t.Helper()
	seed, _ := testenv.Seed(t)
	return wire.Tree{Seed: seed, Files: 1000, Bytes: 256 * mib, Sync: 10, Writers: 4}
}

// guestPrograms are what a guest needs to use a disk.
var guestPrograms = []string{"mkfs.ext4", "fstrim", "mount", "umount", "sync"}

// A guest whose disk is a volume of a pool makes a file system, fills it, trims it
// and switches off; the volume grows under it, and whoever mounts the volume on the
// host finds a clean file system with the files that the seed says.
func TestGuestOnVolume(t *testing.T) {
	dir := workspace(t)
	needMountedFiles(t)
	tree := guestTree(t)
	p := newPool(t, filepath.Join(dir, "pool"), 4*gib)
	before := p.create("disk", 2*gib)
	s := p.serve("disk")

	g := guest.Start(t, guest.Options{Programs: guestPrograms, Args: virtioDisk(s.sock)})
	fillAndTrim(t, g, "/dev/vda", tree, s.dial())
	g.PowerOff()
	s.stop()
	requireGrown(t, p, before)
	requireFiles(t, tree, "--spm", p.socket, "disk")
}

// fillAndTrim makes a file system with the tree in it, and leaves it unmounted. c
// sees the disk from outside.
func fillAndTrim(t *testing.T, g *guest.Guest, device string, tree wire.Tree, c *nbd.Client) {
	t.Helper()
	g.Run("mkfs.ext4", "-q", device)
	g.Run("mount", device, "/mnt")
	g.Fill("/mnt", tree, nil)
	trimAfterRemoving(t, g, c)
	g.Run("umount", "/mnt")
	require.NotContains(t, g.Console(), "error", "the guest's console")
}

// requireGrown requires that the volume has grown, and is an image without errors
// or leaks now that nobody serves it.
func requireGrown(t *testing.T, p *testPool, before spm.Volume) {
	t.Helper()
	after := p.volume(before.Name)
	t.Logf("the volume grew from %d to %d MiB", before.Granted/mib, after.Granted/mib)
	require.Greater(t, after.Granted, before.Granted, "granted")
	p.requireSum()
	requireClean(t, after.Path)
}

// The server of the guest's disk is killed and started again while the guest
// writes: the guest waits and goes on, and knows nothing of it.
func TestGuestServerKilled(t *testing.T) {
	dir := workspace(t)
	needMountedFiles(t)
	tree := guestTree(t)
	p := newPool(t, filepath.Join(dir, "pool"), 4*gib)
	disk := p.create("disk", 2*gib)
	s := p.serve("disk")

	g := guest.Start(t, guest.Options{Programs: guestPrograms, Args: virtioDisk(s.sock)})
	g.Run("mkfs.ext4", "-q", "/dev/vda")
	g.Run("mount", "/dev/vda", "/mnt")
	rng := testenv.Rand(tree.Seed)
	g.Fill("/mnt", tree, func(files int) {
		if files%300 == 299 { // three times, about when the next file is fsynced
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond) // any moment will do
			s.proc.Kill()
			r := imageState(t, disk.Path)
			require.Contains(t, []int{0, 3}, r.ExitCode, "clean or leaks at worst: %s", r)
			s.start()
		}
	})
	trimAfterRemoving(t, g, s.dial())
	g.Run("umount", "/mnt")
	g.PowerOff()
	require.NotContains(t, g.Console(), "error", "the guest's console")

	s.stop()
	p.requireSum()
	require.Contains(t, []int{0, 3}, imageState(t, disk.Path).ExitCode, "clean or leaks at worst")
	requireFiles(t, tree, "--spm", p.socket, "disk")
}

// virtioDisk is QEMU's side of a disk that is served on a unix socket. A server
// that is away for half a minute is waited for.
func virtioDisk(socket string) []string {
	return []string{
		"-blockdev", "driver=nbd,node-name=disk,server.type=unix,server.path=" + socket +
			",reconnect-delay=30,discard=unmap,cache.direct=on",
		"-device", "virtio-blk-pci,drive=disk",
	}
}

// trimAfterRemoving writes a file more and removes it, and requires that fstrim
// gives its space back to the image. It closes c, which looks.
func trimAfterRemoving(t *testing.T, g *guest.Guest, c *nbd.Client) {
	t.Helper()
	const size = 32 * mib
	g.Fill("/mnt/more", wire.Tree{Seed: 1, Files: 1, Bytes: size, Sync: 1, Writers: 1}, nil)
	g.Run("sync") // what else it has written must not come between
	with := dataOf(t, c)
	g.Remove("/mnt/more")
	g.Run("fstrim", "/mnt")
	require.NoError(t, c.Flush(t.Context()))
	without := dataOf(t, c)
	require.NoError(t, c.Close())
	require.LessOrEqual(t, without, with-size*3/4, "bytes with data before and after fstrim")
}

// dataOf is how many bytes of a disk have data.
func dataOf(t *testing.T, c *nbd.Client) int64 {
	t.Helper()
	extents, err := c.AppendExtents(t.Context(), nil, 0, c.Info().Size)
	require.NoError(t, err)
	var sum int64
	for _, e := range extents {
		if e.State.Has(block.Data) {
			sum += e.Len
		}
	}
	return sum
}

// needMountedFiles skips where requireFiles could not look.
func needMountedFiles(t *testing.T) {
	t.Helper()
	testenv.Need(t, "root")
	testenv.Need(t, "fuse")
	testenv.Need(t, "loop")
	for _, program := range []string{"e2fsck", "losetup", "mount", "umount"} {
		testenv.Tool(t, program)
	}
}

// requireFiles shows a disk as a file with tidemark mount, and requires that the
// file system in it is clean and has the tree in it.
func requireFiles(t *testing.T, tree wire.Tree, image ...string) {
	t.Helper()
	withFiles(t, func(dir string) { requireTree(t, dir, tree) }, image...)
}

// withFiles shows a disk as a file with tidemark mount, in which the file system must be
// clean, and mounts that for as long as somebody looks.
func withFiles(t *testing.T, look func(dir string), image ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk.raw")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	t.Cleanup(func() { _ = unix.Unmount(file, unix.MNT_DETACH) })
	p := testenv.Start(t, program(t, append(append([]string{"mount", "--read-only"}, image...), file)...))
	testenv.Eventually(t, startLimit, "the file is there", func() bool { return strings.Contains(p.Output(), "file is ready") })
	testenv.Run(t, "e2fsck", "-fn", file)

	dir := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // before the file is taken away
	testenv.Run(t, "mount", "-o", "loop,ro", file, dir)
	look(dir)
	testenv.Run(t, "umount", dir)
	testenv.Run(t, "umount", file)
	require.NoError(t, p.Wait(t, stopLimit), p.Output())
}

// requireTree compares the files' sums with those of what the seed says.
func requireTree(t *testing.T, dir string, tree wire.Tree) {
	t.Helper()
	for i, size := range tree.Sizes() {
		want := sum(t, io.LimitReader(tree.Content(i), size))
		f, err := os.Open(filepath.Join(dir, tree.Name(i)))
		require.NoError(t, err)
		require.Equal(t, want, sum(t, f), "SHA-256 of %s", tree.Name(i))
		require.NoError(t, f.Close())
	}
	names, err := filepath.Glob(filepath.Join(dir, "d*", "*"))
	require.NoError(t, err)
	require.Len(t, names, tree.Files)
}

func sum(t *testing.T, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	_, err := io.Copy(h, r)
	require.NoError(t, err)
	return fmt.Sprintf("%x", h.Sum(nil))
}
