//go:build linux

package hostfile

import (
	"errors"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// Data reports whether the file has data at off, and for how many of the n bytes
// there this is so. What is no data reads zero. A file system that knows no holes
// has data everywhere. While somebody writes or punches, it may say data of a hole.
func (f *File) Data(off, n int64) (data bool, run int64, err error) {
	if block.CheckRange(off, n, f.size.Load()) != nil {
		return false, 0, f.rangeError("look for data in", off, n)
	}
	if n == 0 {
		return false, 0, f.notClosed("look for data in")
	}
	next, err := f.seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // none up to the end
		return false, n, nil
	case errors.Is(err, unix.EINVAL):
		return true, n, f.notClosed("look for data in")
	case err != nil:
		return false, 0, f.failed("look for data in", err)
	case next > off:
		return false, min(next-off, n), nil
	}
	next, err = f.seek(off, unix.SEEK_HOLE)
	switch {
	case errors.Is(err, unix.ENXIO) || err == nil && next <= off:
		return true, n, nil // made a hole, or cut off, meanwhile: data is never wrong
	case err != nil:
		return false, 0, f.failed("look for holes in", err)
	}
	return true, min(next-off, n), nil
}

// Used is how many bytes the file system has allocated for the file.
func (f *File) Used() (int64, error) {
	var st unix.Stat_t
	if err := f.control(func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return 0, f.failed("stat", err)
	}
	return st.Blocks * 512, nil // stat(2): the unit is 512, whatever st_blksize says
}

// seek moves the descriptor's position, which nothing here uses.
func (f *File) seek(off int64, whence int) (at int64, err error) {
	err = f.control(func(fd int) (err error) {
		at, err = unix.Seek(fd, off, whence)
		return err
	})
	return at, err
}
