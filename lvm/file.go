package lvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// A File is a logical volume as a block.File. Its size belongs to the pool: Grow
// adopts what the pool has granted, Shrink gives space back to it, or is refused.
// internal/thin makes it one that asks the pool for more.
type File struct {
	name     string
	readOnly bool
	info     block.FileInfo
	unit     int // logical block of the devices, bytes
	adopt    func(ctx context.Context, need int64) error
	alarm    func(error)
	// reduce makes the volume shorter and takes that over; nil: it is never.
	reduce func(ctx context.Context, from, to int64) error

	at     atomic.Pointer[layout]
	frozen atomic.Pointer[error]
	closed atomic.Bool
	blocks *blockLocks

	growMu  sync.Mutex
	devices []*device // every one that is open

	syncMu  sync.Mutex // one sync at a time; guards syncErr
	syncErr *syncError // the first that failed; final
}

var _ block.File = (*File)(nil)

// A layout says where the bytes are. It is replaced, never changed.
type layout struct {
	m     Map // the segment way only
	spans []span
	size  int64
}

// A span is a run of bytes of the volume on a device.
type span struct {
	start, size int64
	d           *device
	offset      int64
}

// pieces calls do for each part of [off, off+n) that lies on one device, with
// its place there and in the range. The range is inside the volume.
func (l *layout) pieces(off, n int64, do func(d *device, at, from, to int64) error) error {
	for _, s := range l.spans {
		from, to := max(off, s.start), min(off+n, s.start+s.size)
		if from >= to {
			continue
		}
		if err := do(s.d, s.offset+from-s.start, from-off, to-off); err != nil {
			return err
		}
	}
	return nil
}

// Name is the volume's in errors.
func (f *File) Name() string { return f.name }

// ReadAt is described at block.File.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	l, err := f.usable("read")
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, f.rangeError("read", off, int64(len(p)), l.size)
	}
	end := false
	if avail := max(l.size-off, 0); int64(len(p)) > avail {
		p, end = p[:avail], true
	}
	err = l.pieces(off, int64(len(p)), func(d *device, at, from, to int64) error {
		return readUnaligned(d, p[from:to], at)
	})
	switch {
	case err != nil:
		return 0, f.failed("read", err)
	case end:
		return len(p), io.EOF
	}
	return len(p), nil
}

// WriteBack is described at block.File: nothing is in memory.
func (f *File) WriteBack(int64, int64) {}

// ReadNow is described at block.File: nothing is in memory.
func (f *File) ReadNow([]byte, int64) bool { return false }

// WriteAt is described at block.File.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	l, err := f.mayWrite("write", off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	if err := f.write(l, p, off, (*device).write); err != nil {
		return 0, f.failed("write", err)
	}
	return len(p), nil
}

