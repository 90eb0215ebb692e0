package crashlab

import (
	"context"
	"errors"
	"fmt"

	"tidemark/internal/block"
)

// An Engine is what is judged. Every function is safe for concurrent use.
type Engine struct {
	// Open opens the image in f for reading and writing, as a server does. The
	// disk does not close f. What it keeps in the directory beside survives the
	// death of the process, and no power cut; "" means that there is none.
	Open func(ctx context.Context, f block.File, beside string) (Disk, error)
	// Amend, if not nil, gives the image in f, which is not open, reference counts of
	// another width, in bits.
	Amend func(ctx context.Context, f block.File, bits int) error
	// Check is the engine's own check of the image in f, which is not open. With
	// mend, leaks are mended.
	Check func(ctx context.Context, f block.File, mend bool) (Finding, error)
	// Audit, if not nil, looks at the image in f, which is not open, with other
	// eyes than the engine's: who owns which cluster, whether snapshots are what
	// they were. Its error may be a Fault.
	Audit func(ctx context.Context, f block.File) error
	// Limit, if not nil, is the size in bytes that the image in f may have after
	// the power was cut a few times.
	Limit func(f block.File, cuts int) (int64, error)
	// External, if not nil, is another program's check of an image that was
	// exported to a file of the host.
	External func(ctx context.Context, path string) (Finding, error)
}

// A Disk is an open image.
type Disk interface {
	block.Device
	// Resize makes the disk larger, durably.
	Resize(ctx context.Context, size int64) error
	// GiveBack makes the File as short as the image allows, and returns its size.
	GiveBack(ctx context.Context) (size int64, err error)
	// Settle waits until nothing that opening began is still going on.
	Settle(ctx context.Context) error
}

// A Finding is what a check found.
type Finding struct {
	Corruptions, Leaks int64
	Details            string // for people
}

// class is what two checks must agree on.
func (f Finding) class() string {
	switch {
	case f.Corruptions > 0:
		return "corrupt"
	case f.Leaks > 0:
		return "leaks"
	}
	return "clean"
}

// A Fault is a state that breaks a rule of the oracle.
type Fault struct {
	Oracle int // 1 to 6, see the package comment
	Text   string
}

func (f *Fault) Error() string { return fmt.Sprintf("oracle %d: %s", f.Oracle, f.Text) }

func faultf(oracle int, format string, args ...any) *Fault {
	return &Fault{oracle, fmt.Sprintf(format, args...)}
}

// asFault is err as a Fault, of the oracle that is given unless it is one
// already.
func asFault(err error, oracle int, what string) *Fault {
	var f *Fault
	if errors.As(err, &f) {
		return &Fault{f.Oracle, what + ": " + f.Text}
	}
	return faultf(oracle, "%s: %v", what, err)
}
