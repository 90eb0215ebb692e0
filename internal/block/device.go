package block

import (
	"context"
	"io"
)

// Flags modify one request to a Device.
type Flags uint8

const (
	// FUA asks that the request be durable when it returns.
	FUA Flags = 1 << iota
	// NoWait asks that the request finish in memory or page cache, or return
	// ErrWouldBlock with nothing done. A Device may always answer so.
	NoWait
	// MayUnmap lets WriteZeroes give the storage below the range back.
	MayUnmap
	// Fast asks WriteZeroes for ErrNotFast, with nothing done, unless zeroing
	// is known to be faster than writing zeroes.
	Fast
)

// Has reports whether all of want are set.
func (f Flags) Has(want Flags) bool { return f&want == want }

// A Device is a virtual disk as it is served. It is safe for concurrent use;
// requests that overlap in time are in no order, as on a disk.
//
// A range outside [0, Info().Size) is ErrRange. After Close every method
// returns ErrClosed.
type Device interface {
	ReadAt(ctx context.Context, p []byte, off int64, f Flags) error
	WriteAt(ctx context.Context, p []byte, off int64, f Flags) error

	// WriteLater begins to write p, and tells to when that has ended; p is the Device's
	// until then. It does not wait. It reports whether it has begun; if not, for whatever
	// reason, nothing was done that shows. A Device may always answer so.
	WriteLater(p []byte, off int64, to Later) bool

	// WriteZeroes makes n bytes at off read zero.
	WriteZeroes(ctx context.Context, off, n int64, f Flags) error

	// Discard tells that n bytes at off are no longer needed. What is read
	// there afterwards is the old content or zeroes.
	Discard(ctx context.Context, off, n int64, f Flags) error

	// AppendExtents appends the extents that cover n bytes at off to dst, in
	// order and without gaps; the last one ends at off+n. Neighbours that
	// differ in nothing are one extent. Extents keep the Device's own
	// granularity, which may be finer than MinBlock. It may stop early when
	// len(dst) reaches cap(dst), but it always makes progress.
	AppendExtents(ctx context.Context, dst []Extent, off, n int64) ([]Extent, error)

	// Flush makes every write, zeroing and discard that returned before Flush
	// was called, on any connection, durable.
	Flush(ctx context.Context) error

	// Info describes the disk. Only Size may change, and only upwards.
	Info() DeviceInfo

	io.Closer
}

// DeviceInfo describes a Device.
type DeviceInfo struct {
	Size int64 // bytes

	// MinBlock, PreferredBlock and MaxTransfer are in bytes: the alignment
	// that a client must keep (1 means none), the one that is efficient, and
	// the largest single read or write (0 means that there is no limit).
	MinBlock, PreferredBlock, MaxTransfer int

	ReadOnly bool

	// What the Device is able to do. Flush and FUA belong together: a Device
	// without them is durable at every write or never.
	CanFlush, CanFUA, CanDiscard, CanZero, CanFastZero bool

	// MultiConn says that a Flush on one connection covers the completed
	// writes of all of them.
	MultiConn bool
}

// An Extent is a run of a Device's bytes that have the same state.
type Extent struct {
	Off, Len int64 // in the Device, bytes
	State    ExtentState
	// Host is the byte offset in the File below at which Off is stored, or -1
	// where there is no such place.
	Host int64
	// Depth is the number of the image in the backing chain that holds the
	// extent, 0 for the Device's own.
	Depth int
}

// End is the first byte behind the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// ExtentState says what is known of an extent.
type ExtentState uint8

const (
	// Allocated: the chain has an entry for it, its own storage or a zero mark.
	Allocated ExtentState = 1 << iota
	// Data: storage is set aside for it and is what a read returns.
	Data
	// Zero: it reads zero.
	Zero
	// Compressed: it is stored compressed.
	Compressed
)

// Has reports whether all of want are set.
func (s ExtentState) Has(want ExtentState) bool { return s&want == want }
