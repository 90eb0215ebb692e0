package main

import (
	"errors"
	"fmt"
	"io"
)

// Exit codes. They are QEMU's where QEMU has the same command.
const (
	exitOK           = 0
	exitFailure      = 1
	exitCorruptions  = 2  // check: the image has corruptions
	exitLeaks        = 3  // check: the image has leaked clusters, but no corruptions
	exitNotSupported = 63 // check: not supported for this image
)

// An exitError ends the process with a code of its own. A nil err has been told
// to the user already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// exitCode tells err to the user and turns it into the exit code.
func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return exitOK
	}
	code := exitFailure
	var e *exitError
	if errors.As(err, &e) {
		code, err = e.code, e.err
	}
	if err != nil {
		fmt.Fprintln(stderr, "tidemark:", err)
	}
	return code
}
