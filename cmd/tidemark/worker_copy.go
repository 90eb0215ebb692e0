package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"tidemark/internal/block"
	"tidemark/internal/rawimage"
	"tidemark/qcow2"
	"tidemark/spm"
)

// How a worker copies: so much at a time, by so many at once; what it finds to be
// zero in such a grain is not written; and zeroing is done in steps that end when
// they are asked to.
const (
	copyPiece   = 1 << 20
	copyWorkers = 4
	copyGrain   = 64 << 10
	zeroPiece   = 64 << 20
)

// measure says what a copy of the chain would take.
func (w *worker) measure(ctx context.Context) (m spm.Measure, err error) {
	err = w.with(ctx, -1, func(c chain) error {
		top := c[0].device
		size := top.Info().Size
		if w.job.Format == spm.FormatRaw {
			m = spm.Measure{Required: size, FullyAllocated: size}
			return nil
		}
		g, err := qcow2.CreateOptions{Size: size}.Geometry()
		if err != nil {
			return err
		}
		cs := g.ClusterSize()
		data, last := int64(0), int64(-1) // clusters with data, and the last of them
		err = walkExtents(ctx, top, size, func(e block.Extent) error {
			if !e.State.Has(block.Data) || e.State.Has(block.Zero) {
				return nil
			}
			from, to := max(e.Off/cs, last+1), (e.End()-1)/cs
			data, last = data+max(to-from+1, 0), max(last, to)
			return nil
		})
		full := qcow2.Bound(g, size)
		m = spm.Measure{Required: full - (g.Clusters(size)-data)*cs, FullyAllocated: full}
		return err
	})
	return m, err
}

// walkExtents calls see for every extent of a device, in order.
func walkExtents(ctx context.Context, d block.Device, size int64, see func(block.Extent) error) error {
	extents := make([]block.Extent, 0, 256)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		var err error
		if extents, err = d.AppendExtents(ctx, extents[:0], off, size-off); err != nil {
			return err
		}
		for _, e := range extents {
			if err := see(e); err != nil {
				return err
			}
			off = e.End()
		}
	}
	return nil
}

// copy fills the volume To. It is made anew, so what a copy that died has left does
// not matter.
func (w *worker) copy(ctx context.Context) error {
	to, backing := w.job.To, w.job.Backing
	switch {
	case to == nil:
		return errors.New("copy: expected a volume to copy to")
	case backing != nil && (to.Format == spm.FormatRaw || len(w.job.Chain) < 2):
		return fmt.Errorf("copy what one volume has above others: expected a qcow2 volume, and a chain of two and more: %w", block.ErrUnsupported)
	}
	return w.with(ctx, -1, func(c chain) error {
		job := copying{from: c[0].device, size: c[0].device.Info().Size, progress: w.progress}
		var below block.Device
		if backing != nil {
			below = c[1].device
			job.what = func(e block.Extent) copyAction { return ownOnly(e, 1) }
		} else {
			job.what = everything
			job.fresh = to.Format == spm.FormatQCOW2
		}
		l, err := w.create(ctx, *to, job.size, backing, below)
		if err != nil {
			return err
		}
		job.to = l.device
		return errors.Join(job.run(ctx), chain{l}.Close())
	})
}

// create makes an image in a volume, and opens it.
func (w *worker) create(ctx context.Context, p workerPlace, size int64, backing *spm.BackingRef, below block.Device) (*layer, error) {
	l := w.layer(p)
	l.writable = true
	var err error
	if l.file, l.host, err = l.again(ctx, false); err != nil {
		return nil, err
	}
	if dir := l.redoDir(); dir != "" { // of the image that was there
		err = os.RemoveAll(dir)
	}
	switch {
	case err != nil:
	case p.Format == spm.FormatRaw:
		l.device, err = openRaw(l.file, l.host, rawimage.Options{Size: size})
	default:
		if err = (images{}).Create(ctx, l.file, spm.CreateImage{Size: size, Format: p.Format, Backing: backing}); err != nil {
			break
		}
		if l.header, err = qcow2.ReadHeader(l.file); err == nil {
			err = l.open(ctx, below, 0, w.log)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("volume %s: %w", p.VolumeUUID, err), l.file.Close())
	}
	return l, nil
}

// commit writes what is above the base into it. What is above stays as it is, and
// covers whatever is half written, so the chain shows the same at every moment.
func (w *worker) commit(ctx context.Context) error {
	if w.job.Base < 0 || w.job.Base >= len(w.job.Chain)-1 {
		return fmt.Errorf("commit into volume %d of %d: expected one that others are based on", w.job.Base, len(w.job.Chain))
	}
	return w.with(ctx, w.job.Base, func(c chain) error {
		depth := len(c) - 1 - w.job.Base
		top, base := c[0].device, c[depth].device
		size := top.Info().Size
		if err := growDevice(ctx, base, size); err != nil {
			return fmt.Errorf("volume %s: %w", w.job.Chain[w.job.Base].VolumeUUID, err)
		}
		job := copying{from: top, to: base, size: size, progress: w.progress, what: func(e block.Extent) copyAction { return aboveDepth(e, depth) }}
		if err := job.run(ctx); err != nil {
			return err
		}
		return awaitSettled(ctx, base) // it may be written to never again
	})
}

