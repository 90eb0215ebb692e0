package crashtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"

	"tidemark/internal/block"
	"tidemark/internal/crashlab"
	"tidemark/qcow2"
)

// reserveBytes bounds what is reserved ahead of use, so that small images reserve
// often. It is a few clusters of the largest ones that are tested.
const reserveBytes = 32 << 10

// engine is package qcow2 as the lab sees it.
func engine() crashlab.Engine {
	return crashlab.Engine{Open: open, Check: check, Audit: audit(nil), Limit: limit}
}

func open(ctx context.Context, f block.File) (crashlab.Disk, error) {
	return openWith(ctx, f, qcow2.Options{})
}

// openWith opens an image with a backing file, or a ring. Commits that begin by
// themselves would go on behind a process that is supposed to be dead.
func openWith(ctx context.Context, f block.File, o qcow2.Options) (crashlab.Disk, error) {
	o.ReserveBytes, o.CacheBytes, o.CommitInterval = reserveBytes, 64<<10, -1
	im, err := qcow2.Open(ctx, f, o)
	if err != nil {
		return nil, err
	}
	return disk{im}, nil
}

type disk struct{ *qcow2.Image }

func (d disk) Resize(ctx context.Context, size int64) error { return d.Grow(ctx, size) }

// Settle waits for what opening began, if the engine does such a thing.
func (d disk) Settle(ctx context.Context) error {
	s, ok := any(d.Image).(interface{ Settled() <-chan struct{} })
	if !ok {
		return nil
	}
	select {
	case <-s.Settled():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func check(ctx context.Context, f block.File, mend bool) (crashlab.Finding, error) {
	res, err := qcow2.Check(ctx, f, qcow2.CheckOptions{RepairLeaks: mend})
	return crashlab.Finding{
		Corruptions: res.Corruptions + res.CheckErrors,
		Leaks:       res.Leaks - res.LeaksFixed,
		Details:     strings.Join(res.Problems[:min(len(res.Problems), 4)], "; "),
	}, err
}

// limit is the bound of an image without snapshots. A reservation takes at least
// two clusters, bound or not; and each power cut may strand one reservation whose
// counts have landed while the list of what is reserved, which is written beside
// them, has not.
func limit(f block.File, cuts int) (int64, error) {
	h, err := qcow2.ReadHeader(f)
	if err != nil {
		return 0, err
	}
	least := 2 * h.ClusterSize()
	return qcow2.Bound(h.Geometry, h.Size) + least + int64(cuts)*max(reserveBytes, least), nil
}

// qemuCheck is the check of qemu-img at path.
func qemuCheck(img string) func(context.Context, string) (crashlab.Finding, error) {
	return func(ctx context.Context, path string) (crashlab.Finding, error) {
		cmd := exec.CommandContext(ctx, img, "check", "-f", "qcow2", "--output=json", path)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if code := cmd.ProcessState.ExitCode(); err != nil && code != 2 && code != 3 {
			return crashlab.Finding{}, fmt.Errorf("%v: %w: %s", cmd.Args, err, stderr.String())
		}
		var res struct {
			Corruptions int64
			Leaks       int64
			CheckErrors int64 `json:"check-errors"`
		}
		if err := json.Unmarshal(out, &res); err != nil {
			return crashlab.Finding{}, fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
		}
		return crashlab.Finding{Corruptions: res.Corruptions + res.CheckErrors, Leaks: res.Leaks, Details: strings.TrimSpace(stderr.String())}, nil
	}
}
