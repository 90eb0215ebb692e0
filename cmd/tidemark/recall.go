package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidemark/internal/block"
	"tidemark/spm"
)

// A pool that is tight recalls headroom: a volume whose writer has not needed more
// space for recallIdle gives back what it does not use. It is looked for whenever
// something has happened to the pool, and every recallLook while that is tight.
const (
	recallIdle  = 5 * time.Second
	recallLook  = 2 * time.Second
	recallWatch = 30 * time.Second // while it is not; how long one question waits
	recallRetry = time.Second      // there is no manager
)

// reduceLimit bounds the question of a disk that is being closed.
const reduceLimit = 30 * time.Second

// reduceVolume gives space of a volume back, if its pool is tight: elsewhere
// headroom is kept, for it will be used.
func reduceVolume(ctx context.Context, h *spm.VolumeHandle, from, to int64) (int64, error) {
	if !h.Tight() {
		return 0, fmt.Errorf("the pool does not need it: %w", block.ErrUnsupported)
	}
	if ctx.Done() == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, reduceLimit)
		defer cancel()
	}
	size, err := h.Reduce(ctx, from, to)
	if err != nil { // nothing is lost by keeping it
		return 0, fmt.Errorf("%w (%w)", err, block.ErrUnsupported)
	}
	return size, nil
}

// recall gives headroom back when the pool asks for it, until the function that it
// returns is called.
func (d *disk) recall() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.watchPool(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// watchPool gives no attempt a limit. While one is under way nobody moves the image's
// end, and who needs that waits. But what became of a request that was lost with the
// manager only the next manager knows; to go on without knowing would be to write to
// space that is somebody else's by now, or to freeze the export as if somebody had
// reduced its volume by hand. Who waits for the end would wait for the manager anyway:
// only it can make the volume larger.
func (d *disk) watchPool(ctx context.Context) {
	var kept diskStats // when it last gave back what it could
	seen := int64(0)
	for ctx.Err() == nil {
		wait := recallWatch
		if d.volume.Tight() {
			wait = recallLook
		}
		var err error
		if seen, err = d.volume.Watch(ctx, seen, wait); err != nil {
			pause(ctx, recallRetry)
			continue
		}
		now := d.Stats()
		if !d.volume.Tight() || !mayGiveBack(now, time.Now()) || now.End == kept.End && now.Granted == kept.Granted {
			continue
		}
		if _, err = d.image.GiveBack(ctx); err != nil {
			if ctx.Err() == nil && !errors.Is(err, block.ErrInUse) {
				d.spec.Log.Warn("headroom is kept although the pool is tight; it is tried again", "volume", d.volume.Info().Name, "error", err)
			}
			pause(ctx, recallIdle)
			continue
		}
		kept = d.Stats()
	}
}

// mayGiveBack decides whether a disk has headroom and is idle. One whose writer was
// told that there is no space is not idle: its guest is paused, and goes on when
// there is headroom again.
func mayGiveBack(s diskStats, now time.Time) bool {
	return s.Poisoned == nil && s.Granted > s.End && !s.Thin.Waiting && !s.Thin.Hungry && now.Sub(s.Thin.Moved) >= recallIdle
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
