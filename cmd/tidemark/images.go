package main

import (
	"context"
	"fmt"

	"tidemark/internal/block"
	"tidemark/qcow2"
	"tidemark/spm"
)

// images makes the images of a pool's new volumes, with the default geometry.
// It is what the pool manager knows of QCOW2.
type images struct{}

var _ spm.Images = images{}

// Create makes an image in f that has nothing of its own. The size of f is the pool's: an image that
// does not fit is refused.
func (images) Create(ctx context.Context, f block.File, o spm.CreateImage) error {
	if o.Format != spm.FormatQCOW2 {
		return fmt.Errorf("make an image of format %q: %w: expected %s", o.Format, block.ErrUnsupported, spm.FormatQCOW2)
	}
	c := qcow2.CreateOptions{Size: o.Size}
	if b := o.Backing; b != nil {
		c.BackingFile, c.BackingFormat = b.Name, b.Format
	}
	return qcow2.Create(ctx, f, c)
}

// Backing is the name that the header of the image in f has for what it is based on.
func (images) Backing(f block.File) (string, error) {
	h, err := qcow2.ReadHeader(f)
	if err != nil {
		return "", err
	}
	return h.BackingFile, nil
}

// WriterDied is what the header of an image says of its last writer.
func (images) WriterDied(f block.File) (bool, error) {
	h, err := qcow2.ReadHeader(f)
	return err == nil && qcow2.WriterDied(h), err
}

// Bound is the size in bytes that such an image never needs to exceed. For a
// size that no image can have it is that size: Create says what is wrong.
func (images) Bound(o spm.CreateImage) int64 {
	g, err := qcow2.CreateOptions{Size: o.Size}.Geometry()
	if err != nil {
		return o.Size
	}
	return qcow2.Bound(g, o.Size)
}
