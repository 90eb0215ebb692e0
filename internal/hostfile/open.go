//go:build linux

package hostfile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Options say how a file is opened. The zero value opens it for reading and
// writing, as its only writer and as the owner of its size.
type Options struct {
	ReadOnly bool
	// Name is what errors call the file; "" is its path.
	Name string
	// Lock says whom the File excludes and whom it puts up with.
	Lock Lock
	// Reduce makes a file that is Fixed shorter, from exactly from bytes to about
	// to, by asking whoever its size belongs to, and returns its size. It may be
	// nil: then the file is never shorter.
	Reduce func(ctx context.Context, from, to int64) (size int64, err error)
	// Fixed says that the size belongs to somebody else: Grow takes only what
	// has been granted, and Shrink is refused.
	Fixed bool
}

// Open opens an existing regular file. Where another process has it open in a
// way that excludes this one, the error wraps block.ErrInUse and names it.
func Open(path string, o Options) (*File, error) {
	flags := unix.O_RDWR
	if o.ReadOnly {
		flags = unix.O_RDONLY
	}
	return open(path, flags, 0, o)
}

// CreateOptions say how a file is made. With the zero value a file that exists
// already is an error.
type CreateOptions struct {
	// Overwrite empties a file that exists already, once it is locked.
	Overwrite bool
	// Mode are the permission bits of a new file before the umask; 0 means
	// 0644.
	Mode fs.FileMode
}

// Create makes a regular file of size bytes that read zero and opens it as Open
// does. The file, its size and its name are durable when Create returns.
func Create(path string, size int64, o CreateOptions) (*File, error) {
	if size < 0 {
		return nil, fmt.Errorf("create %s: the size %d is negative", path, size)
	}
	flags := unix.O_RDWR | unix.O_CREAT
	if !o.Overwrite {
		flags |= unix.O_EXCL
	}
	mode := o.Mode
	if mode == 0 {
		mode = 0o644
	}
	f, err := open(path, flags, mode, Options{})
	if err != nil {
		return nil, err
	}
	if err := f.reset(size); err != nil {
		_ = f.Close() // the first error is the one that counts
		if !o.Overwrite {
			_ = os.Remove(path)
		}
		return nil, fmt.Errorf("create %s of %d bytes: %w", path, size, err)
	}
	return f, nil
}

// openFlags are added to every open. O_NONBLOCK: a fifo or a device must not hang
// before it is refused.
const openFlags = unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY

// open opens, checks that it is a regular file, and locks.
func open(path string, flags int, mode fs.FileMode, o Options) (*File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, flags|openFlags, uint32(mode.Perm()))
	})
	if err != nil {
		return nil, openError(path, flags, err)
	}
	return adopt(fd, path, o)
}

// adopt makes a File of a descriptor, which it owns from then on.
func adopt(fd int, path string, o Options) (*File, error) {
	if err := unix.SetNonblock(fd, false); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	path = cmp.Or(o.Name, path)
	osf := os.NewFile(uintptr(fd), path)
	f, err := newFile(osf, path, o)
	if err != nil {
		_ = unlock(fd)
		_ = osf.Close()
		return nil, err
	}
	return f, nil
}

func newFile(osf *os.File, path string, o Options) (*File, error) {
	st, err := osf.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, notRegular(path, st.Mode())
	}
	raw, err := osf.SyscallConn()
	if err != nil {
		return nil, err
	}
	f := &File{f: osf, raw: raw, path: path, readOnly: o.ReadOnly, fixed: o.Fixed, reduce: o.Reduce}
	if err := f.lock(o.Lock); err != nil {
		return nil, err
	}
	// The size counts from the moment the lock is held.
	if st, err = osf.Stat(); err != nil {
		return nil, err
	}
	f.size.Store(st.Size())
	f.id = ID(st)
	f.probeZeroes()
	return f, f.openDurable()
}

// reset makes the file empty, then size bytes long, and both durable.
func (f *File) reset(size int64) error {
	for _, n := range []int64{0, size} {
		if err := f.truncate(n); err != nil {
			return noSpace(err)
		}
	}
	f.size.Store(size)
	if err := f.syncAs(unix.Fsync); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return fmt.Errorf("make the name durable: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("make the name durable: %w", err)
	}
	return nil
}

func openError(path string, flags int, err error) error {
	create, readOnly := flags&unix.O_CREAT != 0, flags&unix.O_ACCMODE == unix.O_RDONLY
	switch {
	case errors.Is(err, unix.EISDIR):
		return notRegular(path, fs.ModeDir)
	case errors.Is(err, unix.ENXIO):
		return notRegular(path, fs.ModeNamedPipe)
	case errors.Is(err, unix.EROFS) && create:
		return fmt.Errorf("create %s: %w: choose a place on another one", path, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("open %s for writing: the file system is read-only; open it read-only: %w", path, err)
	case errors.Is(err, fs.ErrPermission) && create:
		return fmt.Errorf("create %s: %w: expected the right to write there, and to read and write the file if there is one", path, err)
	case errors.Is(err, fs.ErrPermission) && readOnly:
		return fmt.Errorf("open %s for reading: %w: expected the right to read it", path, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open %s for writing: %w: expected the right to read and write it; what may only be read is to be opened read-only", path, err)
	}
	return &os.PathError{Op: "open", Path: path, Err: err}
}

func notRegular(path string, mode fs.FileMode) error {
	kind := "neither a file nor anything known"
	switch t := mode.Type(); {
	case t&fs.ModeDir != 0:
		kind = "a directory"
	case t&fs.ModeNamedPipe != 0:
		kind = "a named pipe"
	case t&fs.ModeSocket != 0:
		kind = "a socket"
	case t&fs.ModeCharDevice != 0:
		kind = "a character device"
	case t&fs.ModeDevice != 0:
		kind = "a block device"
	}
	return fmt.Errorf("open %s: expected a regular file, found %s", path, kind)
}

// openDurable opens the descriptor for durable writes.
func (f *File) openDurable() (err error) {
	if !f.readOnly {
		f.durable, f.durableRaw, err = f.reopen()
	}
	return err
}

// reopen opens the file once more. The name may stand for another one by now; the
// descriptor does not.
func (f *File) reopen() (again *os.File, raw syscall.RawConn, err error) {
	err = f.control(func(fd int) (err error) {
		if again, err = os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDWR, 0); err != nil {
			return err
		}
		raw, err = again.SyscallConn()
		return err
	})
	return again, raw, err
}

// ID is what Info calls a file that is described so; empty: it has no such name.
func ID(st os.FileInfo) string {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return fmt.Sprintf("file %d:%d", sys.Dev, sys.Ino)
	}
	return ""
}