// growDevice makes an image at least size bytes large.
func growDevice(ctx context.Context, d block.Device, size int64) error {
	image, ok := d.(interface {
		Grow(ctx context.Context, size int64) error
	})
	switch {
	case d.Info().Size >= size:
		return nil
	case ok:
		return image.Grow(ctx, size)
	}
	return fmt.Errorf("make the disk %d bytes large: %w", size, block.ErrUnsupported)
}

// A copyAction is what becomes of an extent.
type copyAction int

const (
	actSkip copyAction = iota
	actCopy
	actZero
)

// everything is what a disk of its own takes.
func everything(e block.Extent) copyAction {
	if e.State.Has(block.Data) && !e.State.Has(block.Zero) {
		return actCopy
	}
	return actZero
}

// ownOnly is what the images above depth have: the rest shows what is below.
func ownOnly(e block.Extent, depth int) copyAction {
	if e.Depth >= depth || !e.State.Has(block.Allocated) {
		return actSkip
	}
	return everything(e)
}

// aboveDepth is what an image at depth takes to show what the chain does. Where an image
// above it has nothing and is based on nothing, because what is below that has ended,
// it reads zero.
func aboveDepth(e block.Extent, depth int) copyAction {
	if e.Depth >= depth {
		return actSkip
	}
	return everything(e)
}

// A copying is the copying of what one disk shows to another.
type copying struct {
	from, to block.Device
	size     int64 // of what is copied, bytes
	what     func(block.Extent) copyAction
	fresh    bool // to reads zero where nothing was written
	progress func(done, total int64)
	done     atomic.Int64
}

type copyTask struct {
	off, n int64
	act    copyAction
}

// run copies, and makes it durable.
func (c *copying) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tasks := make(chan copyTask)
	var workers sync.WaitGroup
	for range copyWorkers {
		workers.Go(func() {
			buf := make([]byte, copyPiece)
			for t := range tasks {
				if err := c.do(ctx, t, buf); err != nil {
					cancel(fmt.Errorf("copy %d bytes at %d: %w", t.n, t.off, err))
				}
				c.tell(t.n)
			}
		})
	}
	err := walkExtents(ctx, c.from, c.size, func(e block.Extent) error { return c.share(ctx, e, tasks) })
	close(tasks)
	workers.Wait()
	if err = cmp.Or(context.Cause(ctx), err); err != nil {
		return err
	}
	return c.to.Flush(ctx)
}

// share gives an extent to the workers, in pieces.
func (c *copying) share(ctx context.Context, e block.Extent, tasks chan<- copyTask) error {
	act := c.what(e)
	if act == actSkip || act == actZero && c.fresh {
		c.tell(e.Len)
		return nil
	}
	piece := int64(copyPiece)
	if act == actZero {
		piece = zeroPiece
	}
	for off := e.Off; off < e.End(); {
		n := min(e.End(), off-off%piece+piece) - off
		select {
		case tasks <- copyTask{off, n, act}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		off += n
	}
	return nil
}

func (c *copying) tell(n int64) { c.progress(c.done.Add(n), c.size) }

func (c *copying) do(ctx context.Context, t copyTask, buf []byte) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if t.act == actZero {
		return c.zero(ctx, t.off, t.n)
	}
	buf = buf[:t.n]
	if err := c.from.ReadAt(ctx, buf, t.off, 0); err != nil {
		return err
	}
	for len(buf) > 0 {
		n, zero := zeroRun(buf)
		var err error
		if zero {
			err = c.zero(ctx, t.off, int64(n))
		} else {
			err = c.to.WriteAt(ctx, buf[:n], t.off, 0)
		}
		if err != nil {
			return err
		}
		buf, t.off = buf[n:], t.off+int64(n)
	}
	return nil
}

func (c *copying) zero(ctx context.Context, off, n int64) error {
	if c.fresh {
		return nil
	}
	return c.to.WriteZeroes(ctx, off, n, block.MayUnmap)
}

// zeroRun is how many bytes at the beginning of p are alike: grains that are all
// zero, or that are not.
func zeroRun(p []byte) (n int, zero bool) {
	for n < len(p) {
		grain := p[n:min(n+copyGrain, len(p))]
		z := isZero(grain)
		if n > 0 && z != zero {
			break
		}
		zero, n = z, n+len(grain)
	}
	return n, zero
}

var zeroes [4096]byte

func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeroes))
		if !bytes.Equal(p[:n], zeroes[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
