package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"tidemark/bench/load"
)

// What a machine does without a disk, to compare with. It is no bound: a server that
// answers faster than nbdkit's null plugin makes more of the same client.

// null is a server that does nothing with what it gets.
var null = arm{name: "nbdkit null", args: func(b bed) []string {
	return []string{"nbdkit", "-f", "-t", "2", "-U", b.socket, "null", "64G"}
}}

// intoNull measures the client and that server together, in requests a second.
func (m *bench) intoNull(ctx context.Context, depth int) (float64, error) {
	dir, err := os.MkdirTemp(m.work, "null-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	b := bed{socket: filepath.Join(dir, "s")}
	srv, err := null.start(ctx, b)
	if err != nil {
		return 0, err
	}
	r, err := load.Run(b.socket, "", load.Job{Block: int(4 * kib), Set: gib, Depth: depth, Conns: 1, Duration: m.duration, Seed: m.seed})
	if err := errors.Join(err, srv.stop(null)); err != nil {
		return 0, err
	}
	return float64(r.Ops) / r.Asked.Seconds(), nil
}

// nullFloor is what the floor of a depth is called.
func nullFloor(depth int) string {
	return fmt.Sprintf("4K writes at queue depth %d of our client into nbdkit's null plugin, which bounds neither", depth)
}

// floors measures each once a run. Without nbdkit, which is named as missing, there is none.
func (m *bench) floors(ctx context.Context, r *record) error {
	if _, err := exec.LookPath("nbdkit"); err != nil {
		return nil
	}
	for _, depth := range []int{1, 32} {
		name := nullFloor(depth)
		if slices.ContainsFunc(r.Floors, func(had floor) bool { return had.Name == name }) {
			continue
		}
		n, err := m.intoNull(ctx, depth)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		r.Floors = append(r.Floors, floor{name, n})
	}
	return r.keep()
}
