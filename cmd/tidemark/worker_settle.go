package main

import (
	"context"
	"fmt"

	"tidemark/qcow2"
)

// settle makes the top of the chain an image that nobody has to write to any more: what a
// process that died had completed in it becomes part of the file, and what that had
// reserved is given back, however long that takes. An image without such is only read, so
// that it may be open elsewhere for reading.
func (w *worker) settle(ctx context.Context) error {
	if len(w.job.Chain) == 0 {
		return fmt.Errorf("settle: expected a volume")
	}
	top := len(w.job.Chain) - 1
	died, err := w.writerDied(ctx, w.job.Chain[top])
	if err != nil || !died {
		return err
	}
	err = w.with(ctx, top, func(c chain) error { return awaitSettled(ctx, c[0].device) })
	if err == nil {
		died, err = w.writerDied(ctx, w.job.Chain[top])
	}
	if err == nil && died {
		err = fmt.Errorf("%s: what a process that died had reserved cannot be given back: expected none of it after the image was opened for writing; the log says why, and qemu-img check what is wrong",
			w.job.Chain[top].Path)
	}
	return err
}

// writerDied reports whether a writer of a volume has died and nobody has settled that.
func (w *worker) writerDied(ctx context.Context, p workerPlace) (bool, error) {
	l := w.layer(p)
	if err := l.openFile(ctx, true); err != nil {
		return false, fmt.Errorf("volume %s: %w", p.VolumeUUID, err)
	}
	return l.header != nil && qcow2.WriterDied(l.header), l.file.Close()
}
