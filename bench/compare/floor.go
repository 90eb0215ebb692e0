package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"tidemark/bench/load"
)

// null is a server that does nothing: what the client can do at most.
var null = arm{name: "nbdkit null", args: func(b bed) []string {
	return []string{"nbdkit", "-f", "-t", "2", "-U", b.socket, "null", "64G"}
}}

// ceiling measures the client alone, in requests a second.
func (m *bench) ceiling(ctx context.Context, depth int) (float64, error) {
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
	if err != nil {
		return 0, err
	}
	return float64(r.Ops) / r.Asked.Seconds(), srv.stop(null)
}

// loop is a plain loop of pwrite on a raw file, in calls a second.
func (m *bench) loop() (float64, error) {
	f, err := os.CreateTemp(m.work, "loop-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	p, rng := make([]byte, 4*kib), rand.New(rand.NewPCG(m.seed, 0))
	const set = 64 * mib
	for off := int64(0); off < set; off += int64(len(p)) {
		if _, err := f.WriteAt(p, off); err != nil {
			return 0, err
		}
	}
	n, began := 0, time.Now()
	for ; n%64 != 0 || time.Since(began) < m.duration; n++ {
		if _, err := f.WriteAt(p, rng.Int64N(set/(4*kib))*4*kib); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// floors measures them once a run.
func (m *bench) floors(ctx context.Context, r *record) error {
	if len(r.Floors) > 0 {
		return nil
	}
	for _, depth := range []int{1, 32} {
		n, err := m.ceiling(ctx, depth)
		if err != nil {
			return err
		}
		r.Floors = append(r.Floors, floor{fmt.Sprintf("the client's ceiling, 4K writes at queue depth %d into nbdkit null", depth), n})
	}
	n, err := m.loop()
	r.Floors = append(r.Floors, floor{"a loop of 4K pwrite on a raw file", n})
	return err
}
