//go:build linux

package hostfile_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
)

func TestOpenBeneath(t *testing.T) {
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	require.NoError(t, os.MkdirAll(at("images/sub"), 0o755))
	for _, name := range []string{"secret", "images/base", "images/sub/base", "images/sub/..file"} {
		require.NoError(t, os.WriteFile(at(name), []byte(name), 0o600))
	}
	require.NoError(t, os.Symlink("base", at("images/link")))
	require.NoError(t, os.Symlink(root, at("images/up")))
	require.NoError(t, os.Symlink("sub", at("images/inner")))
	require.NoError(t, unix.Mkfifo(at("images/fifo"), 0o600))
	dir, err := os.Open(at("images"))
	require.NoError(t, err)
	defer dir.Close()

	for _, name := range []string{"base", "./base", "sub/base", "sub/../base", "sub//base", "sub/..file", "sub/./../sub/base"} {
		f, err := hostfile.OpenBeneath(dir, name, hostfile.Options{ReadOnly: true})
		require.NoError(t, err, name)
		require.Equal(t, at("images/"+filepath.Clean(name)), f.Path())
		want := filepath.Clean("images/" + name)
		got := make([]byte, len(want))
		_, err = f.ReadAt(got, 0)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
		require.NoError(t, f.Close())
	}
	for name, want := range map[string]string{
		"../secret":        "leaves the folder",
		"sub/../../secret": "leaves the folder",
		"..":               "leaves the folder",
		at("images/base"):  "leaves the folder",
		"/etc/passwd":      "leaves the folder",
		"link":             "no symbolic link",
		"up/secret":        "no symbolic link",
		"inner/base":       "no symbolic link",
		"sub":              "found a directory",
		"fifo":             "found a named pipe",
		"none":             "no such file",
		"base/x":           "not a directory",
		"":                 "no such file",
	} {
		_, err := hostfile.OpenBeneath(dir, name, hostfile.Options{ReadOnly: true})
		require.ErrorContains(t, err, want, "%q", name)
	}

	// It is locked as any other.
	holder, err := hostfile.OpenBeneath(dir, "base", hostfile.Options{})
	require.NoError(t, err)
	defer holder.Close()
	_, err = hostfile.OpenBeneath(dir, "base", hostfile.Options{ReadOnly: true})
	require.ErrorIs(t, err, block.ErrInUse)
	shared, err := hostfile.OpenBeneath(dir, "base", hostfile.Options{ReadOnly: true, Lock: hostfile.LockShared})
	require.NoError(t, err)
	defer shared.Close()
	same, err := holder.Same(shared)
	require.NoError(t, err)
	require.True(t, same)
	other, err := hostfile.Open(at("images/sub/base"), hostfile.Options{})
	require.NoError(t, err)
	defer other.Close()
	same, err = holder.Same(other)
	require.NoError(t, err)
	require.False(t, same)
}

func TestData(t *testing.T) {
	f, err := hostfile.Create(filepath.Join(t.TempDir(), "disk"), 8<<20, hostfile.CreateOptions{})
	require.NoError(t, err)
	data, n, err := f.Data(0, 8<<20)
	require.NoError(t, err)
	require.False(t, data)
	require.EqualValues(t, 8<<20, n)
	_, err = f.WriteAt(make([]byte, 1<<20), 4<<20)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	for _, c := range []struct {
		off, n int64
		data   bool
		want   int64
	}{
		{0, 8 << 20, false, 4 << 20},
		{1 << 20, 1 << 20, false, 1 << 20},
		{4 << 20, 4 << 20, true, 1 << 20},
		{4<<20 + 4096, 100, true, 100},
		{6 << 20, 2 << 20, false, 2 << 20},
		{0, 0, false, 0},
	} {
		data, n, err := f.Data(c.off, c.n)
		require.NoError(t, err)
		require.Equal(t, c.data, data, "at %d", c.off)
		require.Equal(t, c.want, n, "at %d", c.off)
	}
	_, _, err = f.Data(0, 8<<20+1)
	require.ErrorIs(t, err, block.ErrRange)
	require.NoError(t, f.Close())
	_, _, err = f.Data(0, 1)
	require.ErrorIs(t, err, block.ErrClosed)
}
