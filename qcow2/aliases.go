package qcow2

import (
	"tidemark/internal/block"
	"tidemark/qcow2/format"
)

// The types of the seams, named here so that users of the library need not
// import an internal package.
type (
	// File is what an image is stored in; see block.File.
	File = block.File
	// FileInfo describes a File.
	FileInfo = block.FileInfo
	// Device is what an Image is; see block.Device.
	Device = block.Device
	// DeviceInfo describes a Device.
	DeviceInfo = block.DeviceInfo
	// Flags modify a request.
	Flags = block.Flags
	// Later is told what became of a write that was begun.
	Later = block.Later
	// Extent is a run of a disk's bytes in one state.
	Extent = block.Extent
	// UnsupportedError names a feature that is missing here.
	UnsupportedError = format.UnsupportedError
	// CorruptError says where an image contradicts itself.
	CorruptError = format.CorruptError
)

// Request flags and errors of the seams.
const (
	FUA      = block.FUA
	NoWait   = block.NoWait
	MayUnmap = block.MayUnmap
	Fast     = block.Fast
)

// The errors that an Image returns, wrapped.
var (
	ErrNotQCOW2   = format.ErrNotQCOW2
	ErrNoSpace    = block.ErrNoSpace
	ErrReadOnly   = block.ErrReadOnly
	ErrRange      = block.ErrRange
	ErrClosed     = block.ErrClosed
	ErrWouldBlock = block.ErrWouldBlock
)
