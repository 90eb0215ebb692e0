package format

import (
	"errors"
	"fmt"
)

// ErrNotQCOW2 says that the bytes are no QCOW2 image at all.
var ErrNotQCOW2 = errors.New("not a QCOW2 image")

// An UnsupportedError says that an image needs a feature which is missing here.
// The image is whole; nothing was changed.
type UnsupportedError struct {
	Feature string // as the specification or the image's feature name table calls it
	Advice  string // what to do, may be empty
}

func (e *UnsupportedError) Error() string {
	s := "image uses " + e.Feature + ", which is not supported yet"
	if e.Advice != "" {
		s += ": " + e.Advice
	}
	return s
}

// A CorruptError says that an image contradicts the specification or itself.
type CorruptError struct {
	What string // the field or table
	Off  int64  // its byte offset in the file, -1 if it has none
	Want string // what was expected
	Got  string // what was found
}

func (e *CorruptError) Error() string {
	where := ""
	if e.Off >= 0 {
		where = fmt.Sprintf(" at offset %d", e.Off)
	}
	return fmt.Sprintf("corrupt image: %s%s: expected %s, found %s", e.What, where, e.Want, e.Got)
}

func corrupt(what string, off int64, got any, want string, args ...any) error {
	return &CorruptError{What: what, Off: off, Want: fmt.Sprintf(want, args...), Got: fmt.Sprint(got)}
}
