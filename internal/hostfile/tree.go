//go:build linux

package hostfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// A Tree is everything beneath the folder of that name, which is trusted with all that
// leads to it. What is beneath it is not: others may write there. So the kernel resolves
// each path from the folder, whenever something is done, and follows no symbolic link,
// nor what leaves the folder. Paths are whole ones, which begin with the folder's.
type Tree string

// ErrLink is what is wrong with a path that leads over a symbolic link, or out of a Tree.
var ErrLink = errors.New("expected no symbolic link, and nothing that leads elsewhere")

// OpenImage opens an existing regular file as Open does.
func (t Tree) OpenImage(path string, o Options) (*File, error) {
	rel, err := t.rel("open", path)
	if err != nil {
		return nil, err
	}
	root, err := t.root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if o.Name == "" {
		o.Name = path
	}
	return OpenBeneath(root, rel, o)
}

// OpenFile opens a file of any kind, as os.OpenFile does.
func (t Tree) OpenFile(path string, flags int, mode fs.FileMode) (*os.File, error) {
	rel, err := t.rel("open", path)
	if err != nil {
		return nil, err
	}
	root, err := t.root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode.Perm())
	}
	fd, err := openat2(root, rel, &how)
	if err != nil {
		return nil, t.failed("open", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Open opens a regular file, or a folder, for reading.
func (t Tree) Open(path string) (*os.File, error) {
	return t.OpenFile(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
}

// Lstat describes what has that name, be it a symbolic link.
func (t Tree) Lstat(path string) (fs.FileInfo, error) {
	f, err := t.OpenFile(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// ReadFile returns what is in a regular file.
func (t Tree) ReadFile(path string) ([]byte, error) {
	f, err := t.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, notRegular(path, st.Mode())
	}
	return io.ReadAll(f)
}

// ReadDir returns what is in a folder, in the order of the names.
func (t Tree) ReadDir(path string) ([]fs.DirEntry, error) {
	f, err := t.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := f.ReadDir(-1)
	slices.SortFunc(all, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return all, err
}

// Mkdir makes a folder.
func (t Tree) Mkdir(path string, mode fs.FileMode) error {
	return t.in("mkdir", path, func(dir int, name string) error { return unix.Mkdirat(dir, name, uint32(mode.Perm())) })
}

// Rename gives what has one name the other one, in the place of what has that.
func (t Tree) Rename(from, to string) error {
	return t.in("rename", from, func(old int, oldName string) error {
		return t.in("rename", to, func(dir int, name string) error { return unix.Renameat(old, oldName, dir, name) })
	})
}

// Remove removes a file, or a symbolic link itself.
func (t Tree) Remove(path string) error {
	return t.in("remove", path, func(dir int, name string) error { return unix.Unlinkat(dir, name, 0) })
}

// RemoveAll removes what has that name with all that is in it; what is not there is no
// error.
func (t Tree) RemoveAll(path string) error {
	err := t.in("remove", path, func(dir int, name string) error {
		root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dir))
		if err != nil {
			return err
		}
		return errors.Join(root.RemoveAll(name), root.Close())
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// in calls do with the folder that path is in, and the name there.
func (t Tree) in(op, path string, do func(dir int, name string) error) error {
	f, err := t.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(dir uintptr) {
		_, err = retry(func() (int, error) { return 0, do(int(dir), filepath.Base(path)) })
	}); cerr != nil {
		return cerr
	}
	var named *fs.PathError
	if err != nil && !errors.As(err, &named) {
		err = t.failed(op, path, err)
	}
	return err
}

func (t Tree) root() (*os.File, error) {
	return os.OpenFile(string(t), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// rel is a path from the folder.
func (t Tree) rel(op, path string) (string, error) {
	rel, err := filepath.Rel(string(t), path)
	if t == "" || err != nil || !filepath.IsLocal(rel) {
		return "", &fs.PathError{Op: op, Path: path, Err: fmt.Errorf("%w, beneath %q", ErrLink, string(t))}
	}
	return rel, nil
}

func (t Tree) failed(op, path string, err error) error {
	switch {
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV) && op == "open":
		err = fmt.Errorf("%w, beneath %s", ErrLink, string(t))
	case errors.Is(err, unix.ENOSYS):
		err = fmt.Errorf("%w: expected Linux 5.6 or newer (openat2)", block.ErrUnsupported)
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}
