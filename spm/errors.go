package spm

import (
	"errors"
	"fmt"
	"io/fs"

	"tidemark/internal/block"
)

// A Code says on the wire what kind of error happened. Codes never change.
type Code int

// The codes, with what to do.
const (
	CodeInternal     Code = 1000 // an I/O error of the manager: see its log; may be repeated
	CodeInvalid      Code = 1001 // correct the request
	CodeNewerVersion Code = 1002 // use a manager as new as the client
	CodeNotFound     Code = 1003 // no such volume
	CodeExists       Code = 1004 // choose another name
	CodeInUse        Code = 1005 // stop who holds the volume
	CodePoolFull     Code = 1006 // repeat: there may be space later
	CodeBound        Code = 1007 // the volume may not be larger; final
	CodeStale        Code = 1008 // the request is about an older generation
	CodeWrongPool    Code = 1009 // the request is for another pool
	CodeDamaged      Code = 1011 // mend the volume's metadata, and start the manager again
	CodeStopping     Code = 1010 // repeat: the manager is going away and may come back
)

// An Error is what the manager refuses a request with, the same in process and
// over the wire.
type Error struct {
	Code    Code
	Message string
	err     error // the cause, in process only
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the errors that callers of the seams know.
func (e *Error) Unwrap() []error {
	errs := make([]error, 0, 2)
	if s := sentinels[e.Code]; s != nil {
		errs = append(errs, s)
	}
	if e.err != nil {
		errs = append(errs, e.err)
	}
	return errs
}

var sentinels = map[Code]error{
	CodeNotFound: fs.ErrNotExist,
	CodeExists:   fs.ErrExist,
	CodeInUse:    block.ErrInUse,
	CodePoolFull: block.ErrNoSpace,
	CodeBound:    block.ErrNoSpace,
	CodeStale:    block.ErrStale,
	CodeStopping: block.ErrClosed,
}

// Final reports whether repeating the request is pointless.
func (e *Error) Final() bool {
	switch e.Code {
	case CodeInternal, CodePoolFull, CodeStopping, CodeInUse:
		return false
	}
	return true
}

func errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// internal wraps an error that is not the request's fault.
func internal(err error, format string, args ...any) *Error {
	return &Error{Code: CodeInternal, Message: fmt.Sprintf(format, args...) + ": " + err.Error(), err: err}
}

// CodeOf returns the code of an error of this package, and CodeInternal for any
// other.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}
