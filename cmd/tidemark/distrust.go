package main

import (
	"context"
	"errors"
	"fmt"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/qcow2"
)

// openDistrusted opens the image in f, which is host unless that is nil. If a sync of it failed since the host was
// booted, the host's cache may hold what the storage does not: it is dropped first,
// and the image checked as the storage has it (rule 13).
func openDistrusted(ctx context.Context, f block.File, host *hostfile.File, path string, o qcow2.Options) (*qcow2.Image, error) {
	image, err := qcow2.Open(ctx, f, o)
	var distrust *qcow2.DistrustError
	if !errors.As(err, &distrust) {
		return image, err
	}
	o.Logger.Warn("a sync of the image failed since the host was booted: dropping the host's cache of it and checking it", "image", path)
	if host != nil {
		if err := host.DropCache(); err != nil {
			return nil, err
		}
	}
	r, err := qcow2.Check(ctx, f, qcow2.CheckOptions{})
	if err != nil {
		return nil, err
	}
	if r.Corruptions+r.CheckErrors > 0 {
		return nil, fmt.Errorf("the image was damaged when a sync failed: %d corruptions, %d places that cannot be read; mend it with qemu-img check -r all", r.Corruptions, r.CheckErrors)
	}
	o.DropRedo = true
	return qcow2.Open(ctx, f, o)
}
