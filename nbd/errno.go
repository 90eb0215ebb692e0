package nbd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"unicode"

	"tidemark/internal/block"
)

// Errno is an error number of the protocol. The numbers are Linux's, whatever
// the host.
type Errno uint32

// The error numbers that the specification allows.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

func (e Errno) String() string {
	switch e {
	case EPERM:
		return "EPERM"
	case EIO:
		return "EIO"
	case ENOMEM:
		return "ENOMEM"
	case EINVAL:
		return "EINVAL"
	case ENOSPC:
		return "ENOSPC"
	case EOVERFLOW:
		return "EOVERFLOW"
	case ENOTSUP:
		return "ENOTSUP"
	case ESHUTDOWN:
		return "ESHUTDOWN"
	}
	return fmt.Sprintf("error %d", uint32(e))
}

// Error is the error of one request as it is told over the wire.
type Error struct {
	Errno Errno
	Text  string // for a human being; may be empty
}

func (e *Error) Error() string {
	if e.Text == "" {
		return "nbd: " + e.Errno.String()
	}
	return "nbd: " + e.Errno.String() + ": " + e.Text
}

// Unwrap gives the error of package block, or of this package, that the
// number stands for, or nil.
func (e *Error) Unwrap() error {
	switch e.Errno {
	case EPERM:
		return block.ErrReadOnly
	case ENOSPC:
		return block.ErrNoSpace
	case ENOTSUP:
		return block.ErrNotFast
	case ESHUTDOWN:
		return ErrShutdown
	}
	return nil
}

// ErrShutdown: the server is stopping, or the export is being removed.
var ErrShutdown = errors.New("the server is shutting down")

// errGone is why the requests of a dead connection are cancelled.
var errGone = errors.New("the connection is gone")

func errorf(e Errno, format string, args ...any) *Error {
	return &Error{e, fmt.Sprintf(format, args...)}
}

// translate is the one place where an error of a Device becomes one of the
// protocol.
func translate(h requestHeader, err error) *Error {
	return &Error{errnoOf(h, err), cleanText(err.Error())}
}

func errnoOf(h requestHeader, err error) Errno {
	switch {
	case errors.Is(err, ErrShutdown), errors.Is(err, block.ErrClosed), errors.Is(err, errGone), errors.Is(err, context.Canceled):
		return ESHUTDOWN
	case errors.Is(err, block.ErrNotFast), errors.Is(err, block.ErrUnsupported):
		if h.cmd == cmdWriteZeroes && h.flags.has(cmdFlagFastZero) {
			return ENOTSUP
		}
		return EINVAL
	case errors.Is(err, block.ErrRange):
		return pastEnd(h.cmd)
	case errors.Is(err, block.ErrReadOnly):
		return EPERM
	case isNoSpace(err):
		return ENOSPC
	}
	return EIO
}

// isNoSpace also knows the host's errors that the specification counts as such,
// and the deadline of a request, which is the patience and nothing else.
func isNoSpace(err error) bool {
	for _, e := range []error{block.ErrNoSpace, context.DeadlineExceeded, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pastEnd is the error of a request that passes the end of the export.
func pastEnd(c command) Errno {
	if c == cmdWrite || c == cmdWriteZeroes {
		return ENOSPC
	}
	return EINVAL
}

// cleanText makes s fit to be shown: one line of valid UTF-8 that is not
// longer than errorTextMax.
func cleanText(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > errorTextMax {
		s = strings.ToValidUTF8(s[:errorTextMax], "")
	}
	return s
}
