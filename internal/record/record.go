// Package record wraps a block.File and writes down everything that happens to
// it: each operation when it is submitted and when it is completed, with its
// data, and marks that the test sets, such as "the client was told that its
// write is done".
//
// The log is in the order in which things happened, so that a crash can be put
// between any two events (package crashlab). An operation submitted before and
// completed behind that moment is in flight then, and a Sync covers what had
// completed when it was submitted.
package record

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"tidemark/internal/block"
)

// Kind says what an event is about.
type Kind uint8

// The kinds of events.
const (
	Read Kind = iota + 1
	Write
	WriteSync
	Zeroes
	Discard
	Grow
	Shrink
	Sync
	Mark
)

func (k Kind) String() string {
	return [...]string{"nothing", "read", "write", "write sync", "zeroes", "discard", "grow", "shrink", "sync", "mark"}[k]
}

// An Event is the submission or the completion of an operation, or a mark.
type Event struct {
	// ID is the number of the operation, the same at submission and
	// completion; counted from 1.
	ID   int
	Kind Kind
	Done bool // completion, or a mark
	// Off and Len are bytes; of Grow, need and want; of Shrink, from and to.
	Off, Len int64
	Data     []byte // what is written; at submission only
	Size     int64  // of Grow: the new size; at completion only
	Err      error  // at completion only
	Label    string // of a mark
	Beside   any    // what Options.Beside said at that moment
}

// A Log is what happened, in order.
type Log []Event

// A File is a block.File that records.
type File struct {
	below  block.File
	reads  bool
	beside func() any

	mu  sync.Mutex // guards the rest
	log Log
	ids int
}

var _ block.File = (*File)(nil)

// Options say what is recorded.
type Options struct {
	Reads bool // reads too, without their data
	// Beside, if not nil, is asked at every event for what there is beside the File;
	// nothing else is recorded meanwhile.
	Beside func() any
}

// New returns f with a recorder around it.
func New(f block.File, o Options) *File { return &File{below: f, reads: o.Reads, beside: o.Beside} }

// Log returns a copy of what was recorded so far.
func (f *File) Log() Log {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.log)
}

// Mark records a moment of the test's, such as an acknowledgement to a client,
// and returns its position in the log.
func (f *File) Mark(label string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ids++
	f.appendLocked(Event{ID: f.ids, Kind: Mark, Done: true, Label: label})
	return len(f.log) - 1
}

func (f *File) appendLocked(e Event) {
	if f.beside != nil {
		e.Beside = f.beside()
	}
	f.log = append(f.log, e)
}

// submit records the beginning of an operation and gives it its number.
func (f *File) submit(e Event) Event {
	e.Data = bytes.Clone(e.Data)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ids++
	e.ID = f.ids
	f.appendLocked(e)
	return e
}

func (f *File) complete(e Event, err error) {
	e.Done, e.Data, e.Err = true, nil, err
	f.mu.Lock()
	defer f.mu.Unlock()
	f.appendLocked(e)
}

// ReadAt is described at block.File.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if !f.reads {
		return f.below.ReadAt(p, off)
	}
	e := f.submit(Event{Kind: Read, Off: off, Len: int64(len(p))})
	n, err := f.below.ReadAt(p, off)
	f.complete(e, err)
	return n, err
}

// WriteLater is described at block.File: every write is recorded by WriteAt.
func (f *File) WriteLater([]byte, int64, block.Later) bool { return false }

// ReadNow is described at block.File. Where reads are recorded it is always left to
// ReadAt.
func (f *File) ReadNow(p []byte, off int64) bool { return !f.reads && f.below.ReadNow(p, off) }

// WriteAt is described at block.File.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	e := f.submit(Event{Kind: Write, Off: off, Len: int64(len(p)), Data: p})
	n, err := f.below.WriteAt(p, off)
	f.complete(e, err)
	return n, err
}

// WriteAtSync is described at block.File.
func (f *File) WriteAtSync(p []byte, off int64) (int, error) {
	e := f.submit(Event{Kind: WriteSync, Off: off, Len: int64(len(p)), Data: p})
	n, err := f.below.WriteAtSync(p, off)
	f.complete(e, err)
	return n, err
}

// WriteZeroes is described at block.File.
func (f *File) WriteZeroes(off, n int64) error {
	e := f.submit(Event{Kind: Zeroes, Off: off, Len: n})
	err := f.below.WriteZeroes(off, n)
	f.complete(e, err)
	return err
}

// Discard is described at block.File.
func (f *File) Discard(off, n int64) error {
	e := f.submit(Event{Kind: Discard, Off: off, Len: n})
	err := f.below.Discard(off, n)
	f.complete(e, err)
	return err
}

// WriteBack is described at block.File. It is no event: it changes nothing.
func (f *File) WriteBack(off, n int64) { f.below.WriteBack(off, n) }

// Grow is described at block.File.
func (f *File) Grow(ctx context.Context, need, want int64) (int64, error) {
	e := f.submit(Event{Kind: Grow, Off: need, Len: want})
	size, err := f.below.Grow(ctx, need, want)
	e.Size = size
	f.complete(e, err)
	return size, err
}

// Shrink is described at block.File.
func (f *File) Shrink(ctx context.Context, from, to int64) error {
	e := f.submit(Event{Kind: Shrink, Off: from, Len: to})
	err := f.below.Shrink(ctx, from, to)
	f.complete(e, err)
	return err
}

// Size is described at block.File.
func (f *File) Size() int64 { return f.below.Size() }

// Sync is described at block.File.
func (f *File) Sync() error {
	e := f.submit(Event{Kind: Sync})
	err := f.below.Sync()
	f.complete(e, err)
	return err
}

// Info is described at block.File.
func (f *File) Info() block.FileInfo { return f.below.Info() }

// Close is described at block.File.
func (f *File) Close() error { return f.below.Close() }
