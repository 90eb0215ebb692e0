package simdisk

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"tidemark/internal/block"
)

// Options say what kind of disk is simulated. With the zero value it is like a
// file: no alignment, any size, fresh space reads zero.
type Options struct {
	// Foreign: space that Grow adds holds another tenant's bytes, as an LVM
	// extent does (Info().FreshZero is false).
	Foreign bool
	// DiscardForeign: discarded space reads as another tenant's, the worst
	// that a hint allows. Otherwise it reads zero.
	DiscardForeign bool
	// Align is the alignment that offsets, lengths and memory must have; 0
	// means none.
	Align int
	// MaxSize is how far Grow may go; 0 means that there is no limit.
	MaxSize int64
}

// A Disk is a simulated disk, a block.File.
type Disk struct {
	id string

	mu      sync.Mutex // guards everything below
	m       *Model
	maxSize int64
	syncs   int
	failure error // what the next sync is to fail with, or nil
	closed  bool
}

var _ block.File = (*Disk)(nil)

// disks counts the disks of this process: each has a name of its own, also after a
// power cut, when the host has forgotten the old one.
var disks atomic.Int64

// New returns a disk of size bytes that read zero, durably.
func New(size int64, o Options) *Disk { return NewDisk(State{newImage(), size}, o) }

// NewDisk returns a disk that holds s, durably.
func NewDisk(s State, o Options) *Disk {
	o.Align = max(o.Align, 1)
	return &Disk{id: fmt.Sprintf("simdisk %d", disks.Add(1)), m: NewModel(s, o), maxSize: o.MaxSize}
}

// ReadAt is described at block.File.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkLocked("read", p, off, int64(len(p))); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, d.rangeErrorLocked("read", off, int64(len(p)))
	}
	n := min(int64(len(p)), max(d.m.size-off, 0))
	d.m.current.read(p[:n], off)
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// WriteLater is described at block.File: nothing is begun, but see Later.
func (d *Disk) WriteLater([]byte, int64, block.Later) bool { return false }

// ReadNow is described at block.File.
func (d *Disk) ReadNow(p []byte, off int64) bool {
	n, err := d.ReadAt(p, off)
	return err == nil && n == len(p)
}

// WriteAt is described at block.File.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkWriteLocked("write", p, off, int64(len(p))); err != nil {
		return 0, err
	}
	d.doLocked(Write, off, int64(len(p)), p)
	return len(p), nil
}

// WriteAtSync is described at block.File. A failure set by FailSync applies to
// it as to Sync.
func (d *Disk) WriteAtSync(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkWriteLocked("write", p, off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	op := d.m.Submit(Write, off, int64(len(p)), p)
	if d.failure != nil {
		d.m.Return(op, false)
		return 0, d.failLocked()
	}
	d.m.Return(op, true)
	return len(p), nil
}

// WriteZeroes is described at block.File.
func (d *Disk) WriteZeroes(off, n int64) error { return d.fill(Zeroes, "write zeroes", off, n) }

// Discard is described at block.File.
func (d *Disk) Discard(off, n int64) error { return d.fill(Discard, "discard", off, n) }

func (d *Disk) fill(kind Kind, name string, off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkWriteLocked(name, nil, off, n); err != nil {
		return err
	}
	d.doLocked(kind, off, n, nil)
	return nil
}

// doLocked does an operation from its submission to its return.
func (d *Disk) doLocked(kind Kind, off, n int64, p []byte) {
	if n > 0 {
		d.m.Return(d.m.Submit(kind, off, n, p), false)
	}
}

// WriteBack is described at block.File. What of the volatile bytes lands is the
// crash's choice anyway.
func (d *Disk) WriteBack(int64, int64) {}

// Grow is described at block.File. It does not wait: a full disk stays full
// until SetMaxSize.
func (d *Disk) Grow(_ context.Context, need, want int64) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkLocked("grow", nil, need, 0); err != nil {
		return d.m.size, err
	}
	if need <= d.m.size {
		return d.m.size, nil
	}
	size := max(need, want)
	if limit := d.maxSize; limit > 0 && size > limit {
		if need > limit {
			return d.m.size, fmt.Errorf("grow to %d bytes: the simulated disk has %d: %w", need, limit, block.ErrNoSpace)
		}
		size = limit
	}
	d.m.grow(size)
	return size, nil
}

// Shrink is described at block.File.
func (d *Disk) Shrink(_ context.Context, from, to int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkLocked("shrink", nil, to, 0); err != nil {
		return err
	}
	if from != d.m.size {
		return fmt.Errorf("shrink: expected %d bytes, found %d: %w", from, d.m.size, block.ErrStale)
	}
	if to < 0 || to > from {
		return fmt.Errorf("shrink from %d to %d bytes: %w", from, to, block.ErrRange)
	}
	d.m.shrink(to)
	return nil
}

// Size is described at block.File.
func (d *Disk) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.m.size
}

// Sync is described at block.File, but see FailSync.
func (d *Disk) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkLocked("sync", nil, 0, 0); err != nil {
		return err
	}
	d.syncs++
	if d.failure != nil {
		return d.failLocked()
	}
	d.m.EndSync(d.m.BeginSync(), true)
	return nil
}

// failLocked is a sync that fails.
func (d *Disk) failLocked() error {
	err := d.failure
	d.failure = nil
	d.m.EndSync(d.m.BeginSync(), false)
	return fmt.Errorf("sync: %w", err)
}

// Info is described at block.File.
func (d *Disk) Info() block.FileInfo {
	return block.FileInfo{ID: d.id, Align: d.m.opts.Align, TearUnit: SectorSize, FreshZero: !d.m.opts.Foreign, ZeroCheap: true, Direct: d.m.opts.Align > 1}
}

// Close closes the disk. Its content remains and can be looked at with Crash.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkLocked("close", nil, 0, 0); err != nil {
		return err
	}
	d.closed = true
	return nil
}

func (d *Disk) checkWriteLocked(op string, p []byte, off, n int64) error {
	if err := d.checkLocked(op, p, off, n); err != nil {
		return err
	}
	if block.CheckRange(off, n, d.m.size) != nil {
		return d.rangeErrorLocked(op, off, n)
	}
	return nil
}

// checkLocked returns the error of an operation on a closed disk or one that
// does not keep the alignment.
func (d *Disk) checkLocked(op string, p []byte, off, n int64) error {
	if d.closed {
		return fmt.Errorf("%s: simulated disk: %w", op, block.ErrClosed)
	}
	a := int64(d.m.opts.Align)
	if p != nil && (off%a != 0 || n%a != 0 || int64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))&uintptr(a-1)) != 0) {
		return fmt.Errorf("%s: %d bytes at %d, memory at %p: expected a multiple of %d: invalid argument", op, n, off, p, a)
	}
	return nil
}

func (d *Disk) rangeErrorLocked(op string, off, n int64) error {
	return fmt.Errorf("%s: %d bytes at %d: %w of %d bytes", op, n, off, block.ErrRange, d.m.size)
}

// Pending returns the operations that no successful Sync has covered, in order.
// They are not to be looked into while the disk is used.
func (d *Disk) Pending() []*Op {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.m.pending)
}
