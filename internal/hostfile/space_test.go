//go:build linux

package hostfile_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
)

func newDisk(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, size))
	return path
}

func openDisk(t *testing.T, path string, o hostfile.Options) *hostfile.File {
	t.Helper()
	f, err := hostfile.Open(path, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestFixedTakesOnlyWhatWasGranted(t *testing.T) {
	path := newDisk(t, 8192)
	f := openDisk(t, path, hostfile.Options{Fixed: true})
	size, err := f.Grow(t.Context(), 16384, 65536)
	require.ErrorIs(t, err, block.ErrNoSpace)
	require.EqualValues(t, 8192, size)
	_, err = f.WriteAt([]byte{1}, 8192)
	require.ErrorIs(t, err, block.ErrRange)

	require.NoError(t, os.Truncate(path, 20480)) // the pool grants
	require.EqualValues(t, 8192, f.Size(), "not before Grow asked")
	n, err := f.ReadAt(make([]byte, 4096), 6144)
	require.ErrorIs(t, err, io.EOF, "what was granted is not there before Grow adopted it")
	require.Equal(t, 2048, n)
	size, err = f.Grow(t.Context(), 16384, 65536)
	require.NoError(t, err)
	require.EqualValues(t, 20480, size)
	_, err = f.WriteAt([]byte{1}, 20479)
	require.NoError(t, err)
	require.ErrorIs(t, f.Shrink(t.Context(), 20480, 8192), block.ErrUnsupported)
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.EqualValues(t, 20480, st.Size(), "it never changes the length itself")
}

func TestReadOnly(t *testing.T) {
	path := newDisk(t, 8192)
	f := openDisk(t, path, hostfile.Options{ReadOnly: true})
	require.True(t, f.Info().ReadOnly)
	p := make([]byte, 512)
	_, err := f.ReadAt(p, 0)
	require.NoError(t, err)
	for _, op := range []func() error{
		func() error { _, err := f.WriteAt(p, 0); return err },
		func() error { _, err := f.WriteAtSync(p, 0); return err },
		func() error { return f.WriteZeroes(0, 512) },
		func() error { return f.Discard(0, 512) },
		func() error { _, err := f.Grow(t.Context(), 1<<20, 1<<20); return err },
		func() error { return f.Shrink(t.Context(), 8192, 0) },
	} {
		require.ErrorIs(t, op(), block.ErrReadOnly)
	}
	require.NoError(t, f.Sync())
}

func TestTruncatedBehindOurBack(t *testing.T) {
	path := newDisk(t, 8192)
	f := openDisk(t, path, hostfile.Options{})
	require.NoError(t, os.Truncate(path, 4096))
	_, err := f.ReadAt(make([]byte, 8192), 0)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.NotErrorIs(t, err, io.EOF)
}

func TestDiscardGivesSpaceBackAndZeroesKeepIt(t *testing.T) {
	path := newDisk(t, 1<<20)
	f := openDisk(t, path, hostfile.Options{})
	if !f.Info().ZeroCheap {
		t.Skip("the file system of the temporary directory makes no holes")
	}
	used := func() int64 {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(path, &st))
		return st.Blocks * 512
	}
	_, err := f.WriteAt(make([]byte, 1<<20), 0)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	full := used()
	require.GreaterOrEqual(t, full, int64(1<<20))
	require.NoError(t, f.Discard(0, 512<<10))
	require.LessOrEqual(t, used(), full-512<<10)
	require.EqualValues(t, 1<<20, f.Size())
}

// TestFullFileSystem fills a small tmpfs.
func TestFullFileSystem(t *testing.T) {
	dir := testenv.Tmpfs(t, 256<<10)
	f, err := hostfile.Create(filepath.Join(dir, "disk"), 1<<20, hostfile.CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt(make([]byte, 1<<20), 0)
	require.ErrorIs(t, err, block.ErrNoSpace)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorContains(t, err, "write "+filepath.Join(dir, "disk"))
	require.NoError(t, f.Sync(), "a write that found no space is no failed sync")
	require.NoError(t, f.Discard(0, 1<<20))
	_, err = f.WriteAt(make([]byte, 64<<10), 0)
	require.NoError(t, err, "space came back")
}

func TestGrowFallsBackToNeed(t *testing.T) {
	path := newDisk(t, 4096)
	f := openDisk(t, path, hostfile.Options{})
	size, err := f.Grow(t.Context(), 8192, 1<<62) // no file system has files of 4 EiB
	require.NoError(t, err)
	require.EqualValues(t, 8192, size)
	_, err = f.Grow(t.Context(), 1<<62, 1<<62)
	require.Error(t, err)
	require.EqualValues(t, 8192, f.Size())
}

func TestCreate(t *testing.T) {
	path := newDisk(t, 4096)
	_, err := hostfile.Create(path, 0, hostfile.CreateOptions{})
	require.ErrorIs(t, err, os.ErrExist)
	require.NoError(t, os.WriteFile(path, []byte("old content"), 0o600))
	f, err := hostfile.Create(path, 8192, hostfile.CreateOptions{Overwrite: true})
	require.NoError(t, err)
	defer f.Close()
	p := make([]byte, 8192)
	_, err = f.ReadAt(p, 0)
	require.True(t, err == nil || errors.Is(err, io.EOF))
	require.Equal(t, make([]byte, 8192), p)

	absent := filepath.Join(t.TempDir(), "huge")
	_, err = hostfile.Create(absent, 1<<62, hostfile.CreateOptions{})
	require.Error(t, err)
	require.NoFileExists(t, absent, "what could not be made is removed")
}

// TestDurableWriteWithoutSpace: a durable write into a hole that finds no space is no
// failed sync; when there is space the file goes on.
func TestDurableWriteWithoutSpace(t *testing.T) {
	dir := testenv.Tmpfs(t, 256<<10)
	f, err := hostfile.Create(filepath.Join(dir, "disk"), 1<<20, hostfile.CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	filler := filepath.Join(dir, "filler")
	_ = os.WriteFile(filler, make([]byte, 1<<20), 0o600) // as much as there is space for
	p := make([]byte, 16<<10)
	_, err = f.WriteAtSync(p, 512<<10)
	require.ErrorIs(t, err, block.ErrNoSpace)
	require.NoError(t, f.Sync())
	require.NoError(t, os.Remove(filler))
	n, err := f.WriteAtSync(p, 512<<10)
	require.NoError(t, err)
	require.Len(t, p, n)
	require.NoError(t, f.Sync())
}
