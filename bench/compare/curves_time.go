package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tidemark/bench/load"
)

// This file has the curves over time: what churn leaves behind, and what other work does
// to the latency of overwrites.

// churn is where the clusters of a disk lie after it was written and discarded at random.
func (m *bench) churn(ctx context.Context) (*curve, error) {
	c := &curve{Name: "Fragmentation", Says: "A disk of 4 GiB, written at random in pieces of 64 KiB and discarded at random in pieces of 1 MiB, in turns: " +
		"runs of data that are one piece of disk and of image, and extents of the file.",
		Columns: []string{"turns", "data MiB", "file MiB", "runs", "median run KiB", "longest run KiB", "extents of the file"}}
	for _, turns := range []int{0, 1, 4, 16} {
		err := m.serve(ctx, imageKind{size: 4 * gib}, func(dir, socket string, _ *server) error {
			if turns == 0 {
				j := load.Job{Block: int(mib), Set: 2 * gib, Depth: 4, Sequential: true, Once: true, Duration: time.Minute}
				if _, err := load.Run(socket, "", j); err != nil {
					return err
				}
			}
			for i := range turns {
				seed := m.seed + uint64(i)
				w := load.Job{Block: int(64 * kib), Set: 4 * gib, Depth: 16, Duration: m.duration / 2, Seed: seed}
				t := load.Job{Op: load.Trim, Block: int(mib), Set: 4 * gib, Depth: 4, Duration: m.duration / 20, Seed: seed}
				_, err1 := load.Run(socket, "", w)
				_, err2 := load.Run(socket, "", t)
				if err := errors.Join(err1, err2); err != nil {
					return err
				}
			}
			p, err := m.lies(ctx, filepath.Join(dir, "image"))
			p.At = strconv.Itoa(turns)
			if turns == 0 {
				p.At = "2 GiB in order"
			}
			c.Points = append(c.Points, p)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

// lies tells where the data of an image that is in use lies.
func (m *bench) lies(ctx context.Context, image string) (p point, err error) {
	text, err := output(ctx, m.tidemark, "map", "-U", "--output", "json", image)
	if err != nil {
		return p, err
	}
	var ranges []struct {
		Length int64  `json:"length"`
		Data   bool   `json:"data"`
		Start  int64  `json:"start"`
		Offset *int64 `json:"offset"`
	}
	if err := json.Unmarshal([]byte(text), &ranges); err != nil {
		return p, fmt.Errorf("map of %s: %w", image, err)
	}
	var runs []float64
	var guest, host, data int64
	for _, r := range ranges {
		if !r.Data || r.Offset == nil {
			continue
		}
		data += r.Length
		if len(runs) > 0 && r.Start == guest && *r.Offset == host {
			runs[len(runs)-1] += float64(r.Length)
		} else {
			runs = append(runs, float64(r.Length))
		}
		guest, host = r.Start+r.Length, *r.Offset+r.Length
	}
	longest := 0.0
	for _, n := range runs {
		longest = max(longest, n)
	}
	size, err := os.Stat(image)
	if err != nil {
		return p, err
	}
	extents := 0.0
	if text, err := output(ctx, "filefrag", image); err == nil {
		f := strings.Fields(text[len(image):])
		extents, _ = strconv.ParseFloat(f[1], 64)
	}
	p.Values = []float64{float64(data / mib), float64(size.Size() / mib), float64(len(runs)), median(runs) / 1024, longest / 1024, extents}
	return p, nil
}

// latency is that of overwrites while others write, flush and discard much.
func (m *bench) latency(ctx context.Context) (*curve, error) {
	c := &curve{Name: "Latency during commits and large discards",
		Says:    "4K overwrites of 256 MiB; beside them another connection allocates 16 MiB and flushes every 100 ms, and each second discards all of that with one request.",
		Columns: []string{"in flight", "beside them", "IOPS", "p50 µs", "p99 µs", "p99.9 µs", "max µs"}}
	err := m.serve(ctx, imageKind{size: 4 * gib, full: 256 * mib}, func(_, socket string, _ *server) error {
		for _, depth := range []int{1, 32} {
			for _, busy := range []bool{false, true} {
				r, err := m.beside(ctx, socket, busy, load.Job{Block: int(4 * kib), Set: 256 * mib, Depth: depth, Duration: 5 * m.duration, Seed: m.seed})
				if err != nil {
					return err
				}
				l := &r.Latency
				n := 0.0
				if busy {
					n = 1
					c.Bounds = append(c.Bounds, bound{fmt.Sprintf("p99.9 by p50 during commits and large discards, QD%d", depth), us(l, 0.999) / us(l, 0.5), 10, "times"})
				}
				c.Points = append(c.Points, point{strconv.Itoa(depth), []float64{n, float64(r.Ops) / r.Asked.Seconds(), us(l, 0.5), us(l, 0.99), us(l, 0.999), us(l, 1)}})
			}
		}
		return nil
	})
	return c, err
}

// beside does a Job, while another connection is busy now and then: it is what that has
// the engine do that counts, and not the processors it takes.
func (m *bench) beside(ctx context.Context, socket string, busy bool, j load.Job) (*load.Result, error) {
	ctx, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for i := int64(0); busy && ctx.Err() == nil; i++ {
			w := load.Job{Block: int(mib), From: gib + i%besideWrites*besideBytes, Set: besideBytes, Depth: 2, Sequential: true, Once: true, Duration: time.Minute}
			if i%besideWrites == besideWrites-1 {
				w = load.Job{Op: load.Trim, Block: int(besideWrites * besideBytes), From: gib, Set: besideWrites * besideBytes, Once: true, Sequential: true, Duration: time.Minute}
			}
			if _, err := load.Run(socket, "", w); err != nil {
				done <- err
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
		done <- nil
	}()
	r, err := load.Run(socket, "", j)
	stop()
	return r, errors.Join(err, <-done)
}

// What is beside: so many bytes and a FLUSH, so many times, and then a discard of all.
const (
	besideBytes  = 16 * mib
	besideWrites = 10
)

// dirtyRows is how many times the time of a turn the curve beyond the dirty limit takes.
const dirtyRows = 60

// dirty is writes of more than the kernel lets be dirty: a minute of them, where turns are
// of a second.
func (m *bench) dirty(ctx context.Context) (*curve, error) {
	c := &curve{Name: "Beyond the dirty limit", Says: fmt.Sprintf("4K writes at random over 12 GiB of an empty disk for %g s, 32 in flight; %s. Each row is of %g s:",
		(dirtyRows * m.duration).Seconds(), dirtyLimit(), m.duration.Seconds()),
		Columns: []string{"until, s", "IOPS", "p50 µs", "p99 µs", "p99.9 µs", "max µs"}}
	err := m.serve(ctx, imageKind{size: 16 * gib}, func(_, socket string, _ *server) error {
		j := load.Job{Block: int(4 * kib), Set: 12 * gib, Depth: 32, Duration: dirtyRows * m.duration, Seed: m.seed, Window: m.duration}
		r, err := load.Run(socket, "", j)
		if err != nil {
			return err
		}
		row := func(at string, h *load.Histogram, d time.Duration) {
			c.Points = append(c.Points, point{at, []float64{float64(h.Count()) / d.Seconds(), us(h, 0.5), us(h, 0.99), us(h, 0.999), us(h, 1)}})
		}
		for i := range r.Windows[:min(len(r.Windows), dirtyRows)] { // what came later is no whole row
			row(fmt.Sprintf("%g", (time.Duration(i+1)*m.duration).Seconds()), &r.Windows[i], m.duration)
		}
		row("all", &r.Latency, r.Asked)
		row("with FLUSH and close", &r.Latency, r.Closed)
		return nil
	})
	return c, err
}

func dirtyLimit() string {
	ratio, _ := os.ReadFile("/proc/sys/vm/dirty_ratio")
	early, _ := os.ReadFile("/proc/sys/vm/dirty_background_ratio")
	memory := 0.0
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		memory = statusField(string(text), "MemTotal") / 1024 / 1024
	}
	return fmt.Sprintf("dirty_ratio %s, dirty_background_ratio %s of %.0f GiB", strings.TrimSpace(string(ratio)), strings.TrimSpace(string(early)), memory)
}
