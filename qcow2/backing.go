package qcow2

import (
	"fmt"

	"tidemark/internal/block"
	"tidemark/qcow2/format"
)

// backingSize is the size of the backing file in bytes, 0 without one.
func (im *Image) backingSize() int64 { return im.backingEnd.Load() }

// BackingGrew takes note of how large the backing file is now: not smaller than
// before, and what it has gained reads zero. Until it is called the image reads zero
// there by itself, and what is discarded leaves nothing behind that would hide what
// is written there later.
func (im *Image) BackingGrew() {
	if b := im.opts.Backing; b != nil {
		im.backingEnd.Store(max(b.Info().Size, im.backingSize()))
	}
}

// SetBacking lets the image in f, which nobody has open, be based on another backing
// file, or with name "" on none. The new one must show the same where the image has
// nothing itself; neither is looked at. Nothing but the first cluster is changed:
//
//  1. the new name beside the old one, Sync
//  2. its place and format with one write of the first sector, Sync
//  3. zeroes in the old name's place, Sync
//
// A crash leaves the image with the old or the new one, of which the tests cut every
// moment; the crash lab knows images that are open. The call may be repeated.
func SetBacking(f block.File, name, backingFormat string) error {
	err := setBacking(f, name, backingFormat)
	if err != nil {
		return fmt.Errorf("set backing file: %w", err)
	}
	return nil
}

func setBacking(f block.File, name, backingFormat string) error {
	h, err := ReadHeader(f)
	if err != nil {
		return err
	}
	if err := refuseIncompatible(h); err != nil {
		return err
	}
	cluster := make([]byte, h.ClusterSize()) // the tables lie behind it
	if _, err := readFull(f, cluster, 0); err != nil {
		return err
	}
	c, err := h.ChangeBacking(cluster, name, backingFormat)
	if err != nil {
		return err
	}
	for _, step := range [][]byte{c.B1, c.B2[:format.SectorSize], c.B3} {
		if _, err := f.WriteAt(step, 0); err != nil {
			return fmt.Errorf("write header: %w", err)
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return nil
}
