// Package rawimage is a raw image: the bytes of a [block.File] as a
// [block.Device], offset for offset. It knows nothing of formats, hosts or chains.
//
// Nothing grows and nothing is allocated by it, so there is no order to keep but
// one: a flush is acknowledged after a Sync that began when all writes it covers
// had returned. A failed Sync, and a failed durable write, is final: the image
// stops accepting writes and flushes and says why; reads go on. A write that
// failed in another way is an error of its own and nothing more.
package rawimage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"tidemark/internal/block"
)

// Options are the choices when an image is opened. The zero value opens it for
// reading and writing.
type Options struct {
	ReadOnly bool
	// Size of the disk in bytes, where the file is longer; 0 is the file's.
	Size int64
	// IgnoreDiscard makes Discard do nothing.
	IgnoreDiscard bool
	// DiscardsSafely says more of the file than File does: what it discards reads
	// as before or zero afterwards, never as something else. Without it the image
	// cannot discard.
	DiscardsSafely bool
	// Data, if not nil, tells whether the file has data at off, and for how many of
	// n bytes; what is no data reads zero. Without it there is data everywhere.
	Data func(off, n int64) (data bool, run int64, err error)
}

// An Image is an open raw image.
type Image struct {
	file block.File
	opts Options
	size atomic.Int64

	// completed counts mutations, raised before each returns; durable is the value
	// of it that the last Sync covers.
	completed, durable atomic.Uint64
	poisoned           atomic.Pointer[error]

	// requests is held shared by every request in progress, so that Close can wait
	// for them; it guards closed.
	requests sync.RWMutex
	closed   bool
}

var _ block.Device = (*Image)(nil)

// Open offers f, which it does not close, with the size that f has now or that o
// says.
func Open(f block.File, o Options) (*Image, error) {
	if f.Info().ReadOnly && !o.ReadOnly {
		return nil, fmt.Errorf("open raw image for writing: %w", block.ErrReadOnly)
	}
	im := &Image{file: f, opts: o}
	if im.size.Store(cmp.Or(o.Size, f.Size())); o.Size > f.Size() {
		return nil, fmt.Errorf("open raw image of %d bytes: its file has only %d", o.Size, f.Size())
	}
	// A process that died before this one may have left completed writes in the
	// host's cache. The first flush covers them, as if they were ours.
	im.completed.Store(1)
	return im, nil
}

// begin checks a request and enters it; im.requests.RUnlock ends it.
func (im *Image) begin(mutates bool, what string, off, n int64) error {
	im.requests.RLock()
	err := im.check(mutates, off, n)
	if err != nil {
		im.requests.RUnlock()
		return fmt.Errorf("%s %d bytes at %d: %w", what, n, off, err)
	}
	return nil
}

func (im *Image) check(mutates bool, off, n int64) error {
	if im.closed {
		return block.ErrClosed
	}
	if err := block.CheckRange(off, n, im.size.Load()); err != nil || !mutates {
		return err
	}
	if im.opts.ReadOnly {
		return block.ErrReadOnly
	}
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	return nil
}

// poison latches the first error after which nothing may be reported as written.
func (im *Image) poison(err error) error {
	err = fmt.Errorf("image stopped accepting writes: %w", err)
	im.poisoned.CompareAndSwap(nil, &err)
	return *im.poisoned.Load()
}

// ReadAt is described at block.Device.
func (im *Image) ReadAt(_ context.Context, p []byte, off int64, f block.Flags) error {
	if err := im.begin(false, "read", off, int64(len(p))); err != nil {
		return err
	}
	defer im.requests.RUnlock()
	if f.Has(block.NoWait) {
		if im.file.ReadNow(p, off) {
			return nil
		}
		return block.ErrWouldBlock
	}
	if n, err := im.file.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("read at %d: expected %d bytes, found %d: %w", off, len(p), n, shortRead(err))
	}
	return nil
}

