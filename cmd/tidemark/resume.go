package main

import (
	"context"
	"log/slog"
	"time"

	"tidemark/internal/qmp"
)

// How often it is looked whether a volume that had no space has some, how often
// QEMU is asked again when it does not answer, and for how long.
const (
	resumeLook  = 250 * time.Millisecond
	resumeAgain = 2 * time.Second
	resumeLimit = 5 * time.Second
)

// A resumer lets a guest go on that QEMU has paused because a write got ENOSPC
// (werror=stop or enospc), once its volume has space again. It is decided here
// when to ask; QEMU says whether its guest is paused, and why.
type resumer struct {
	socket string
	disks  []*served
	log    *slog.Logger
	hungry bool // a write has waited since QEMU was last asked
}

// newResumer watches the disks that can wait for space.
func newResumer(socket string, disks []*served, log *slog.Logger) *resumer {
	return &resumer{socket: socket, disks: disks, log: log}
}

// run goes on until ctx ends.
func (r *resumer) run(ctx context.Context) {
	failing := false
	for ctx.Err() == nil {
		pause(ctx, resumeLook)
		if !r.due() {
			continue
		}
		asked, cancel := context.WithTimeout(ctx, resumeLimit)
		was, err := qmp.Resume(asked, r.socket)
		cancel()
		switch {
		case err == nil:
			failing = false
			r.hungry = false
			r.log.Info("there is space again, and QEMU was asked to go on", "qmp", r.socket, "was", was, "resumed", was == qmp.Paused)
		case ctx.Err() == nil:
			if !failing {
				r.log.Warn("there is space again, and QEMU cannot be told; it is tried again", "qmp", r.socket, "error", err)
			}
			failing = true
			pause(ctx, resumeAgain)
		}
	}
}

// due reports whether a write has waited, and no volume lacks space any more.
func (r *resumer) due() bool {
	for _, d := range r.disks {
		if s := d.Stats().Thin; s != nil && (s.Waiting || s.Hungry) {
			r.hungry = true
			return false
		}
	}
	return r.hungry
}
