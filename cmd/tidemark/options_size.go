package main

import (
	"errors"

	"tidemark/internal/size"
)

// A bytesFlag is an option whose value is a size.
type bytesFlag int64

func (b *bytesFlag) String() string {
	if *b == 0 {
		return ""
	}
	return size.Format(int64(*b))
}

// Type is what the help text calls the value.
func (b *bytesFlag) Type() string { return "SIZE" }

// Set accepts a size that is not 0.
func (b *bytesFlag) Set(s string) error {
	n, err := size.Parse(s)
	if err == nil && n == 0 {
		err = errors.New("expected more than 0")
	}
	*b = bytesFlag(n)
	return err
}

// A diskSizeFlag is an option whose value is the size of a disk, in whole
// sectors.
type diskSizeFlag bytesFlag

func (d *diskSizeFlag) String() string { return (*bytesFlag)(d).String() }

// Type is what the help text calls the value.
func (d *diskSizeFlag) Type() string { return "SIZE" }

// Set accepts what bytesFlag does, rounded up.
func (d *diskSizeFlag) Set(s string) error {
	var b bytesFlag
	if err := b.Set(s); err != nil {
		return err
	}
	if *d = diskSizeFlag(wholeSectors(int64(b))); *d < 0 {
		return size.ErrTooLarge
	}
	return nil
}

// A reserveFlag is a size or "none", as spm.Options has it: then it is negative.
type reserveFlag bytesFlag

const reserveNone = "none"

func (r *reserveFlag) String() string {
	if *r < 0 {
		return reserveNone
	}
	return (*bytesFlag)(r).String()
}

// Type is what help calls the value.
func (r *reserveFlag) Type() string { return "SIZE" }

// Set accepts what bytesFlag does, and none.
func (r *reserveFlag) Set(s string) error {
	if s == reserveNone {
		*r = -1
		return nil
	}
	return (*bytesFlag)(r).Set(s)
}