// shortRead keeps the end of the file from looking like the end of the disk.
func shortRead(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// WriteLater is described at block.Device: nothing is begun.
func (im *Image) WriteLater([]byte, int64, block.Later) bool { return false }

// WriteAt is described at block.Device. With NoWait it writes whole pages into the
// host's cache, and answers ErrWouldBlock for the rest.
func (im *Image) WriteAt(_ context.Context, p []byte, off int64, f block.Flags) error {
	if f.Has(block.NoWait) && (f.Has(block.FUA) || im.file.Info().Direct || (off|int64(len(p)))&(pageSize-1) != 0) {
		return block.ErrWouldBlock
	}
	if err := im.begin(true, "write", off, int64(len(p))); err != nil {
		return err
	}
	defer im.requests.RUnlock()
	if err := im.write(p, off, f); err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	im.completed.Add(1)
	return nil
}

// pageSize is what a host's cache takes without reading first.
const pageSize = 4096

func (im *Image) write(p []byte, off int64, f block.Flags) error {
	if f.Has(block.FUA) {
		if _, err := im.file.WriteAtSync(p, off); err != nil {
			return im.poison(err)
		}
		return nil
	}
	_, err := im.file.WriteAt(p, off)
	return err
}

// WriteZeroes is described at block.Device. The space stays allocated.
func (im *Image) WriteZeroes(_ context.Context, off, n int64, f block.Flags) error {
	return im.mutate("write zeroes", off, n, f, func() error {
		if f.Has(block.Fast) && !im.file.Info().ZeroCheap {
			return block.ErrNotFast
		}
		if err := im.file.WriteZeroes(off, n); err != nil {
			return err
		}
		return im.syncIf(f)
	})
}

// Discard is described at block.Device.
func (im *Image) Discard(_ context.Context, off, n int64, f block.Flags) error {
	return im.mutate("discard", off, n, f, func() error {
		if !im.opts.DiscardsSafely {
			return block.ErrUnsupported
		}
		if im.opts.IgnoreDiscard {
			return nil
		}
		if err := im.file.Discard(off, n); err != nil {
			return err
		}
		return im.syncIf(f)
	})
}

// mutate does one mutation that is no write.
func (im *Image) mutate(what string, off, n int64, f block.Flags, do func() error) error {
	if err := im.begin(true, what, off, n); err != nil {
		return err
	}
	defer im.requests.RUnlock()
	if f.Has(block.NoWait) {
		return block.ErrWouldBlock
	}
	if err := do(); err != nil {
		return fmt.Errorf("%s %d bytes at %d: %w", what, n, off, err)
	}
	im.completed.Add(1)
	return nil
}

func (im *Image) syncIf(f block.Flags) error {
	if !f.Has(block.FUA) {
		return nil
	}
	return im.sync()
}

func (im *Image) sync() error {
	if err := im.file.Sync(); err != nil {
		return im.poison(err)
	}
	return nil
}

// Flush is described at block.Device.
func (im *Image) Flush(context.Context) error {
	if err := im.begin(false, "flush", 0, 0); err != nil {
		return err
	}
	defer im.requests.RUnlock()
	return im.flush()
}

func (im *Image) flush() error {
	if im.opts.ReadOnly {
		return nil
	}
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	covered := im.completed.Load()
	if im.durable.Load() >= covered {
		return nil
	}
	if err := im.sync(); err != nil {
		return err
	}
	for {
		d := im.durable.Load()
		if d >= covered || im.durable.CompareAndSwap(d, covered) {
			return nil
		}
	}
}

// AppendExtents is described at block.Device.
func (im *Image) AppendExtents(_ context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	if err := im.begin(false, "extents of", off, n); err != nil {
		return dst, err
	}
	defer im.requests.RUnlock()
	room := max(cap(dst)-len(dst), 1)
	first := len(dst)
	for end := off + n; off < end; {
		e, err := im.extent(off, end-off)
		if err != nil {
			return dst, err
		}
		off = e.End()
		if last := len(dst) - 1; last >= first && dst[last].State == e.State {
			dst[last].Len += e.Len
			continue
		}
		if len(dst)-first == room {
			break
		}
		dst = append(dst, e)
	}
	return dst, nil
}

func (im *Image) extent(off, n int64) (block.Extent, error) {
	data := true
	if im.opts.Data != nil {
		var err error
		if data, n, err = im.opts.Data(off, n); err != nil {
			return block.Extent{}, fmt.Errorf("extents at %d: %w", off, err)
		}
	}
	if !data {
		return block.Extent{Off: off, Len: n, State: block.Allocated | block.Zero, Host: -1}, nil
	}
	return block.Extent{Off: off, Len: n, State: block.Allocated | block.Data, Host: off}, nil
}

// Info is described at block.Device.
func (im *Image) Info() block.DeviceInfo {
	f, rw := im.file.Info(), !im.opts.ReadOnly
	return block.DeviceInfo{
		Size:     im.size.Load(),
		MinBlock: f.Align, PreferredBlock: max(f.Align, pageSize),
		ReadOnly: !rw,
		CanFlush: true, CanFUA: rw, CanDiscard: rw && im.opts.DiscardsSafely, CanZero: rw, CanFastZero: rw && f.ZeroCheap,
		MultiConn: true,
	}
}

// Grow makes the disk size bytes large, which its file is already or can be made. A
// smaller size is refused.
func (im *Image) Grow(ctx context.Context, size int64) error {
	if err := im.begin(true, "grow", 0, 0); err != nil {
		return err
	}
	defer im.requests.RUnlock()
	for {
		have := im.size.Load()
		if size < have {
			return fmt.Errorf("grow disk to %d bytes: expected at least %d", size, have)
		}
		if _, err := im.file.Grow(ctx, size, size); err != nil {
			return fmt.Errorf("grow disk to %d bytes: %w", size, err)
		}
		if im.size.CompareAndSwap(have, size) {
			return nil
		}
	}
}

// Poisoned is why the image stopped accepting writes, nil if it did not.
func (im *Image) Poisoned() error {
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	return nil
}

// Close waits for the requests in progress and makes what they wrote durable. It
// does not close the file.
func (im *Image) Close() error {
	im.requests.Lock()
	defer im.requests.Unlock()
	if im.closed {
		return block.ErrClosed
	}
	im.closed = true
	return im.flush()
}
