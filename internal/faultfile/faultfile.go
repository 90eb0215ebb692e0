// Package faultfile wraps a block.File so that chosen operations fail or stop.
//
// A fault sweep counts the operations of a scenario once, then runs it again for
// i = 1, 2, 3, ... with the i-th operation failing, once or for ever, until the
// scenario no longer reaches operation i:
//
//	for i := 1; ; i++ {
//		f := faultfile.New(file, faultfile.Fault{At: i, Err: syscall.EIO})
//		scenario(f)
//		if f.Injected() == 0 {
//			break
//		}
//	}
//
// Hooks run before and after an operation and may block it on a channel: that
// makes an interleaving deterministic.
//
// Nothing of the operation is done when it fails, except the part of a write
// that Fault.Short asks for. An error of a Sync or WriteAtSync is not latched:
// the wrapper fails what it was told to fail; what a failed sync does to the
// data is simdisk's subject.
package faultfile

import (
	"context"
	"fmt"
	"sync"

	"tidemark/internal/block"
)

// Kind is a set of kinds of operations.
type Kind uint16

// The kinds of operations.
const (
	Read Kind = 1 << iota
	Write
	WriteSync
	Zeroes
	Discard
	Grow
	Shrink
	Sync
	Close

	// Mutations change content or size. Syncs make something durable.
	Mutations = Write | WriteSync | Zeroes | Discard | Grow | Shrink
	Syncs     = WriteSync | Sync
	All       = Read | Mutations | Sync | Close
)

var kindNames = map[Kind]string{
	Read: "read", Write: "write", WriteSync: "write sync", Zeroes: "zeroes", Discard: "discard",
	Grow: "grow", Shrink: "shrink", Sync: "sync", Close: "close",
}

// String names a single kind.
func (k Kind) String() string { return kindNames[k] }

// An Op is one operation. Of Grow, Off is need and Len want; of Shrink, Off is
// from and Len to.
type Op struct {
	N        int // counts all operations, from 1
	Kind     Kind
	Off, Len int64
}

func (o Op) String() string {
	return fmt.Sprintf("operation %d: %v(%d, %d)", o.N, o.Kind, o.Off, o.Len)
}

// A Fault says which operations fail. The zero value fails none.
type Fault struct {
	// At is the number of the operation that fails, counted from 1 among
	// those of Kinds; 0 for none.
	At int
	// Kinds are the kinds that count and may fail; 0 means All but Close.
	Kinds Kind
	// Err is what the operation fails with.
	Err error
	// Sticky: every later operation of Kinds fails too.
	Sticky bool
	// Short is how many bytes of a failing read or write are done.
	Short int
	// Late: the operation is done and only its success is lost.
	Late bool
}

// A File is a block.File that fails when told.
type File struct {
	below block.File

	mu       sync.Mutex // guards the rest
	fault    Fault
	counted  int // operations of fault.Kinds since the fault was set
	ops      int // all operations
	injected int
	before   func(Op)
	after    func(Op, error)
}

var _ block.File = (*File)(nil)

// New returns f with a fault.
func New(f block.File, fault Fault) *File { return &File{below: f, fault: fault} }

// SetFault replaces the fault and starts to count anew.
func (f *File) SetFault(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault, f.counted, f.injected = fault, 0, 0
}

// Hook sets functions that run before and after every operation, without a lock,
// on the goroutine of the caller; nil for none. What blocks in one blocks that
// operation only.
func (f *File) Hook(before func(Op), after func(Op, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.after = before, after
}

// Ops is the number of operations so far.
func (f *File) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ops
}

// Injected is the number of operations that were made to fail since the fault
// was set.
func (f *File) Injected() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.injected
}

// do runs one operation. call does the first n bytes of it, all for n < 0.
func (f *File) do(kind Kind, off, length int64, call func(n int) error) error {
	op, fault, before, after := f.begin(kind, off, length)
	if before != nil {
		before(op)
	}
	err := act(op, fault, call)
	if after != nil {
		after(op, err)
	}
	return err
}

