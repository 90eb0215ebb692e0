//go:build linux

package hostfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// OpenBeneath opens an existing regular file as Open does, but only if it lies
// beneath the folder dir, however name is made up: the kernel resolves name from
// there and follows neither a ".." that leaves it nor any symbolic link. It is for
// names that come from somebody who is not trusted.
func OpenBeneath(dir *os.File, name string, o Options) (*File, error) {
	path := filepath.Join(dir.Name(), name)
	flags := unix.O_RDWR
	if o.ReadOnly {
		flags = unix.O_RDONLY
	}
	how := unix.OpenHow{
		Flags:   uint64(flags | openFlags),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := openat2(dir, name, &how)
	switch {
	case errors.Is(err, unix.EXDEV):
		return nil, linkError{fmt.Sprintf("open %s: it leaves the folder %s: expected a file beneath it", name, dir.Name())}
	case errors.Is(err, unix.ELOOP):
		return nil, linkError{fmt.Sprintf("open %s: expected no symbolic link beneath %s, found one", name, dir.Name())}
	case errors.Is(err, unix.ENOSYS):
		return nil, fmt.Errorf("open %s beneath %s: %w: expected Linux 5.6 or newer (openat2)", name, dir.Name(), block.ErrUnsupported)
	case err != nil:
		return nil, openError(path, flags, err)
	}
	return adopt(fd, path, o)
}

// A linkError is an ErrLink that says more.
type linkError struct{ text string }

func (e linkError) Error() string { return e.text }
func (e linkError) Unwrap() error { return ErrLink }

// openat2Tries bounds how often a name with ".." is looked up while somebody
// renames folders.
const openat2Tries = 100

func openat2(dir *os.File, name string, how *unix.OpenHow) (fd int, err error) {
	raw, err := dir.SyscallConn()
	if err != nil {
		return -1, err
	}
	for range openat2Tries {
		cerr := raw.Control(func(at uintptr) {
			fd, err = retry(func() (int, error) { return unix.Openat2(int(at), name, how) })
		})
		if cerr != nil {
			return -1, cerr
		}
		if !errors.Is(err, unix.EAGAIN) {
			break
		}
	}
	return fd, err
}

// Same reports whether f and other are one file, under whatever names.
func (f *File) Same(other *File) (bool, error) {
	st, err := other.f.Stat()
	if err != nil {
		return false, other.failed("stat", err)
	}
	return f.Is(st)
}

// Is reports whether f is the file that st describes.
func (f *File) Is(st os.FileInfo) (bool, error) {
	own, err := f.f.Stat()
	if err != nil {
		return false, f.failed("stat", err)
	}
	return os.SameFile(own, st), nil
}
