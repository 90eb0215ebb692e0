package qcow2

import (
	"errors"
	"fmt"

	"tidemark/internal/block"
	"tidemark/internal/mutant"
)

// poison latches the first error after which nothing may be reported as
// written, and returns what every later mutation returns.
func (im *Image) poison(err error) error {
	if errors.Is(err, block.ErrNoSpace) {
		// Space does not mend it: nobody is to wait for that.
		err = errors.New(err.Error())
	}
	err = fmt.Errorf("image stopped accepting writes: %w", err)
	if mutant.On("poison-not-latched") {
		return err
	}
	if im.poisoned.CompareAndSwap(nil, &err) {
		im.log.Error("image stopped accepting writes; what was not flushed may be lost: check the storage, then open the image again", "cause", err)
		im.distrust()
		im.stop()
	}
	return *im.poisoned.Load()
}

// fatalUnlessNoSpace poisons the image unless err is nil or says that there is no
// space, after which everything can be tried again.
func (im *Image) fatalUnlessNoSpace(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, block.ErrNoSpace):
		return &hostFullError{err}
	}
	return im.poison(err)
}

// A hostFullError says that the storage had no space for bytes inside the file.
// That is for its administrator to mend, and a request waits for it, as it does
// for a larger file (rule 14).
type hostFullError struct{ err error }

func (e *hostFullError) Error() string { return e.err.Error() }
func (e *hostFullError) Unwrap() error { return e.err }

// writeDurably is WriteAtSync of the file: an error, but for a lack of space, is as
// final as that of a Sync.
func (im *Image) writeDurably(p []byte, off int64) (int, error) {
	t := im.durables.enter(off)
	defer im.durables.leave(t)
	n, err := im.file.WriteAtSync(p, off)
	if err != nil && !errors.Is(err, block.ErrNoSpace) && !mutant.On("failed-fua-forgotten") {
		err = im.poison(fmt.Errorf("durable write at %d: %w", off, err))
	}
	return n, err
}

// syncUnless syncs the file, unless a mutant skips that; an error is final. No
// Sync is believed beside one that has failed, or behind it, nor beside a durable
// write that has.
func (im *Image) syncUnless(skipped bool) error {
	if skipped {
		return nil
	}
	im.syncing.Lock()
	defer im.syncing.Unlock()
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	err := im.file.Sync()
	if err != nil && mutant.On("failed-sync-tried-again") {
		err = im.file.Sync()
	}
	if err != nil && !mutant.On("failed-sync-ignored") {
		return im.poison(fmt.Errorf("sync: %w", err))
	}
	im.durables.wait()
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	return nil
}
