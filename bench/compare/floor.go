package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"tidemark/bench/load"
)

// What a machine does without a disk, to compare with; none of it is a bound. A server
// that answers faster than nbdkit's null plugin makes more of the same client, and the loop
// has its file in the page cache and never asks for a FLUSH.

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

// loopSet is the file of the loop, all of which is in the page cache.
const loopSet = 64 * mib

// loop is a plain loop of pwrite on a raw file, in calls a second, until the last of them.
func (m *bench) loop() (float64, error) {
	f, err := os.CreateTemp(m.work, "loop-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	p, rng := make([]byte, 4*kib), rand.New(rand.NewPCG(m.seed, 0))
	for off := int64(0); off < loopSet; off += int64(len(p)) {
		if _, err := f.WriteAt(p, off); err != nil {
			return 0, err
		}
	}
	n, began := 0, time.Now()
	for ; n%64 != 0 || time.Since(began) < m.duration; n++ {
		if _, err := f.WriteAt(p, rng.Int64N(loopSet/(4*kib))*4*kib); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// nullFloor and loopFloor are what the floors are called.
func nullFloor(depth int) string {
	return fmt.Sprintf("4K writes at queue depth %d of our client into nbdkit's null plugin, which bounds neither", depth)
}

const loopFloor = "4K pwrite in a loop on a raw file of 64 MiB in the page cache, once, without FLUSH"

// formerFloors are the names that records have from before.
var formerFloors = map[string]string{
	"the client's ceiling, 4K writes at queue depth 1 into nbdkit null":  nullFloor(1),
	"the client's ceiling, 4K writes at queue depth 32 into nbdkit null": nullFloor(32),
	"a loop of 4K pwrite on a raw file":                                  loopFloor,
}

// floors measures each once a run. Without nbdkit, which is named as missing, there is
// only the loop.
func (m *bench) floors(ctx context.Context, r *record) error {
	type one struct {
		name string
		do   func() (float64, error)
	}
	var list []one
	if _, err := exec.LookPath("nbdkit"); err == nil {
		for _, depth := range []int{1, 32} {
			list = append(list, one{nullFloor(depth), func() (float64, error) { return m.intoNull(ctx, depth) }})
		}
	}
	list = append(list, one{loopFloor, m.loop})
	for _, f := range list {
		if slices.ContainsFunc(r.Floors, func(had floor) bool { return had.Name == f.name }) {
			continue
		}
		n, err := f.do()
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		r.Floors = append(r.Floors, floor{f.name, n})
	}
	return r.keep()
}
