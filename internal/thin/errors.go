package thin

import "errors"

// Final marks err as one that asking again does not cure: the volume is at its
// bound, or gone. It ends the wait of every Grow that depends on it.
func Final(err error) error {
	if err == nil {
		return nil
	}
	return finalError{err}
}

// IsFinal reports whether err, or an error it wraps, says of itself that it is
// final by a method Final() bool. An Extender needs not import this package for
// that. An error that says nothing is retried, also block.ErrNoSpace: a full
// pool may have space in a moment.
func IsFinal(err error) bool {
	var f interface{ Final() bool }
	return errors.As(err, &f) && f.Final()
}

type finalError struct{ error }

func (finalError) Final() bool     { return true }
func (e finalError) Unwrap() error { return e.error }
