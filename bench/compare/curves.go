package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tidemark/bench/load"
)

// A curve is how something of ours grows: a table, and what is wanted of it.
type curve struct {
	ID      string   `json:"id"` // of the plot
	Name    string   `json:"name"`
	Says    string   `json:"says"` // what was done
	Columns []string `json:"columns"`
	Points  []point  `json:"points"`
	Bounds  []bound  `json:"bounds,omitempty"`
}

// A point is a row.
type point struct {
	At     string    `json:"at"`
	Values []float64 `json:"values"`
}

// A bound is what is wanted of a curve: at most.
type bound struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Most  float64 `json:"most"`
	Unit  string  `json:"unit"`
}

func (b bound) word() string {
	if b.Value <= b.Most {
		return held
	}
	return missed
}

// plot measures a curve; name is what -curves has to match, and bounded that something is
// wanted of it.
type plot struct {
	name    string
	bounded bool
	do      func(m *bench, ctx context.Context) (*curve, error)
}

var plots = []plot{
	{"connections", false, (*bench).connections},
	{"exports", true, (*bench).exports},
	{"churn", false, (*bench).churn},
	{"latency", true, (*bench).latency},
	{"dirty", false, (*bench).dirty},
	{"engine", true, (*bench).engine},
}

// serve runs ours with an image of the host, as long as use takes.
func (m *bench) serve(ctx context.Context, k imageKind, use func(dir, socket string, s *server) error) error {
	dir, err := os.MkdirTemp(m.work, "curve-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := bed{image: filepath.Join(dir, "image"), socket: filepath.Join(dir, "s")}
	if err := m.stable.fresh(ctx, k, false, b.image); err != nil {
		return err
	}
	if err := forget(b.image); err != nil {
		return err
	}
	a := arm{name: ours, args: func(b bed) []string {
		return []string{m.tidemark, "nbd", "-t", "-k", b.socket, b.image}
	}}
	s, err := a.start(ctx, b)
	if err != nil {
		return err
	}
	return errors.Join(use(dir, b.socket, s), s.stop(a))
}

// connections is the speed with more and more of them.
func (m *bench) connections(ctx context.Context) (*curve, error) {
	c := &curve{Name: "Connections", Says: "4K overwrites of 1 GiB, 8 in flight on each connection to one export.",
		Columns: []string{"connections", "IOPS", "p50 µs", "p99.9 µs", "CPU µs/op"}}
	err := m.serve(ctx, imageKind{size: gib, full: gib}, func(_, socket string, s *server) error {
		for n := 1; n <= 64; n *= 2 {
			before := s.cpu()
			r, err := load.Run(socket, "", load.Job{Block: int(4 * kib), Set: gib, Depth: 8, Conns: n, Duration: m.duration, Seed: m.seed})
			if err != nil {
				return err
			}
			c.Points = append(c.Points, point{strconv.Itoa(n), []float64{float64(r.Ops) / r.Asked.Seconds(), us(&r.Latency, 0.5), us(&r.Latency, 0.999),
				float64((s.cpu() - before).Microseconds()) / float64(r.Ops)}})
		}
		return nil
	})
	return c, err
}

func us(h *load.Histogram, q float64) float64 { return float64(h.Quantile(q).Nanoseconds()) / 1000 }

// exports is what idle ones cost that one process serves.
func (m *bench) exports(ctx context.Context) (*curve, error) {
	c := &curve{Name: "Exports", Says: "Disks of 100 GiB, served by one process, each with 64 KiB written into it, then idle: anonymous memory of the process.",
		Columns: []string{"exports", "MiB", "KiB more for each", "threads", "until ready, ms"}}
	dir, err := os.MkdirTemp(m.work, "exports-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	one := 0.0
	for _, n := range []int{1, 10, 100, 1000} {
		p, kib, err := m.idle(ctx, dir, n)
		if err != nil {
			return nil, err
		}
		if n == 1 {
			one = kib
		} else {
			p.Values[1] = (kib - one) / float64(n-1)
		}
		c.Points = append(c.Points, p)
	}
	c.Bounds = []bound{{"an idle export of 100 GiB, of 1,000", c.Points[len(c.Points)-1].Values[1], 64, "KiB"}}
	return c, nil
}

// idle serves n disks and returns their row, and the memory in KiB.
func (m *bench) idle(ctx context.Context, dir string, n int) (point, float64, error) {
	b := bed{socket: filepath.Join(dir, "s")}
	a := arm{name: ours, args: func(b bed) []string {
		args := []string{m.tidemark, "nbd", "-t", "-k", b.socket}
		for i := range n {
			args = append(args, "--export", fmt.Sprintf("e%d=%s/%d.qcow2", i, dir, i))
		}
		return args
	}}
	for i := range n {
		path := fmt.Sprintf("%s/%d.qcow2", dir, i)
		if err := m.stable.fresh(ctx, imageKind{size: 100 * gib}, false, path); err != nil {
			return point{}, 0, err
		}
	}
	began := time.Now()
	s, err := a.start(ctx, b)
	if err != nil {
		return point{}, 0, err
	}
	ready := time.Since(began)
	for i := range n {
		_, err := load.Run(b.socket, "e"+strconv.Itoa(i), load.Job{Block: int(64 * kib), Set: 64 * kib, Once: true, Sequential: true, Duration: time.Minute})
		if err != nil {
			return point{}, 0, errors.Join(err, s.stop(a))
		}
	}
	st, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err = errors.Join(err, s.stop(a)); err != nil {
		return point{}, 0, err
	}
	kib := statusField(string(st), "RssAnon") + statusField(string(st), "RssShmem")
	return point{strconv.Itoa(n), []float64{kib / 1024, 0, statusField(string(st), "Threads"), float64(ready.Milliseconds())}}, kib, nil
}

// statusField is a number of proc_pid_status(5).
func statusField(text, name string) float64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return n
		}
	}
	return 0
}
