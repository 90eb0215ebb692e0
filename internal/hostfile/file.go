//go:build linux

package hostfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// A File is a regular file of the host as a block.File.
type File struct {
	f        *os.File
	raw      syscall.RawConn // the same descriptor, kept open during a call
	path     string
	readOnly bool
	fixed    bool
	reduce   func(ctx context.Context, from, to int64) (int64, error)

	size atomic.Int64 // written under resizeMu

	noZeroRange, noPunch, noDsync atomic.Bool // learned from EOPNOTSUPP

	reading sync.Pool // of *cachedRead

	resizeMu sync.Mutex // one Grow or Shrink at a time

	syncMu  sync.Mutex            // one sync at a time
	syncErr atomic.Pointer[error] // the first failed sync; final

	// durable is a descriptor of its own for durable writes. The kernel reports a
	// failed write once for each descriptor, so a durable write need not wait for
	// a sync to end, nor a sync for it, lest one of them takes the other's error.
	durable    *os.File
	durableRaw syscall.RawConn
	durableMu  sync.Mutex // one durable write at a time

	back writeBack

	zeroCheap bool   // fixed at open
	id        string // fixed at open
}

var _ block.File = (*File)(nil)

// tearUnit is what every disk keeps whole: a 512-byte sector.
const tearUnit = 512

// Path is the name the file was opened with.
func (f *File) Path() string { return f.path }

// ReadAt is described at block.File.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	size := f.size.Load()
	if off < 0 {
		return 0, f.rangeError("read", off, int64(len(p)))
	}
	end := false
	if avail := max(size-off, 0); int64(len(p)) > avail {
		p, end = p[:avail], true
	}
	n, err := f.f.ReadAt(p, off)
	switch {
	case errors.Is(err, io.EOF) && f.size.Load() >= off+int64(len(p)):
		return n, fmt.Errorf("read %s: it ends at %d, expected %d bytes: somebody truncated it: %w",
			f.path, off+int64(n), size, io.ErrUnexpectedEOF)
	case errors.Is(err, io.EOF):
		return n, io.EOF // shrunk by our own holder meanwhile
	case err != nil:
		return n, f.failed("read", err)
	case end:
		return n, io.EOF
	}
	return n, nil
}

// WriteAt is described at block.File.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if err := f.mayWrite("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := f.write(p, off)
	if err != nil {
		return n, f.failed("write", err)
	}
	return n, nil
}

// writePiece is how much is written by one system call. The kernel keeps everybody else
// out of the file meanwhile; and a page cache that is given more makes folios as large,
// which are slow to find, to fill, and to overwrite in part.
const writePiece = 256 << 10

// write writes p in pieces that end at multiples of writePiece.
func (f *File) write(p []byte, off int64) (n int, err error) {
	for {
		at := off + int64(n)
		k, err := f.f.WriteAt(p[n:min(int64(len(p)), int64(n)+writePiece-at%writePiece)], at)
		if n += k; err != nil || n == len(p) {
			return n, err
		}
	}
}

