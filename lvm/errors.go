package lvm

import (
	"errors"
	"io/fs"

	"tidemark/internal/block"
)

var (
	// ErrNotFound: there is no such group or volume on the devices.
	ErrNotFound = fs.ErrNotExist
	// ErrNoSpace: the group has too few free extents.
	ErrNoSpace = block.ErrNoSpace
	// ErrStale: a volume is not as the caller expected it to be, or the group
	// was changed by somebody else while it was being changed.
	ErrStale = block.ErrStale
	// ErrMetadataFull: the group's metadata area has no room for another
	// segment. Removing volumes helps, and so does a group with a larger area.
	ErrMetadataFull = errors.New("metadata area is almost full")
	// ErrUnusable: a volume that cannot be used from user space.
	ErrUnusable = errors.New("not usable through its segments")
	// ErrFrozen: the volume was changed under its writer. Nothing is read or
	// written any more.
	ErrFrozen = errors.New("volume is frozen")
)