// begin counts the operation and decides whether it fails.
func (f *File) begin(kind Kind, off, length int64) (op Op, fault *Fault, before func(Op), after func(Op, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops++
	op = Op{N: f.ops, Kind: kind, Off: off, Len: length}
	kinds := f.fault.Kinds
	if kinds == 0 {
		kinds = All &^ Close
	}
	if f.fault.At > 0 && kinds&kind != 0 {
		f.counted++
		if f.counted == f.fault.At || f.fault.Sticky && f.counted > f.fault.At {
			f.injected++
			copied := f.fault
			fault = &copied
		}
	}
	return op, fault, f.before, f.after
}

func act(op Op, fault *Fault, call func(n int) error) error {
	if fault == nil {
		return call(-1)
	}
	if fault.Late {
		if err := call(-1); err != nil {
			return err
		}
	} else if fault.Short > 0 && op.Kind&(Read|Write|WriteSync) != 0 {
		if err := call(int(min(int64(fault.Short), op.Len))); err != nil {
			return err
		}
	}
	return fmt.Errorf("injected into %v: %w", op, fault.Err)
}

// transfer runs a read or write, cut short where the fault says so.
func (f *File) transfer(kind Kind, p []byte, off int64, call func([]byte, int64) (int, error)) (n int, err error) {
	err = f.do(kind, off, int64(len(p)), func(part int) (err error) {
		q := p
		if part >= 0 {
			q = p[:part]
		}
		n, err = call(q, off)
		return err
	})
	if err != nil && n == len(p) && n > 0 && kind != Read {
		n-- // Late: an error with all bytes written would not be an io.WriterAt
	}
	return n, err
}

// ReadAt is described at block.File.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	return f.transfer(Read, p, off, f.below.ReadAt)
}

// WriteLater is described at block.File: every write is one of WriteAt.
func (f *File) WriteLater([]byte, int64, block.Later) bool { return false }

// ReadNow is described at block.File. It is a Read.
func (f *File) ReadNow(p []byte, off int64) bool {
	_, err := f.transfer(Read, p, off, func(p []byte, off int64) (int, error) {
		if !f.below.ReadNow(p, off) {
			return 0, block.ErrWouldBlock
		}
		return len(p), nil
	})
	return err == nil
}

// WriteAt is described at block.File.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	return f.transfer(Write, p, off, f.below.WriteAt)
}

// WriteAtSync is described at block.File.
func (f *File) WriteAtSync(p []byte, off int64) (int, error) {
	return f.transfer(WriteSync, p, off, f.below.WriteAtSync)
}

// WriteZeroes is described at block.File.
func (f *File) WriteZeroes(off, n int64) error {
	return f.do(Zeroes, off, n, func(int) error { return f.below.WriteZeroes(off, n) })
}

// Discard is described at block.File.
func (f *File) Discard(off, n int64) error {
	return f.do(Discard, off, n, func(int) error { return f.below.Discard(off, n) })
}

// WriteBack is described at block.File. It cannot fail, so it is no operation here.
func (f *File) WriteBack(off, n int64) { f.below.WriteBack(off, n) }

// Grow is described at block.File.
func (f *File) Grow(ctx context.Context, need, want int64) (int64, error) {
	size := int64(-1)
	err := f.do(Grow, need, want, func(int) (err error) {
		size, err = f.below.Grow(ctx, need, want)
		return err
	})
	if size < 0 {
		size = f.below.Size()
	}
	return size, err
}

// Shrink is described at block.File.
func (f *File) Shrink(ctx context.Context, from, to int64) error {
	return f.do(Shrink, from, to, func(int) error { return f.below.Shrink(ctx, from, to) })
}

// Size is described at block.File. It is not an operation.
func (f *File) Size() int64 { return f.below.Size() }

// Sync is described at block.File.
func (f *File) Sync() error {
	return f.do(Sync, 0, 0, func(int) error { return f.below.Sync() })
}

// Info is described at block.File. It is not an operation.
func (f *File) Info() block.FileInfo { return f.below.Info() }

// Close is described at block.File.
func (f *File) Close() error {
	return f.do(Close, 0, 0, func(int) error { return f.below.Close() })
}
