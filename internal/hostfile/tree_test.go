//go:build linux

package hostfile_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/hostfile"
)

// Everything in a tree is done to what lies there, and nothing where a symbolic link
// leads, whichever part of the path it is.
func TestTree(t *testing.T) {
	top := t.TempDir()
	root := filepath.Join(top, "root") // which may be one itself
	require.NoError(t, os.Mkdir(filepath.Join(top, "real"), 0o755))
	require.NoError(t, os.Symlink("real", root))
	tree := hostfile.Tree(root)
	at := func(name string) string { return filepath.Join(root, name) }

	require.NoError(t, tree.Mkdir(at("dir"), 0o755))
	require.ErrorIs(t, tree.Mkdir(at("dir"), 0o755), fs.ErrExist)
	f, err := tree.OpenFile(at("dir/file"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	require.NoError(t, err)
	require.Equal(t, at("dir/file"), f.Name())
	_, err = f.WriteString("text")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, tree.Rename(at("dir/file"), at("dir/b")))
	require.NoError(t, os.WriteFile(at("dir/a"), nil, 0o600))
	b, err := tree.ReadFile(at("dir/b"))
	require.NoError(t, err)
	require.Equal(t, "text", string(b))
	image, err := tree.OpenImage(at("dir/b"), hostfile.Options{})
	require.NoError(t, err)
	require.Equal(t, at("dir/b"), image.Path())
	require.NoError(t, image.Close())
	all, err := tree.ReadDir(at("dir"))
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, "a", all[0].Name())
	_, err = tree.ReadFile(at("dir/none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = tree.ReadFile(at("dir"))
	require.ErrorContains(t, err, "found a directory")
	require.NoError(t, unix.Mkfifo(at("dir/fifo"), 0o600))
	_, err = tree.ReadFile(at("dir/fifo"))
	require.ErrorContains(t, err, "found a named pipe")
	require.NoError(t, tree.RemoveAll(at("none")))
	require.NoError(t, tree.RemoveAll(at("none/none")))

	away := filepath.Join(top, "away")
	require.NoError(t, os.Mkdir(away, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(away, "file"), []byte("secret"), 0o600))
	require.NoError(t, os.Symlink(away, at("link")))
	require.NoError(t, os.Symlink("dir", at("inner")))
	require.NoError(t, os.Symlink(filepath.Join(away, "file"), at("dir/file")))
	for _, path := range []string{at("link/file"), at("inner/b"), at("dir/file"), at("../away/file"), filepath.Join(away, "file")} {
		for what, do := range map[string]func() error{
			"open":       func() error { return second(tree.Open(path)) },
			"write":      func() error { return second(tree.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)) },
			"image":      func() error { return second(tree.OpenImage(path, hostfile.Options{})) },
			"read":       func() error { return second(tree.ReadFile(path)) },
			"list":       func() error { return second(tree.ReadDir(filepath.Dir(path) + "/.")) },
			"look":       func() error { return second(tree.Lstat(path)) },
			"make":       func() error { return tree.Mkdir(path+".dir", 0o755) },
			"move there": func() error { return tree.Rename(at("dir/a"), path+".moved") },
			"move away":  func() error { return tree.Rename(path, at("dir/moved")) },
			"remove":     func() error { return tree.Remove(path) },
			"remove all": func() error { return tree.RemoveAll(path) },
		} {
			if own := path == at("dir/file"); own && what != "open" && what != "write" && what != "image" && what != "read" {
				continue // the link itself is meant
			}
			require.ErrorIs(t, do(), hostfile.ErrLink, "%s %s", what, path)
		}
	}
	text, err := os.ReadFile(filepath.Join(away, "file"))
	require.NoError(t, err)
	require.Equal(t, "secret", string(text))
	st, err := tree.Lstat(at("dir/file"))
	require.NoError(t, err)
	require.Equal(t, fs.ModeSymlink, st.Mode().Type())
	require.NoError(t, tree.Remove(at("dir/file")))
	require.NoError(t, os.Symlink(away, at("dir/away")))
	require.NoError(t, tree.RemoveAll(at("dir")))
	require.NoFileExists(t, at("dir/b"))
	require.FileExists(t, filepath.Join(away, "file"))

	_, err = hostfile.Tree("").Open(at("dir"))
	require.ErrorIs(t, err, hostfile.ErrLink, "nobody has said where")
}

func second[T any](_ T, err error) error { return err }
