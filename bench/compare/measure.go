package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"tidemark/bench/load"
)

// A sample is what one arm did with one cell in one round.
type sample struct {
	Cell     string  `json:"cell"`
	Arm      string  `json:"arm"`
	Round    int     `json:"round"`
	IOPS     float64 `json:"iops"`           // with the FLUSH and the end, if it writes
	IOPSOpen float64 `json:"iops_open"`      // until the last reply
	CPU      float64 `json:"cpu_us_op"`      // of the server, microseconds for each request
	P50      float64 `json:"p50_us"`         // of the client's latency
	P99      float64 `json:"p99_us"`         //
	P999     float64 `json:"p999_us"`        //
	Checked  int     `json:"checked"`        // blocks whose content was read back
	Void     string  `json:"void,omitempty"` // why it does not count
}

// A bench is one run of everything.
type bench struct {
	stable   stable
	work     string // where images are served from
	duration time.Duration
	seed     uint64
}

// measure lets an arm do a cell once.
func (m *bench) measure(ctx context.Context, c cell, a arm, round int) (sample, error) {
	s := sample{Cell: c.name, Arm: a.name, Round: round}
	dir, err := os.MkdirTemp(m.work, "arm-")
	if err != nil {
		return s, err
	}
	defer os.RemoveAll(dir)
	b := bed{image: filepath.Join(dir, "image"), socket: filepath.Join(dir, "s")}
	if err := m.stable.fresh(ctx, c.image, a.raw, b.image); err != nil {
		return s, err
	}
	if c.image.backing {
		b.backing = m.stable.backing()
	}
	if err := run(ctx, "sync", "-f", m.work); err != nil {
		return s, err
	}
	srv, err := a.start(ctx, b)
	if err != nil {
		return s, err
	}
	j := c.withTime(m.duration, m.seed+uint64(round))
	before := srv.cpu()
	var r *load.Result
	if c.fio {
		r, err = runFio(ctx, b.socket, j)
	} else {
		r, err = load.Run(b.socket, "", j)
	}
	cpu := srv.cpu() - before
	if err := errors.Join(err, srv.stop(a)); err != nil {
		return s, err
	}
	s.fill(r, cpu, j)
	if j.Op == load.Write {
		s.Checked, err = m.judge(ctx, c, a, b, j, r)
	}
	if err != nil {
		s.Void = err.Error()
	}
	return s, nil
}

func (s *sample) fill(r *load.Result, cpu time.Duration, j load.Job) {
	us := func(q float64) float64 { return float64(r.Latency.Quantile(q).Nanoseconds()) / 1000 }
	s.P50, s.P99, s.P999 = us(0.5), us(0.99), us(0.999)
	s.IOPSOpen = float64(r.Ops) / r.Asked.Seconds()
	s.IOPS = s.IOPSOpen
	if j.Op == load.Write {
		s.IOPS = float64(r.Ops) / r.Closed.Seconds()
	}
	s.CPU = float64(cpu.Microseconds()) / float64(max(r.Ops, 1))
}

// mostChecked bounds how many blocks are read back.
const mostChecked = 20000

// judge checks what an arm has left: the image by qemu-img, and a sample of its blocks
// through qemu-nbd.
func (m *bench) judge(ctx context.Context, c cell, a arm, b bed, j load.Job, r *load.Result) (int, error) {
	format := "raw"
	if !a.raw {
		format = "qcow2"
		if err := run(ctx, "qemu-img", "check", "-q", b.image); err != nil {
			return 0, err
		}
	}
	if c.fio {
		return 0, nil // fio's blocks have no stamps
	}
	reader := arm{name: "reader", args: func(b bed) []string {
		return []string{"qemu-nbd", "-r", "-f", format, "-t", "-k", b.socket, b.image}
	}}
	again := b
	again.socket = b.socket + "r"
	srv, err := reader.start(ctx, again)
	if err != nil {
		return 0, err
	}
	n, err := load.Verify(again.socket, "", j, r.Written, mostChecked)
	return n, errors.Join(err, srv.stop(reader))
}

// fioOutput is what is needed of fio's report.
type fioOutput struct {
	Jobs []struct {
		Write struct {
			TotalIOs int64 `json:"total_ios"`
			Runtime  int64 `json:"runtime"` // ms
			Clat     struct {
				Percentile map[string]int64 `json:"percentile"` // ns
			} `json:"clat_ns"`
		} `json:"write"`
	} `json:"jobs"`
}

// runFio does a Job that overwrites at random, with fio's NBD engine.
func runFio(ctx context.Context, socket string, j load.Job) (*load.Result, error) {
	began := time.Now()
	cmd := exec.CommandContext(ctx, "fio", "--name=cell", "--ioengine=nbd", "--uri=nbd+unix:///?socket="+socket,
		"--rw=randwrite", "--bs="+strconv.Itoa(j.Block), "--size="+strconv.FormatInt(j.Set, 10), "--iodepth="+strconv.Itoa(j.Depth),
		"--time_based", fmt.Sprintf("--runtime=%dms", j.Duration.Milliseconds()), "--end_fsync=1", "--output-format=json",
		"--randseed="+strconv.FormatUint(j.Seed, 10))
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("fio: %w: %s", err, out)
	}
	var report fioOutput
	if err := json.Unmarshal(out[max(bytes.IndexByte(out, '{'), 0):], &report); err != nil || len(report.Jobs) != 1 {
		return nil, fmt.Errorf("fio's report: %w: %s", err, out)
	}
	w := report.Jobs[0].Write
	r := &load.Result{Ops: w.TotalIOs, Asked: time.Duration(w.Runtime) * time.Millisecond, Closed: time.Since(began)}
	r.Closed = r.Asked // fio's start is not the server's
	for q, n := range map[string]int64{"50.000000": 500, "99.000000": 490, "99.900000": 9, "99.990000": 1} {
		r.Latency.Add(time.Duration(w.Clat.Percentile[q]), n)
	}
	return r, nil
}