// WriteAtSync is described at block.File.
func (f *File) WriteAtSync(p []byte, off int64) (int, error) {
	l, err := f.mayWrite("write", off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	if err := f.write(l, p, off, f.writeLatched); err != nil {
		return 0, f.failed("write durably", err)
	}
	return len(p), nil
}

func (f *File) writeLatched(d *device, p []byte, off int64) error {
	f.syncMu.Lock()
	defer f.syncMu.Unlock()
	if f.syncErr != nil {
		return f.syncErr
	}
	return f.latchLocked(d.writeDurably(p, off))
}

// WriteZeroes is described at block.File.
func (f *File) WriteZeroes(off, n int64) error {
	l, err := f.mayWrite("write zeroes", off, n)
	if err != nil || n == 0 {
		return err
	}
	unit := int64(f.unit)
	from, to := min(roundUp(off, unit), off+n), (off+n)/unit*unit
	if from >= to {
		err = f.write(l, make([]byte, n), off, (*device).write)
	} else {
		err = errors.Join(
			f.write(l, make([]byte, from-off), off, (*device).write),
			f.zeroBlocks(l, from, to-from),
			f.write(l, make([]byte, off+n-to), to, (*device).write),
		)
	}
	if err != nil {
		return f.failed("write zeroes", err)
	}
	return nil
}

// zeroBlocks zeroes whole blocks.
func (f *File) zeroBlocks(l *layout, off, n int64) error {
	r := f.blocks.lock(off, off+n, false)
	defer f.blocks.unlock(r)
	return l.pieces(off, n, func(d *device, at, from, to int64) error {
		if done, err := d.zero(at, to-from); done || err != nil {
			return err
		}
		zeroes := alignedBuffer(int(min(to-from, bounceSize)), f.unit)
		for from < to {
			m := min(to-from, bounceSize)
			if err := d.write(zeroes[:m], at); err != nil {
				return err
			}
			at, from = at+m, from+m
		}
		return nil
	})
}

// Discard is described at block.File. Blocks that the range covers in part keep
// their content.
func (f *File) Discard(off, n int64) error {
	l, err := f.mayWrite("discard", off, n)
	if err != nil {
		return err
	}
	unit := int64(f.unit)
	from, to := roundUp(off, unit), (off+n)/unit*unit
	if from >= to {
		return nil
	}
	r := f.blocks.lock(from, to, false)
	defer f.blocks.unlock(r)
	err = l.pieces(from, to-from, func(d *device, at, a, b int64) error { return d.discard(at, b-a) })
	if err != nil {
		return f.failed("discard", err)
	}
	return nil
}

// Grow adopts what the pool has granted, and never waits.
func (f *File) Grow(ctx context.Context, need, _ int64) (int64, error) {
	l, err := f.mayWrite("grow", 0, 0)
	if err != nil {
		return f.Size(), err
	}
	if need <= l.size {
		return l.size, nil
	}
	f.growMu.Lock()
	defer f.growMu.Unlock()
	if need > f.Size() {
		if err := f.adopt(ctx, need); err != nil {
			return f.Size(), fmt.Errorf("grow %s to %d bytes: %w", f.name, need, err)
		}
	}
	size := f.Size()
	if size < need {
		return size, fmt.Errorf("grow %s: needs %d bytes, was granted %d: %w", f.name, need, size, block.ErrNoSpace)
	}
	return size, nil
}

// Shrink gives space back to the pool, in whole extents: what is left may be more
// than to. Nobody may read or write beyond to from the call on.
func (f *File) Shrink(ctx context.Context, from, to int64) error {
	if _, err := f.mayWrite("shrink", 0, 0); err != nil {
		return err
	}
	if f.reduce != nil {
		return f.shrink(ctx, from, to)
	}
	return fmt.Errorf("shrink %s from %d to %d bytes: its size belongs to a pool: %w", f.name, from, to, block.ErrUnsupported)
}

// shrink keeps out every other change of the size until it is known what became of
// this one: a map that is shorter than expected freezes the File.
func (f *File) shrink(ctx context.Context, from, to int64) error {
	f.growMu.Lock()
	defer f.growMu.Unlock()
	switch size := f.Size(); {
	case size != from:
		return fmt.Errorf("shrink %s: expected %d bytes, found %d: %w", f.name, from, size, block.ErrStale)
	case to < 0 || to > from:
		return f.rangeError("shrink", to, 0, from)
	case to == from:
		return nil
	}
	if err := f.reduce(ctx, from, to); err != nil {
		return fmt.Errorf("shrink %s from %d to %d bytes: %w", f.name, from, to, err)
	}
	return nil
}

// Size is described at block.File.
func (f *File) Size() int64 { return f.at.Load().size }

// Sync is described at block.File. Data that was written directly may be in the
// cache of a disk; every device below the volume is told to empty it.
func (f *File) Sync() error {
	l, err := f.usable("sync")
	if err != nil || f.readOnly {
		return err
	}
	f.syncMu.Lock()
	defer f.syncMu.Unlock()
	if f.syncErr != nil {
		return f.syncErr
	}
	for i, s := range l.spans {
		if seenBefore(l.spans[:i], s.d) {
			continue
		}
		if err := f.latchLocked(s.d.sync()); err != nil {
			return f.failed("sync", err)
		}
	}
	return nil
}

func seenBefore(spans []span, d *device) bool {
	for _, s := range spans {
		if s.d == d {
			return true
		}
	}
	return false
}

// latchLocked keeps the first error of a sync for ever: what it lost cannot be
// known, and the kernel will not report it a second time.
func (f *File) latchLocked(err error) error {
	if err == nil || errors.Is(err, block.ErrClosed) {
		return err
	}
	f.syncErr = &syncError{f.name, err}
	return f.syncErr
}

// A syncError is the first failed sync of a volume.
type syncError struct {
	name string
	err  error
}

func (e *syncError) Error() string {
	return fmt.Sprintf("sync %s: %v; written data may be lost, the volume takes no more syncs until it is checked and reopened", e.name, e.err)
}

func (e *syncError) Unwrap() error { return e.err }

// Info is described at block.File.
func (f *File) Info() block.FileInfo { return f.info }

// Freeze ends all I/O of the volume, because somebody has changed it under its
// writer. Requests that are in progress end as they do. The alarm is raised once.
func (f *File) Freeze(why error) {
	err := fmt.Errorf("%s: %w, for it was changed by somebody else: %w; nothing of it is read or written any more: stop what serves it and see what happened to it", f.name, ErrFrozen, why)
	if f.frozen.CompareAndSwap(nil, &err) && f.alarm != nil {
		f.alarm(err)
	}
}

// Close closes the devices, when the writes in progress have ended. It does not sync.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return fmt.Errorf("close %s: %w", f.name, block.ErrClosed)
	}
	f.blocks.drain()
	f.growMu.Lock()
	defer f.growMu.Unlock()
	var errs []error
	for _, d := range f.devices {
		errs = append(errs, d.f.Close())
	}
	return errors.Join(errs...)
}