// WriteAtSync is described at block.File.
func (f *File) WriteAtSync(p []byte, off int64) (int, error) {
	if err := f.mayWrite("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	f.durableMu.Lock()
	defer f.durableMu.Unlock()
	if err := f.syncErr.Load(); err != nil {
		return 0, *err
	}
	n, err := f.writeDsync(p, off)
	if errors.Is(err, unix.ENOSPC) {
		// Was there no space for these bytes, or did a sync find none for others?
		// Writing them alone tells: that they find no space loses nothing.
		if m, err := f.durable.WriteAt(p, off); err != nil {
			return m, f.failed("write durably", err)
		}
		n, err = len(p), control(f.durableRaw, unix.Fdatasync)
	}
	if err != nil {
		return n, f.latch("write durably", err)
	}
	return n, nil
}

// writeDsync writes with RWF_DSYNC, or with write and fdatasync on a file
// system that does not know it.
func (f *File) writeDsync(p []byte, off int64) (n int, err error) {
	for n < len(p) && !f.noDsync.Load() {
		var m int
		err := control(f.durableRaw, func(fd int) (err error) {
			m, err = unix.Pwritev2(fd, [][]byte{p[n:]}, off+int64(n), unix.RWF_DSYNC)
			return err
		})
		switch {
		case notSupported(err) || errors.Is(err, unix.EINVAL):
			f.noDsync.Store(true)
		case err != nil:
			return n, err
		case m == 0:
			return n, io.ErrShortWrite
		}
		n += max(m, 0)
	}
	if !f.noDsync.Load() {
		return n, nil
	}
	if n, err = f.durable.WriteAt(p, off); err != nil {
		return n, err
	}
	return n, control(f.durableRaw, unix.Fdatasync)
}

// Size is described at block.File.
func (f *File) Size() int64 { return f.size.Load() }

// Sync is described at block.File.
func (f *File) Sync() error {
	if f.readOnly {
		return f.control(func(int) error { return nil }) // only to notice Close
	}
	return f.syncAs(unix.Fdatasync)
}

// syncAs runs one of the sync system calls and latches its error.
func (f *File) syncAs(call func(fd int) error) error {
	f.syncMu.Lock()
	defer f.syncMu.Unlock()
	if err := f.syncErr.Load(); err != nil {
		return *err
	}
	if err := f.control(call); err != nil {
		return f.latch("sync", err)
	}
	if err := f.syncErr.Load(); err != nil {
		return *err // a durable write has failed meanwhile
	}
	return nil
}

// latch keeps the first error of a sync for ever: what it lost cannot be known,
// and the kernel will not report it a second time.
func (f *File) latch(op string, err error) error {
	err = f.failed(op, err)
	if errors.Is(err, block.ErrClosed) {
		return err
	}
	err = fmt.Errorf("%w; written data may be lost, the file takes no more syncs until it is checked and reopened", err)
	f.syncErr.CompareAndSwap(nil, &err)
	return *f.syncErr.Load()
}

// Info is described at block.File.
func (f *File) Info() block.FileInfo {
	return block.FileInfo{
		ID:        f.id,
		Align:     1,
		TearUnit:  tearUnit,
		FreshZero: true,
		ZeroCheap: f.zeroCheap,
		ReadOnly:  f.readOnly,
	}
}

// DropCache drops the host's cache of the file, so that reads return what the
// storage holds. After a failed sync the cache may hold what was never written.
func (f *File) DropCache() error {
	if err := f.notClosed("drop cache"); err != nil {
		return err
	}
	// What is dirty is not dropped, so it is written first.
	err := f.control(unix.Fdatasync)
	if err == nil {
		err = f.control(func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })
	}
	if err != nil {
		return f.failed("drop cache", err)
	}
	return nil
}

// Close gives the file's lock up and closes it. It does not sync. Nothing else may be in
// progress.
func (f *File) Close() error {
	_ = f.control(unlock) // closing is the rest, and reports what is wrong
	err := f.f.Close()
	if f.durable != nil {
		err = errors.Join(err, f.durable.Close(), f.back.close())
	}
	if err != nil {
		return f.failed("close", err)
	}
	return nil
}

// mayWrite returns the error of a mutation of n bytes at off that cannot be.
func (f *File) mayWrite(op string, off, n int64) error {
	if f.readOnly {
		return fmt.Errorf("%s %s: %w", op, f.path, block.ErrReadOnly)
	}
	if block.CheckRange(off, n, f.size.Load()) != nil {
		return f.rangeError(op, off, n)
	}
	return nil
}

func (f *File) rangeError(op string, off, n int64) error {
	return fmt.Errorf("%s %s: %d bytes at %d: %w of %d bytes", op, f.path, n, off, block.ErrRange, f.size.Load())
}

// failed says what failed where, in the seam's terms.
func (f *File) failed(op string, err error) error {
	if errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("%s %s: %w", op, f.path, block.ErrClosed)
	}
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err // the path is said here
	}
	return fmt.Errorf("%s %s: %w", op, f.path, noSpace(err))
}

func (f *File) control(call func(fd int) error) error { return control(f.raw, call) }

// control runs a system call on a descriptor, again when a signal interrupts it.
func control(raw syscall.RawConn, call func(fd int) error) error {
	var err error
	cerr := raw.Control(func(fd uintptr) {
		_, err = retry(func() (struct{}, error) { return struct{}{}, call(int(fd)) })
	})
	if cerr != nil {
		return os.ErrClosed
	}
	return err
}

func retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}

// noSpace makes the host's two ways of saying "full" a block.ErrNoSpace.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", block.ErrNoSpace, err)
	}
	return err
}

func notSupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}
