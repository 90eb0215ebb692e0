package block

import "errors"

// The errors that cross a seam. They are wrapped with what was being done and
// where; front ends translate them to their protocol's codes at their edge.
var (
	// ErrNoSpace: there is no space, and there will be none in time.
	ErrNoSpace = errors.New("no space")
	// ErrRange: the range is outside the file or the disk.
	ErrRange = errors.New("outside the disk")
	// ErrReadOnly: a mutation of something that is open read-only.
	ErrReadOnly = errors.New("read-only")
	// ErrWouldBlock: NoWait was given and the request has to wait. Nothing
	// was done.
	ErrWouldBlock = errors.New("would block")
	// ErrNotFast: Fast was given and zeroing is not fast. Nothing was done.
	ErrNotFast = errors.New("zeroing is not fast here")
	// ErrUnsupported: not something this file or disk is able to do.
	ErrUnsupported = errors.New("not supported")
	// ErrStale: a compare-and-set found another state.
	ErrStale = errors.New("stale request")
	// ErrClosed: used after Close.
	ErrClosed = errors.New("closed")
	// ErrInUse: somebody else has it open in a way that excludes us.
	ErrInUse = errors.New("in use")
)

// CheckRange returns ErrRange unless [off, off+n) lies in [0, size). It does
// not overflow, whatever the numbers.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return ErrRange
	}
	return nil
}
