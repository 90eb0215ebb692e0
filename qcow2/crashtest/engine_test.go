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

// redoSlots is a small ring, so that it fills up.
const redoSlots = 64

// engine is package qcow2 as the lab sees it.
func engine() crashlab.Engine {
	return crashlab.Engine{Open: openOn(nil), Amend: qcow2.SetRefcountBits, Check: check, Audit: audit(nil), Limit: limit}
}

// openOn opens images on a backing file, nil for none.
func openOn(backing block.Device) func(context.Context, block.File, string) (crashlab.Disk, error) {
	return func(ctx context.Context, f block.File, beside string) (crashlab.Disk, error) {
		im, err := qcow2.Open(ctx, f, qcow2.Options{
			Backing: backing, RedoDir: beside, RedoSlots: redoSlots,
			ReserveBytes: reserveBytes, CacheBytes: 64 << 10, CommitInterval: -1,
		})
		if err != nil {
			return nil, err
		}
		return disk{im}, nil
	}
}

type disk struct{ *qcow2.Image }

func (d disk) Resize(ctx context.Context, size int64) error { return d.Grow(ctx, size) }

// Settle waits for what opening began.
func (d disk) Settle(ctx context.Context) error {
	select {
	case <-d.Settled():
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
// two clusters, bound or not; each power cut may strand one reservation whose counts
// have landed while the list of what is reserved, which is written beside them, has
// not; and counts of another width are built beside the old ones.
func limit(f block.File, cuts int) (int64, error) {
	h, err := qcow2.ReadHeader(f)
	if err != nil {
		return 0, err
	}
	least := 2 * h.ClusterSize()
	bound := qcow2.Bound(h.Geometry, h.Size)
	counts := 2 * (bound/h.ClusterSize()/h.RefcountsPerBlock() + 2) * h.ClusterSize()
	return bound + least + counts + int64(cuts)*max(reserveBytes, least), nil
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