// usable returns the layout, or why there is none.
func (f *File) usable(op string) (*layout, error) {
	if f.closed.Load() {
		return nil, fmt.Errorf("%s %s: %w", op, f.name, block.ErrClosed)
	}
	if err := f.frozen.Load(); err != nil {
		return nil, fmt.Errorf("%s: %w", op, *err)
	}
	return f.at.Load(), nil
}

// mayWrite returns the layout for a mutation of n bytes at off, or why it cannot
// be.
func (f *File) mayWrite(op string, off, n int64) (*layout, error) {
	l, err := f.usable(op)
	switch {
	case err != nil:
		return nil, err
	case f.readOnly:
		return nil, fmt.Errorf("%s %s: %w", op, f.name, block.ErrReadOnly)
	case block.CheckRange(off, n, l.size) != nil:
		return nil, f.rangeError(op, off, n, l.size)
	}
	return l, nil
}

func (f *File) rangeError(op string, off, n, size int64) error {
	return fmt.Errorf("%s %s: %d bytes at %d: %w of %d bytes", op, f.name, n, off, block.ErrRange, size)
}

// failed says what failed where, in the seam's terms.
func (f *File) failed(op string, err error) error {
	var pe *os.PathError
	var se *syncError
	switch {
	case errors.Is(err, os.ErrClosed) || errors.Is(err, block.ErrClosed):
		err = block.ErrClosed
	case errors.As(err, &se):
		return err // it says all that
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("a device below it ends before the volume does: %w", io.ErrUnexpectedEOF)
	case errors.As(err, &pe):
		err = fmt.Errorf("%s: %w", pe.Path, pe.Err)
	}
	if errors.Is(err, unix.ENOSPC) { // a LUN that is thin itself
		err = fmt.Errorf("%w: %w", block.ErrNoSpace, err)
	}
	return fmt.Errorf("%s %s: %w", op, f.name, err)
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
