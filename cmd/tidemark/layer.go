package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/internal/rawimage"
	"tidemark/internal/swap"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
	"tidemark/spm"
)

// A layer is one image of a chain, open for reading.
type layer struct {
	path      string // as QEMU would show it
	format    string
	file      block.File
	host      *hostfile.File    // file; nil for a logical volume
	volume    *spm.VolumeHandle // whose file it is, if the pool was asked; else nil
	size      int64             // of a raw volume; 0 is the file's
	writable  bool              // the device is for writing
	exchanged bool              // it may be, so it has a seat
	// again opens the file of a volume once more, for reading or for writing; nil
	// for one that is no volume.
	again  func(ctx context.Context, readOnly bool) (block.File, *hostfile.File, error)
	header *format.Header // nil if it is raw
	device block.Device   // set by open
	seat   *swap.Device   // shows device to the image above, if it may be exchanged; else nil
	// settling is told how far a device that is for writing has settled; nil: nobody is.
	settling func(done, total int64)
}

// shown is what the image above reads from.
func (l *layer) shown() block.Device {
	if l.seat != nil {
		return l.seat
	}
	return l.device
}

// A chain is what an image reads where it has nothing itself: its backing file
// first, then that one's.
type chain []*layer

// open makes devices of the files, from the bottom up, and returns the uppermost,
// nil if there is none.
func (c chain) open(ctx context.Context, log *slog.Logger) (block.Device, error) {
	return c.openOver(ctx, nil, log)
}

// openOver is open, where the lowest file is based on something that is open already.
func (c chain) openOver(ctx context.Context, below block.Device, log *slog.Logger) (block.Device, error) {
	for i := len(c) - 1; i >= 0; i-- {
		l := c[i]
		if err := l.open(ctx, below, backingCacheBytes/int64(len(c)), log); err != nil {
			return nil, fmt.Errorf("%s, a backing file: %w", l.path, adviseImage(err))
		}
		below = l.shown()
	}
	return below, nil
}

// open makes a device of the file, over what is below it.
func (l *layer) open(ctx context.Context, below block.Device, cache int64, log *slog.Logger) (err error) {
	defer func() {
		if err == nil && l.exchanged && l.seat == nil {
			l.seat = swap.New(l.device)
		}
	}()
	if l.header == nil {
		l.device, err = openRaw(l.file, l.host, rawimage.Options{ReadOnly: !l.writable, Size: l.size})
		return err
	}
	o := qcow2.Options{ReadOnly: true, Backing: below, Logger: log, CacheBytes: cache}
	if l.writable {
		o.ReadOnly, o.RedoDir, o.Settling = false, l.redoDir(), l.settling
		image, err := openDistrusted(ctx, l.file, l.host, l.path, o)
		if err == nil {
			l.device = image
		}
		return err
	}
	if err = l.replay(ctx, below, log); err != nil {
		return err
	}
	l.device, err = openQCOW2(ctx, l.file, o)
	return err
}

// device is what the image above the chain reads from, nil if there is none.
func (c chain) device() block.Device {
	if len(c) == 0 {
		return nil
	}
	return c[0].shown()
}

// backingCacheBytes is for the tables of all images of a chain together.
const backingCacheBytes = 32 << 20

// openRaw and openQCOW2 return no Device with an error: a nil pointer in an
// interface is not nil.
func openRaw(f block.File, host *hostfile.File, o rawimage.Options) (block.Device, error) {
	if host != nil {
		// What a regular file discards, it keeps or makes a hole of.
		o.DiscardsSafely, o.Data = true, host.Data
	}
	im, err := rawimage.Open(f, o)
	if err != nil {
		return nil, err
	}
	return im, nil
}

func openQCOW2(ctx context.Context, f block.File, o qcow2.Options) (block.Device, error) {
	im, err := qcow2.Open(ctx, f, o)
	if err != nil {
		return nil, err
	}
	return im, nil
}

// awaitSettled waits until an image that was opened for writing has given back what a
// writer that died had reserved: closing it ends that, and leaves the rest to the next
// writer. Of other devices there is nothing to wait for.
func awaitSettled(ctx context.Context, d block.Device) error {
	image, ok := d.(*qcow2.Image)
	if !ok {
		return nil
	}
	select {
	case <-image.Settled():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// redoDir is where the redo ring of the layer's image is kept.
func (l *layer) redoDir() string { return redoDirOf(redoDir(), l.file.Info().ID) }

// Close closes everything, the uppermost first.
func (c chain) Close() error {
	var errs []error
	for _, l := range c {
		if l.device != nil {
			errs = append(errs, l.device.Close())
			if l.writable {
				_ = os.Remove(l.redoDir()) // it is empty, unless somebody has to find something there
			}
		}
		if l.file != nil {
			errs = append(errs, l.file.Close())
		}
	}
	return errors.Join(errs...)
}
