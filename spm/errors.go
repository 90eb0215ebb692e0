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
	CodeStopping     Code = 1010 // repeat: the manager is going away and may come back
	CodeDamaged      Code = 1011 // mend the volume's metadata, and start the manager again
)

// The codes of domains, pools, images and tasks. [CodeNotFound] is of a volume;
// [CodeExists], [CodeInUse] and [CodeDamaged] are of anything.
const (
	CodeUnknownDomain  Code = 1012 // no such domain is connected: connect its server
	CodeUnknownPool    Code = 1013 // no such pool
	CodeUnknownImage   Code = 1014 // no such image in the domain
	CodeUnknownTask    Code = 1015 // no such task, or it has been cleared
	CodeWrongState     Code = 1016 // bring what the message names into the state that it names
	CodeNotSPM         Code = 1017 // this host does not manage the pool: start the SPM
	CodeWrongMaster    Code = 1018 // name the pool's master as the message does
	CodeWrongVersion   Code = 1019 // the pool's master has another version than the request says
	CodeNotConnected   Code = 1020 // connect the pool
	CodeForeign        Code = 1021 // something else lies there; nothing was written
	CodeOutsideRoots   Code = 1022 // give the host a root above that place, or choose a place below one
	CodeTooManyTasks   Code = 1023 // clear tasks that have ended
	CodeUnfinished     Code = 1024 // wait for the task, or stop it
	CodeHasChildren    Code = 1025 // others are based on the volume: merge or delete them first
	CodeIllegal        Code = 1026 // the volume's data are not whole: repeat what was begun
	CodeNotInPool      Code = 1027 // the domain is of no pool, or of another
	CodeAttached       Code = 1028 // the domain is of a pool: detach it first
	CodeActive         Code = 1029 // deactivate, disconnect or stop first what the message names
	CodeIsMaster       Code = 1030 // the domain is the master: move that role first
	CodeOtherPool      Code = 1031 // the host is connected to another pool: disconnect that first
	CodeAborted        Code = 1032 // of a task: it was stopped, and rolled back
	CodeNotPrepared    Code = 1033 // the image is not served
	CodeUnsupported    Code = 1034 // the message says what there is instead
	CodeDomainTooSmall Code = 1035 // choose a larger place, or a smaller capacity
	CodeNotActive      Code = 1036 // activate the domain
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

	CodeUnknownDomain: fs.ErrNotExist,
	CodeUnknownPool:   fs.ErrNotExist,
	CodeUnknownImage:  fs.ErrNotExist,
	CodeUnknownTask:   fs.ErrNotExist,
	CodeActive:        block.ErrInUse,
}

// Final reports whether repeating the request is pointless.
func (e *Error) Final() bool {
	switch e.Code {
	case CodeInternal, CodePoolFull, CodeStopping, CodeInUse,
		CodeWrongState, CodeNotActive, CodeNotSPM, CodeNotConnected, CodeTooManyTasks, CodeUnfinished:
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
