package block

import (
	"context"
	"io"
)

// A File is the bytes below an image: a regular file, a logical volume, a thin
// volume, or a wrapper of one of them. It is safe for concurrent use.
//
// Offsets and lengths are bytes. ReadAt and WriteAt are all or error, as
// [io.ReaderAt] and [io.WriterAt] say; a read that passes Size returns what
// there is and [io.EOF]. A write, zeroing or discard that passes Size is
// [ErrRange]: a File grows by Grow only. After Close every method returns
// [ErrClosed].
type File interface {
	io.ReaderAt
	io.WriterAt

	// ReadNow is ReadAt where that finishes in memory. It reports whether all of p
	// was read; if not, for whatever reason, p holds nothing of use. A File may
	// always answer so.
	ReadNow(p []byte, off int64) bool

	// WriteLater begins to write p, and tells to when that has ended; p is the File's
	// until then. It does not wait. It reports whether it has begun; if not, for whatever
	// reason, nothing was done. A File may always answer so.
	WriteLater(p []byte, off int64, to Later) bool

	// WriteAtSync writes p and returns when it is durable (FUA). Its error
	// counts as a failed Sync, but for ErrNoSpace: then a part of p may be
	// written, and nothing else is in doubt.
	WriteAtSync(p []byte, off int64) (int, error)

	// WriteZeroes makes n bytes at off read zero. It is durable with the next
	// Sync and leaves the space allocated in the storage where that is cheap.
	WriteZeroes(off, n int64) error

	// Discard tells that n bytes at off are no longer needed. It is a hint:
	// the content is undefined until it is written or zeroed again.
	Discard(off, n int64) error

	// WriteBack is a hint that n bytes at off will not change soon: the File may write
	// what of them is in memory only, so that the next Sync finds less to do, and its
	// caller may wait meanwhile. It makes nothing durable, and reports nothing.
	WriteBack(off, n int64)

	// Grow makes the file at least need bytes long, waits as long as ctx
	// allows until that is possible, and takes what it can towards want
	// (want >= need). It returns the new size, durably. A file that is large
	// enough returns at once, but must still be asked: the call is also how a
	// thin volume learns how far its writer has come.
	//
	// A deadline that has passed already asks for what can be had without
	// waiting. When there is no space the error is, or wraps, ErrNoSpace if ctx's
	// deadline passed or waiting is pointless, context.Canceled if ctx was
	// cancelled.
	Grow(ctx context.Context, need, want int64) (size int64, err error)

	// Shrink reduces the file from exactly from bytes to to bytes: compare
	// and set, so that a late duplicate does nothing but fail with ErrStale.
	// Only the holder of the file may call it, after everything beyond to has
	// become unreferenced durably. The new size is durable when it returns. A
	// file that keeps its space, such as a volume whose size belongs to a
	// pool, refuses with ErrUnsupported.
	Shrink(ctx context.Context, from, to int64) error

	// Size is the number of bytes that may be used now.
	Size() int64

	// Sync makes every WriteAt, WriteZeroes and Grow that has returned
	// durable. An error is final: the File keeps returning it.
	Sync() error

	// Info tells what the storage is able to do. It does not change.
	Info() FileInfo

	io.Closer
}

// FileInfo describes the storage below a File.
type FileInfo struct {
	// ID names the storage among all that this host has, whoever opens it and when,
	// for as long as the host is up; empty: there is no such name.
	ID string
	// Align is the alignment in bytes that offset, length and memory of every
	// read and write must have; 1 means none.
	Align int
	// TearUnit is the largest aligned unit in bytes that a power cut leaves
	// old or new but never mixed.
	TearUnit int
	// FreshZero says that space which Grow adds reads zero, durably when Grow
	// returns.
	FreshZero bool
	// ZeroCheap says that WriteZeroes costs about one system call whatever
	// its length.
	ZeroCheap bool
	// Direct says that I/O bypasses the host's page cache.
	Direct bool
	// ReadOnly says that every mutation fails with ErrReadOnly.
	ReadOnly bool
}
