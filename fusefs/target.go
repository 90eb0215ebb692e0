//go:build linux

package fusefs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"tidemark/internal/block"
)

// stackedMax bounds how many dead mounts on one place are removed.
const stackedMax = 16

// prepare makes target ready to be mounted on: what a server that died has left
// there is removed. It returns the path that the kernel will know it by.
func prepare(target string, log *slog.Logger) (path string, isDir bool, err error) {
	path, err = resolve(target)
	if err != nil {
		return "", false, err
	}
	for range stackedMax {
		again, err := clearStale(path, log)
		if err != nil {
			return "", false, err
		}
		if !again {
			break
		}
	}
	st, err := os.Lstat(path)
	switch {
	case err != nil:
		return "", false, adviseTarget(err)
	case st.IsDir():
		return path, true, checkEmptyDir(path)
	case !st.Mode().IsRegular():
		return "", false, fmt.Errorf("expected a directory or a regular file, found %s", st.Mode().Type())
	case st.Size() > 0:
		return "", false, fmt.Errorf("expected an empty file, found %d bytes, which could not be seen as long as it is mounted: choose another one", st.Size())
	}
	return path, false, nil
}

// clearStale looks at what is mounted at path. A mount of ours that is alive is
// refused; one whose server is gone is removed, and what is below has to be looked
// at again.
func clearStale(path string, log *slog.Logger) (again bool, err error) {
	m, found, err := mountAt(path)
	if err != nil || !found {
		return false, err
	}
	dead := isDead(path)
	switch {
	case !dead && m.ours():
		return false, fmt.Errorf("%w: tidemark serves %s there: umount it first, or choose another place", block.ErrInUse, m.source)
	case !dead:
		return false, nil
	case !m.ours():
		return false, fmt.Errorf("the server of what is mounted there (%s) is gone: remove it with fusermount3 -uz, or as root with umount -l", m.kind)
	}
	if err := unmount(path, os.Geteuid() == 0, true); err != nil {
		return false, fmt.Errorf("remove what a server that died has left there: %w: try umount -l as root", err)
	}
	log.Warn("removed what a server that died has left", "mount", path, "source", m.source)
	return true, nil
}

// resolve follows symbolic links, but not into what is mounted at the end of the
// path: that may be dead.
func resolve(target string) (string, error) {
	abs, err := filepath.Abs(target)
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", adviseTarget(err)
	}
	path := filepath.Join(dir, filepath.Base(abs))
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == fs.ModeSymlink {
		to, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(dir, to)
		}
		return resolve(to)
	}
	return path, nil
}

func adviseTarget(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: make a directory there (mkdir), or for a single disk an empty file (touch)", err)
	}
	return err
}

func checkEmptyDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // only read
	names, err := d.Readdirnames(1)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("expected an empty directory, found %s in it, which could not be seen as long as it is mounted: choose another one", names[0])
}
