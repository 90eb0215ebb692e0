package spm

import (
	"fmt"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
)

// A Holder takes a volume so that nobody else can open it. The manager does so
// before it removes one: who holds a volume is decided by locks that outlive the
// manager, never by what it remembers.
type Holder interface {
	// Hold takes the volume at path until release is called, or fails with an
	// error that wraps block.ErrInUse and names who has it open.
	Hold(path string) (release func() error, err error)
}

// imageLocks is the Holder that speaks QEMU's locks, as every data server does.
type imageLocks struct{}

func (imageLocks) Hold(path string) (func() error, error) {
	// Readers that put up with a writer do not put up with a removal, but a
	// writer's lock would not see them.
	who, err := hostfile.Holder(path)
	if err != nil {
		return nil, err
	}
	if who != "" {
		return nil, fmt.Errorf("%s is open in %s: %w", path, who, block.ErrInUse)
	}
	f, err := hostfile.Open(path, hostfile.Options{Fixed: true})
	if err != nil {
		return nil, err
	}
	return f.Close, nil
}
