package nbd

import "tidemark/internal/block"

// The types of the seam, for users of the library outside this module. See
// package block for what they promise.
type (
	// Device is a virtual disk that a Server serves and that a Client is.
	Device = block.Device
	// DeviceInfo describes a Device.
	DeviceInfo = block.DeviceInfo
	// Extent is a run of a Device's bytes that have the same state.
	Extent = block.Extent
	// ExtentState says what is known of an Extent.
	ExtentState = block.ExtentState
	// Flags modify a request to a Device.
	Flags = block.Flags
	// Later is told what became of a write that was begun.
	Later = block.Later
)

// The flags of a request.
const (
	FUA      = block.FUA
	NoWait   = block.NoWait
	MayUnmap = block.MayUnmap
	Fast     = block.Fast
)

// The states of an extent.
const (
	Allocated  = block.Allocated
	Data       = block.Data
	Zero       = block.Zero
	Compressed = block.Compressed
)

// The errors that a Device returns, and that a Server translates.
var (
	ErrNoSpace     = block.ErrNoSpace
	ErrRange       = block.ErrRange
	ErrReadOnly    = block.ErrReadOnly
	ErrWouldBlock  = block.ErrWouldBlock
	ErrNotFast     = block.ErrNotFast
	ErrUnsupported = block.ErrUnsupported
	ErrClosed      = block.ErrClosed
	ErrInUse       = block.ErrInUse
)
