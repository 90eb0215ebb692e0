package nbd

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"tidemark/internal/block"
)

// memDevice is a disk in memory that allocates blocks of memBlock bytes when
// they are written, waits for space on demand, and can be told to misbehave. A
// request with NoWait that has to wait leaves no trace but in wouldBlock; ops and
// flags are those that were begun, without NoWait.
type memDevice struct {
	info block.DeviceInfo
	// before is called at the start of every request; an error fails it. It may
	// wait, so requests with NoWait do not get that far.
	before func(ctx context.Context, op string, off, n int64, f block.Flags) error
	// inline is called at the start of every request with NoWait; an error fails
	// it, block.ErrWouldBlock included.
	inline func(op string, off, n int64) error
	// late is called in every request without NoWait. It may wait.
	late func(op string, off int64)
	// begins is WriteLater; nil: nothing is begun.
	begins func(p []byte, off int64, to block.Later) bool

	mu        sync.Mutex // guards what follows
	data      []byte
	allocated []bool
	full      bool          // new blocks wait for space
	freed     chan struct{} // closed when there is space
	ops       []string
	flags     []block.Flags
	volatile  int   // completed writes since the last flush
	fail      error // of every request

	finished   int // requests with NoWait that were executed
	wouldBlock int // and those that were not
}

const memBlock = 4096

func newMemDevice(size int64) *memDevice {
	return &memDevice{
		info: block.DeviceInfo{
			Size: size, MinBlock: 1, PreferredBlock: 4096,
			CanFlush: true, CanFUA: true, CanDiscard: true, CanZero: true, CanFastZero: true, MultiConn: true,
		},
		data: make([]byte, size), allocated: make([]bool, (size+memBlock-1)/memBlock), freed: make(chan struct{}),
	}
}

func (d *memDevice) begin(ctx context.Context, op string, off, n int64, f block.Flags) error {
	if f.Has(block.NoWait) {
		if err := d.beginInline(op, off, n); err != nil {
			return err
		}
	} else if d.late != nil {
		d.late(op, off)
	}
	d.mu.Lock()
	d.ops, d.flags = append(d.ops, op), append(d.flags, f&^block.NoWait)
	fail := d.fail
	d.mu.Unlock()
	if fail != nil {
		return fail
	}
	if d.before != nil {
		if err := d.before(ctx, op, off, n, f); err != nil {
			return err
		}
	}
	return block.CheckRange(off, n, d.info.Size)
}

func (d *memDevice) beginInline(op string, off, n int64) error {
	var err error
	if d.inline != nil {
		err = d.inline(op, off, n)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && (d.before != nil || op == "write" && d.full && d.needsSpaceLocked(off, n)) {
		err = block.ErrWouldBlock
	}
	if errors.Is(err, block.ErrWouldBlock) {
		d.wouldBlock++
	} else {
		d.finished++
	}
	return err
}

func (d *memDevice) needsSpaceLocked(off, n int64) bool {
	for b := off / memBlock; b*memBlock < min(off+n, d.info.Size); b++ {
		if !d.allocated[b] {
			return true
		}
	}
	return false
}

// inlined counts the requests with NoWait that were executed, and those that
// were not.
func (d *memDevice) inlined() (finished, wouldBlock int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.finished, d.wouldBlock
}

func (d *memDevice) failWith(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

func (d *memDevice) setFull() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full, d.freed = true, make(chan struct{})
}

func (d *memDevice) makeSpace() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = false
	close(d.freed)
}

// space waits until the blocks may be allocated.
func (d *memDevice) space(ctx context.Context, off, n int64) error {
	d.mu.Lock()
	wait, freed := d.full && d.needsSpaceLocked(off, n), d.freed
	d.mu.Unlock()
	if !wait {
		return nil
	}
	h := block.HoldOf(ctx)
	if err := h.Begin(); err != nil {
		return err
	}
	defer h.End()
	select {
	case <-freed:
		return nil
	case <-ctx.Done():
		return block.SpaceError(ctx)
	}
}

func (d *memDevice) ReadAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if err := d.begin(ctx, "read", off, int64(len(p)), f); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	return nil
}

func (d *memDevice) WriteLater(p []byte, off int64, to block.Later) bool {
	return d.begins != nil && d.begins(p, off, to)
}

func (d *memDevice) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if err := d.begin(ctx, "write", off, int64(len(p)), f); err != nil {
		return err
	}
	if err := d.space(ctx, off, int64(len(p))); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:], p)
	d.mark(off, int64(len(p)), true)
	d.volatile++
	return nil
}

func (d *memDevice) mark(off, n int64, allocated bool) {
	for b := off / memBlock; b*memBlock < off+n; b++ {
		whole := b*memBlock >= off && min((b+1)*memBlock, d.info.Size) <= off+n
		if allocated || whole {
			d.allocated[b] = allocated
		}
	}
}

func (d *memDevice) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	if err := d.begin(ctx, "zero", off, n, f); err != nil {
		return err
	}
	if f.Has(block.Fast) && (off|n)%memBlock != 0 {
		return block.ErrNotFast
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+n])
	d.mark(off, n, !f.Has(block.MayUnmap))
	d.volatile++
	return nil
}

func (d *memDevice) Discard(ctx context.Context, off, n int64, f block.Flags) error {
	if err := d.begin(ctx, "discard", off, n, f); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for b := (off + memBlock - 1) / memBlock; (b+1)*memBlock <= off+n; b++ {
		d.allocated[b] = false
		clear(d.data[b*memBlock : (b+1)*memBlock])
	}
	return nil
}

func (d *memDevice) AppendExtents(ctx context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	if err := d.begin(ctx, "extents", off, n, 0); err != nil {
		return dst, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	start, room := len(dst), cap(dst)
	for end := off + n; off < end; {
		b := off / memBlock
		e := block.Extent{Off: off, Len: min((b+1)*memBlock, end) - off, State: block.Zero, Host: -1}
		if d.allocated[b] {
			e.State, e.Host = block.Allocated|block.Data, off
		}
		if last := len(dst) - 1; last >= start && dst[last].State == e.State {
			dst[last].Len += e.Len
		} else if len(dst) > start && len(dst) == room {
			return dst, nil
		} else {
			dst = append(dst, e)
		}
		off = e.End()
	}
	return dst, nil
}

func (d *memDevice) Flush(ctx context.Context) error {
	if err := d.begin(ctx, "flush", 0, 0, 0); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.volatile = 0
	return nil
}

func (d *memDevice) Info() block.DeviceInfo { return d.info }
func (d *memDevice) Close() error           { return nil }

func (d *memDevice) snapshot() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.data)
}

// lastOp is the last request and its flags.
func (d *memDevice) lastOp() (string, block.Flags) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ops[len(d.ops)-1], d.flags[len(d.flags)-1]
}

// seen counts the requests of a kind.
func (d *memDevice) seen(op string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, o := range d.ops {
		if o == op {
			n++
		}
	}
	return n
}
