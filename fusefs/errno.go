//go:build linux

package fusefs

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"tidemark/internal/block"
)

// errClosing: the mount is being closed, so a request does not wait for space.
var errClosing = errors.New("the mount is being closed")

// The errnos that have no name in package fuse.
const (
	statusTooBig      = fuse.Status(syscall.EFBIG)
	statusNoSpace     = fuse.Status(syscall.ENOSPC)
	statusNoAddress   = fuse.Status(syscall.ENXIO)
	statusUnsupported = fuse.Status(syscall.EOPNOTSUPP)
	statusShutdown    = fuse.Status(syscall.ESHUTDOWN)
)

// translate is the one place where an error of a Device becomes an errno.
//
//	no space, here or on the host                ENOSPC
//	the mount is being closed                    ESHUTDOWN
//	the caller was killed while it waited        EINTR
//	read-only                                    EROFS
//	outside the disk                             EFBIG, as at the end of a file system's largest file
//	not able to                                  EOPNOTSUPP (ENOSYS would switch the operation off for good)
//	in use by somebody else                      EBUSY
//	anything else                                EIO
func translate(err error) fuse.Status {
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, errClosing):
		return statusShutdown
	case errors.Is(err, context.Canceled):
		return fuse.EINTR
	case errors.Is(err, block.ErrReadOnly):
		return fuse.EROFS
	case errors.Is(err, block.ErrRange):
		return statusTooBig
	case errors.Is(err, block.ErrUnsupported), errors.Is(err, block.ErrNotFast):
		return statusUnsupported
	case errors.Is(err, block.ErrInUse):
		return fuse.EBUSY
	case isNoSpace(err):
		return statusNoSpace
	}
	return fuse.EIO
}

// isNoSpace also knows the host's errors that mean it.
func isNoSpace(err error) bool {
	for _, e := range []error{block.ErrNoSpace, syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
