//go:build linux

package hostfile

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// spacePiece is how much one system call zeroes or discards: the kernel keeps everybody
// else out of the file meanwhile.
const spacePiece = 16 << 20

// WriteZeroes is described at block.File. It keeps the space allocated where
// the file system is able to (ZERO_RANGE), makes a hole where it is not, and
// writes zeroes where there are no holes.
func (f *File) WriteZeroes(off, n int64) error {
	if err := f.mayWrite("write zeroes", off, n); err != nil {
		return err
	}
	if n == 0 {
		return f.notClosed("write zeroes")
	}
	done, err := f.fallocate(&f.noZeroRange, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == nil && !done {
		done, err = f.fallocate(&f.noPunch, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}
	if err == nil && !done {
		err = f.writeZeroChunks(off, n)
	}
	if err != nil {
		return f.failed("write zeroes", err)
	}
	return nil
}

// Discard is described at block.File. Here what is discarded reads zero where
// the file system is able to make holes, and keeps its content elsewhere.
func (f *File) Discard(off, n int64) error {
	if err := f.mayWrite("discard", off, n); err != nil {
		return err
	}
	if n == 0 {
		return f.notClosed("discard")
	}
	if _, err := f.fallocate(&f.noPunch, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
		return f.failed("discard", err)
	}
	return f.notClosed("discard")
}

// Grow is described at block.File. It never waits: a host's file system does
// not tell when it has space again.
func (f *File) Grow(_ context.Context, need, want int64) (int64, error) {
	if f.readOnly {
		return f.Size(), fmt.Errorf("grow %s: %w", f.path, block.ErrReadOnly)
	}
	if err := f.notClosed("grow"); err != nil {
		return f.Size(), err
	}
	f.resizeMu.Lock()
	defer f.resizeMu.Unlock()
	if size := f.size.Load(); need <= size {
		return size, nil
	}
	if f.fixed {
		return f.adoptLocked(need)
	}
	return f.extendLocked(need, max(need, want))
}

// adoptLocked takes what the owner of the size has granted. The owner made it
// durable before it said so.
func (f *File) adoptLocked(need int64) (int64, error) {
	st, err := f.f.Stat()
	if err != nil {
		return f.size.Load(), f.failed("grow", err)
	}
	// Never backwards: only the holder may give space back.
	size := max(f.size.Load(), st.Size())
	f.size.Store(size)
	if size < need {
		return size, fmt.Errorf("grow %s: needs %d bytes, was granted %d: %w", f.path, need, size, block.ErrNoSpace)
	}
	return size, nil
}

// extendLocked makes the file want bytes long, need bytes if that is too much.
func (f *File) extendLocked(need, want int64) (int64, error) {
	size := want
	err := f.truncate(size)
	if err != nil && want > need {
		size = need
		err = f.truncate(size)
	}
	if err != nil {
		return f.size.Load(), fmt.Errorf("to %d bytes: %w", size, f.failed("grow", err))
	}
	// Nobody may use what is not durable. A durable write of the last byte makes
	// the length durable, and does not wait for what else is dirty in the file.
	if err := f.syncLength(size); err != nil {
		return f.size.Load(), err
	}
	f.size.Store(size)
	return size, nil
}

// syncLength makes the file's length durable.
func (f *File) syncLength(size int64) error {
	f.durableMu.Lock()
	_, err := f.writeDsync([]byte{0}, size-1)
	f.durableMu.Unlock()
	switch err := noSpace(err); {
	case err == nil:
		if err := f.syncErr.Load(); err != nil {
			return *err
		}
		return nil
	case errors.Is(err, block.ErrNoSpace): // not even for a byte, but for a length
		return f.syncAs(unix.Fsync)
	}
	return f.latch("grow", err)
}

// Shrink is described at block.File.
func (f *File) Shrink(ctx context.Context, from, to int64) error {
	switch {
	case f.readOnly:
		return fmt.Errorf("shrink %s: %w", f.path, block.ErrReadOnly)
	case f.fixed && f.reduce == nil:
		return fmt.Errorf("shrink %s: its size belongs to a pool: %w", f.path, block.ErrUnsupported)
	}
	if err := f.notClosed("shrink"); err != nil {
		return err
	}
	f.resizeMu.Lock()
	defer f.resizeMu.Unlock()
	if size := f.size.Load(); size != from {
		return fmt.Errorf("shrink %s: expected %d bytes, found %d: %w", f.path, from, size, block.ErrStale)
	}
	if to < 0 || to > from {
		return fmt.Errorf("shrink %s from %d to %d bytes: %w", f.path, from, to, block.ErrRange)
	}
	f.size.Store(to) // first, so that nothing is written where the file ends
	if f.fixed {
		size, err := f.reduce(ctx, from, to)
		if err != nil {
			f.size.Store(from)
			return fmt.Errorf("shrink %s from %d to %d bytes: %w", f.path, from, to, err)
		}
		f.size.Store(size)
		return nil
	}
	if err := f.truncate(to); err != nil {
		f.size.Store(from)
		return f.failed("shrink", err)
	}
	return f.syncAs(unix.Fsync)
}

func (f *File) truncate(size int64) error {
	return f.control(func(fd int) error { return unix.Ftruncate(fd, size) })
}

// fallocate works in pieces that end at multiples of spacePiece. It reports whether the
// file system was able to, and remembers in not when it was not.
func (f *File) fallocate(not interface {
	Load() bool
	Store(bool)
}, mode uint32, off, n int64) (done bool, err error) {
	if not.Load() {
		return false, nil
	}
	for at, end := off, off+n; at < end && err == nil; {
		m := min(end-at, spacePiece-at%spacePiece)
		err = f.control(func(fd int) error { return unix.Fallocate(fd, mode, at, m) })
		at += m
	}
	if notSupported(err) {
		not.Store(true)
		return false, nil
	}
	return err == nil, err
}

func (f *File) writeZeroChunks(off, n int64) error {
	zeroes := make([]byte, min(n, writePiece))
	for n > 0 {
		m := min(n, writePiece)
		if _, err := f.f.WriteAt(zeroes[:m], off); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

// probeZeroes finds out whether zeroing is cheap. A hole of one byte behind the
// end changes nothing.
func (f *File) probeZeroes() {
	if f.readOnly {
		return
	}
	done, err := f.fallocate(&f.noPunch, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, f.size.Load(), 1)
	f.zeroCheap = done && err == nil
}

func (f *File) notClosed(op string) error {
	if err := f.control(func(int) error { return nil }); err != nil {
		return f.failed(op, err)
	}
	return nil
}
