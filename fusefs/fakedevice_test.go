//go:build linux

package fusefs

import (
	"context"
	"sync"
	"sync/atomic"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
)

// A fakeDevice is a disk in memory that remembers what it was asked, and can be
// told to misbehave.
type fakeDevice struct {
	*blocktest.MemDevice
	size atomic.Int64 // shown instead of the real one, if it is not 0

	mu    sync.Mutex // guards what follows
	calls []call
	// before is called at the start of every request, which is then not done without
	// waiting; an error fails it.
	before func(ctx context.Context, c call) error
}

type call struct {
	op     string
	off, n int64
	flags  block.Flags
}

func newFakeDevice(size int64) *fakeDevice {
	return &fakeDevice{MemDevice: blocktest.NewMemDevice(size)}
}

// onCall sets before.
func (d *fakeDevice) onCall(before func(ctx context.Context, c call) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before = before
}

// failWith makes every request fail; nil makes them work again.
func (d *fakeDevice) failWith(err error) {
	d.onCall(func(context.Context, call) error { return err })
}

// taken returns the calls since the last time.
func (d *fakeDevice) taken() []call {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.calls
	d.calls = nil
	return c
}

func (d *fakeDevice) begin(ctx context.Context, c call) error {
	d.mu.Lock()
	before := d.before
	if before != nil && c.flags.Has(block.NoWait) {
		d.mu.Unlock()
		return block.ErrWouldBlock
	}
	c.flags &^= block.NoWait
	d.calls = append(d.calls, c)
	d.mu.Unlock()
	if before != nil {
		return before(ctx, c)
	}
	return nil
}

func (d *fakeDevice) Info() block.DeviceInfo {
	in := d.MemDevice.Info()
	if size := d.size.Load(); size != 0 {
		in.Size = size
	}
	return in
}

func (d *fakeDevice) ReadAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if err := d.begin(ctx, call{"read", off, int64(len(p)), f}); err != nil {
		return err
	}
	return d.MemDevice.ReadAt(ctx, p, off, f)
}

func (d *fakeDevice) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if err := d.begin(ctx, call{"write", off, int64(len(p)), f}); err != nil {
		return err
	}
	return d.MemDevice.WriteAt(ctx, p, off, f)
}

func (d *fakeDevice) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	if err := d.begin(ctx, call{"zero", off, n, f}); err != nil {
		return err
	}
	return d.MemDevice.WriteZeroes(ctx, off, n, f)
}

func (d *fakeDevice) Discard(ctx context.Context, off, n int64, f block.Flags) error {
	if err := d.begin(ctx, call{"discard", off, n, f}); err != nil {
		return err
	}
	return d.MemDevice.Discard(ctx, off, n, f)
}

func (d *fakeDevice) AppendExtents(ctx context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	if err := d.begin(ctx, call{"extents", off, n, 0}); err != nil {
		return dst, err
	}
	return d.MemDevice.AppendExtents(ctx, dst, off, n)
}

func (d *fakeDevice) Flush(ctx context.Context) error {
	if err := d.begin(ctx, call{op: "flush"}); err != nil {
		return err
	}
	return d.MemDevice.Flush(ctx)
}
