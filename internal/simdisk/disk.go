package simdisk

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
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
	opts Options // MaxSize: guarded by mu

	mu      sync.Mutex // guards everything below
	size    int64
	current image
	durable image
	pending []Op
	lastOp  int
	syncs   int
	failure *failure
	closed  bool
}

var _ block.File = (*Disk)(nil)

// failure is what the next sync is to fail with.
type failure struct {
	err  error
	keep Keep
}

// New returns a disk of size bytes that read zero, durably.
func New(size int64, o Options) *Disk {
	o.Align = max(o.Align, 1)
	return &Disk{opts: o, size: size, current: newImage(), durable: newImage()}
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
	n := min(int64(len(p)), max(d.size-off, 0))
	d.current.read(p[:n], off)
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// WriteAt is described at block.File.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkWriteLocked("write", p, off, int64(len(p))); err != nil {
		return 0, err
	}
	d.writeLocked(p, off)
	return len(p), nil
}

// WriteAtSync is described at block.File. A failure set by FailSync applies to
// it as to Sync.
func (d *Disk) WriteAtSync(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkWriteLocked("write", p, off, int64(len(p))); err != nil {
		return 0, err
	}
	if len(p) == 0 {
		return 0, nil
	}
	d.writeLocked(p, off)
	if d.failure != nil {
		return 0, d.failLocked()
	}
	d.pending[len(d.pending)-1].FUA = true
	return len(p), nil
}

// WriteZeroes is described at block.File.
func (d *Disk) WriteZeroes(off, n int64) error {
	return d.fill(Zeroes, "write zeroes", off, n, zeroPage)
}

// Discard is described at block.File.
func (d *Disk) Discard(off, n int64) error {
	content := zeroPage
	if d.opts.DiscardForeign {
		content = foreignPage
	}
	return d.fill(Discard, "discard", off, n, content)
}

// Grow is described at block.File. It does not wait: a full disk stays full
// until SetMaxSize.
func (d *Disk) Grow(_ context.Context, need, want int64) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkLocked("grow", nil, need, 0); err != nil {
		return d.size, err
	}
	if need <= d.size {
		return d.size, nil
	}
	size := max(need, want)
	if limit := d.opts.MaxSize; limit > 0 && size > limit {
		if need > limit {
			return d.size, fmt.Errorf("grow to %d bytes: the simulated disk has %d: %w", need, limit, block.ErrNoSpace)
		}
		size = limit
	}
	d.growLocked(size)
	return size, nil
}

func (d *Disk) growLocked(size int64) {
	old := d.size
	d.size = size
	if d.opts.Foreign {
		d.durable.addForeign(old, size)
		d.current.addForeign(old, size)
	}
}

// Shrink is described at block.File.
func (d *Disk) Shrink(_ context.Context, from, to int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkLocked("shrink", nil, to, 0); err != nil {
		return err
	}
	if from != d.size {
		return fmt.Errorf("shrink: expected %d bytes, found %d: %w", from, d.size, block.ErrStale)
	}
	if to < 0 || to > from {
		return fmt.Errorf("shrink from %d to %d bytes: %w", from, to, block.ErrRange)
	}
	d.size = to
	d.current.truncate(to)
	d.durable.truncate(to)
	var left []Op
	for _, op := range d.pending {
		if op, ok := op.truncated(to); ok {
			left = append(left, op)
		}
	}
	d.pending = left
	return nil
}

// Size is described at block.File.
func (d *Disk) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.size
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
	d.settleLocked(KeepAll)
	return nil
}

// settleLocked makes the kept part of what is pending durable, the rest is lost.
func (d *Disk) settleLocked(keep Keep) {
	for _, op := range d.pending {
		op.applyTo(&d.durable, keep)
	}
	d.pending = nil
}

func (d *Disk) failLocked() error {
	f := d.failure
	d.failure = nil
	d.settleLocked(f.keep)
	return fmt.Errorf("sync: %w", f.err)
}

// Info is described at block.File.
func (d *Disk) Info() block.FileInfo {
	return block.FileInfo{Align: d.opts.Align, TearUnit: SectorSize, FreshZero: !d.opts.Foreign, ZeroCheap: true, Direct: d.opts.Align > 1}
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

func (d *Disk) pushLocked(op Op) {
	d.lastOp++
	op.ID = d.lastOp
	d.pending = append(d.pending, op)
}

func (d *Disk) writeLocked(p []byte, off int64) {
	op := Op{Kind: Write, Off: off, Len: int64(len(p))}
	for at := off; len(p) > 0; {
		next := *d.current.page(at / pageSize)
		n := copy(next[at%pageSize:], p)
		d.current.set(at/pageSize, &next)
		op.after = append(op.after, pageAfter{at / pageSize, &next})
		p, at = p[n:], at+int64(n)
	}
	if op.Len > 0 {
		d.pushLocked(op)
	}
}

// fill makes a range read as content does, page by page.
func (d *Disk) fill(kind Kind, name string, off, n int64, content *page) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkWriteLocked(name, nil, off, n); err != nil || n == 0 {
		return err
	}
	op := Op{Kind: kind, Off: off, Len: n}
	for i := off / pageSize; i*pageSize < off+n; i++ {
		d.current.setBytes(i, max(off-i*pageSize, 0), min(off+n-i*pageSize, pageSize), content)
		op.after = append(op.after, pageAfter{i, d.current.page(i)})
	}
	d.pushLocked(op)
	return nil
}

func (d *Disk) checkWriteLocked(op string, p []byte, off, n int64) error {
	if err := d.checkLocked(op, p, off, n); err != nil {
		return err
	}
	if block.CheckRange(off, n, d.size) != nil {
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
	a := int64(d.opts.Align)
	if p != nil && (off%a != 0 || n%a != 0 || int64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))&uintptr(a-1)) != 0) {
		return fmt.Errorf("%s: %d bytes at %d, memory at %p: expected a multiple of %d: invalid argument", op, n, off, p, a)
	}
	return nil
}

func (d *Disk) rangeErrorLocked(op string, off, n int64) error {
	return fmt.Errorf("%s: %d bytes at %d: %w of %d bytes", op, n, off, block.ErrRange, d.size)
}

// Pending returns the operations that no successful Sync has covered, in order.
func (d *Disk) Pending() []Op {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.pending)
}
