package blocktest

import (
	"context"
	"fmt"
	"sync"

	"tidemark/internal/block"
)

// MemDevice is the reference implementation of block.Device: an array of bytes
// that remembers which of its blocks were written. It is as simple as the
// documentation allows, for tests of front ends.
type MemDevice struct {
	info block.DeviceInfo // Size of the disk included; does not change

	mu      sync.RWMutex // guards the rest
	data    []byte
	written []bool // by memBlock
	closed  bool
}

var _ block.Device = (*MemDevice)(nil)

// memBlock is the granularity of a MemDevice's extents.
const memBlock = 4096

// NewMemDevice returns a disk of size bytes that read zero.
func NewMemDevice(size int64) *MemDevice {
	return &MemDevice{
		info: block.DeviceInfo{
			Size: size, MinBlock: 1, PreferredBlock: memBlock, MultiConn: true,
			CanFlush: true, CanFUA: true, CanDiscard: true, CanZero: true, CanFastZero: true,
		},
		data:    make([]byte, size),
		written: make([]bool, (size+memBlock-1)/memBlock),
	}
}

// ReadAt is described at block.Device.
func (d *MemDevice) ReadAt(_ context.Context, p []byte, off int64, _ block.Flags) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.checkLocked("read", off, int64(len(p))); err != nil {
		return err
	}
	copy(p, d.data[off:])
	return nil
}

// WriteLater is described at block.Device: nothing is begun.
func (d *MemDevice) WriteLater([]byte, int64, block.Later) bool { return false }

// WriteAt is described at block.Device.
func (d *MemDevice) WriteAt(_ context.Context, p []byte, off int64, _ block.Flags) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkLocked("write", off, int64(len(p))); err != nil {
		return err
	}
	copy(d.data[off:], p)
	for b := off / memBlock; b*memBlock < off+int64(len(p)); b++ {
		d.written[b] = true
	}
	return nil
}

// WriteZeroes is described at block.Device. With MayUnmap it forgets the blocks
// that lie in the range entirely.
func (d *MemDevice) WriteZeroes(_ context.Context, off, n int64, f block.Flags) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkLocked("write zeroes", off, n); err != nil {
		return err
	}
	d.clearLocked(off, n, f.Has(block.MayUnmap))
	return nil
}

// Discard is described at block.Device.
func (d *MemDevice) Discard(_ context.Context, off, n int64, _ block.Flags) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkLocked("discard", off, n); err != nil {
		return err
	}
	d.clearLocked(off, n, true)
	return nil
}

func (d *MemDevice) clearLocked(off, n int64, unmap bool) {
	clear(d.data[off : off+n])
	end := off + n
	for b := (off + memBlock - 1) / memBlock; unmap && min((b+1)*memBlock, d.info.Size) <= end && b*memBlock < end; b++ {
		d.written[b] = false
	}
}

// AppendExtents is described at block.Device.
func (d *MemDevice) AppendExtents(_ context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := d.checkLocked("block status", off, n); err != nil {
		return dst, err
	}
	first := len(dst)
	for end := off + n; off < end; {
		stop := min((off/memBlock+1)*memBlock, end)
		e := block.Extent{Off: off, Len: stop - off, State: block.Zero, Host: -1}
		if d.written[off/memBlock] {
			e.State, e.Host = block.Allocated|block.Data, off
		}
		if last := len(dst) - 1; last >= first && dst[last].State == e.State {
			dst[last].Len += e.Len
		} else {
			dst = append(dst, e)
		}
		off = stop
	}
	return dst, nil
}

// Flush is described at block.Device. Memory has nothing to flush.
func (d *MemDevice) Flush(context.Context) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.checkLocked("flush", 0, 0)
}

// Info is described at block.Device.
func (d *MemDevice) Info() block.DeviceInfo { return d.info }

// Close is described at block.Device.
func (d *MemDevice) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkLocked("close", 0, 0); err != nil {
		return err
	}
	d.closed = true
	return nil
}

func (d *MemDevice) checkLocked(op string, off, n int64) error {
	if d.closed {
		return fmt.Errorf("%s: %w", op, block.ErrClosed)
	}
	if err := block.CheckRange(off, n, d.info.Size); err != nil {
		return fmt.Errorf("%s %d bytes at %d: %w of %d bytes", op, n, off, err, d.info.Size)
	}
	return nil
}
