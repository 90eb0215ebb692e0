package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"tidemark/bench/load"
)

// A server that is fast because it does not sync is no peer. So what every arm does
// for a FLUSH is counted once, in a run of its own, as strace slows it down.

// syncsPerFlush is how many syncs of files a server makes for each write with a flush
// behind it; of io_uring there is nothing to see, and it is 0.
func (m *bench) syncsPerFlush(ctx context.Context, c cell, a arm) (float64, error) {
	dir, err := os.MkdirTemp(m.work, "syncs-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	b, trace := bed{image: filepath.Join(dir, "image"), socket: filepath.Join(dir, "s")}, filepath.Join(dir, "trace")
	if err := m.stable.fresh(ctx, c.image, a.raw, b.image); err != nil {
		return 0, err
	}
	traced := a
	traced.args = func(b bed) []string {
		return append([]string{"strace", "-D", "-f", "-qq", "-o", trace, "-e", "trace=fsync,fdatasync,pwritev2"}, a.args(b)...)
	}
	srv, err := traced.start(ctx, b)
	if err != nil {
		return 0, err
	}
	const flushes = 200
	before, err := countSyncs(trace)
	if err != nil {
		return 0, errors.Join(err, srv.stop(traced))
	}
	j := c.withTime(m.duration, m.seed)
	j.Set, j.Once = flushes*max(j.Stride, int64(j.Block)), true
	r, err := load.Run(b.socket, "", j)
	if err != nil {
		return 0, errors.Join(err, srv.stop(traced))
	}
	after, err := countSyncs(trace)
	return float64(after-before) / float64(max(r.Ops, 1)), errors.Join(err, srv.stop(traced))
}

// countSyncs counts the calls of a trace that wait for the storage.
func countSyncs(path string) (n int, err error) {
	text, err := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "sync(") || strings.Contains(line, "RWF_DSYNC") || strings.Contains(line, "RWF_SYNC") {
			n++
		}
	}
	return n, err
}

// copying is no cell: only its syncs are counted.
var copying = cell{name: "4K copy-on-write + flush, QD1", image: imageKind{size: gib, full: 64 * mib, snapshot: true},
	job: load.Job{Block: int(4 * kib), Set: 64 * mib, Stride: 64 * kib, Depth: 1, Once: true, FlushEach: true}}

// allSyncs counts them once a run, for the cells that flush after every write and, if there
// are any, for copying. Without strace, which is named as missing, there is none.
func (m *bench) allSyncs(ctx context.Context, r *record, cells []cell, arms []arm) error {
	if _, err := exec.LookPath("strace"); err != nil {
		return nil
	}
	flushing := slices.DeleteFunc(slices.Clone(cells), func(c cell) bool { return !c.job.FlushEach })
	if len(flushing) > 0 {
		flushing = append(flushing, copying)
	}
	for _, c := range flushing {
		for _, a := range arms {
			if a.name != ours && a.name != qemuNBD("threads").name {
				continue // io_uring's are no system calls of their own
			}
			if slices.ContainsFunc(r.Syncs, func(s syncs) bool { return s.Cell == c.name && s.Arm == a.name }) {
				continue
			}
			n, err := m.syncsPerFlush(ctx, c, a)
			if err != nil {
				return fmt.Errorf("syncs of %s in %q: %w", a.name, c.name, err)
			}
			r.Syncs = append(r.Syncs, syncs{c.name, a.name, n})
		}
	}
	return r.keep()
}
