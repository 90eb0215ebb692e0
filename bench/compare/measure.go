package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
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
	tidemark string // our program
	lun      *lun   // what the cells on LVM use; nil: none had its turn
	work     string // where images are served from
	duration time.Duration
	seed     uint64
}

// measure lets an arm do a cell once.
func (m *bench) measure(ctx context.Context, c cell, a arm, round int) (s sample, err error) {
	s = sample{Cell: c.name, Arm: a.name, Round: round}
	dir, err := os.MkdirTemp(m.work, "arm-")
	if err != nil {
		return s, err
	}
	defer os.RemoveAll(dir)
	b, err := m.lay(ctx, c, a, dir)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, b.remove()) }()
	if err := run(ctx, "sync", "-f", m.work); err != nil {
		return s, err
	}
	if c.at != onLVM && c.job.Op == load.Write {
		if err := forget(b.image); err != nil {
			return s, err
		}
	}
	srv, err := a.start(ctx, *b)
	if err != nil {
		return s, err
	}
	if c.prefill > 0 {
		fill := load.Job{Block: int(mib), Set: c.prefill, Depth: 4, Sequential: true, Once: true, Duration: time.Hour}
		if _, err := load.Run(b.socket, "", fill); err != nil {
			return s, errors.Join(err, srv.stop(a))
		}
	}
	j := c.withTime(m.duration, m.seed+uint64(round))
	before := srv.cpu() + b.pool.cpu()
	r, err := ask(ctx, c, a, b, j)
	cpu := srv.cpu() + b.pool.cpu() - before
	var wrong error
	if err == nil && j.Op == load.Read {
		s.Checked, wrong = verifyReads(c, b.socket, j)
	}
	if err := errors.Join(err, srv.stop(a)); err != nil {
		return s, err
	}
	s.fill(r, cpu, j)
	if j.Op == load.Write {
		s.Checked, wrong = m.judge(ctx, c, a, *b, j, r)
	}
	if wrong != nil {
		s.Void = wrong.Error()
	}
	return s, nil
}

// ask does a cell's job with the server that is at a socket, or the file.
func ask(ctx context.Context, c cell, a arm, b *bed, j load.Job) (r *load.Result, err error) {
	switch {
	case a.bare:
		return load.RunCached(b.image, j)
	case c.fio != nil:
		return runFio(ctx, c, b.socket, j)
	case c.at != mounted:
		return load.Run(b.socket, "", j)
	case !c.loop:
		return load.RunFile(b.socket, j)
	}
	device, err := output(ctx, "losetup", "--find", "--show", "--direct-io=on", b.socket)
	if err != nil {
		return nil, err
	}
	device = strings.TrimSpace(device)
	r, err = load.RunFile(device, j)
	return r, errors.Join(err, run(context.WithoutCancel(ctx), "losetup", "--detach", device))
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

// lay makes what an arm begins a cell with, in dir.
func (m *bench) lay(ctx context.Context, c cell, a arm, dir string) (*bed, error) {
	b := &bed{image: filepath.Join(dir, "image"), socket: filepath.Join(dir, "s")}
	if c.image.backing {
		b.backing = m.stable.backing()
	}
	if c.at != onLVM {
		return b, m.stable.fresh(ctx, c.image, a.raw, b.image)
	}
	if m.lun == nil {
		l, err := newLUN(ctx, m.work)
		if err != nil {
			return nil, err
		}
		m.lun = l
	}
	err := m.lun.zero(ctx)
	switch {
	case err != nil:
	case a.ours():
		b.pool, err = startPool(ctx, m.tidemark, m.lun, dir)
	default:
		err = m.lun.layPart(ctx, b)
	}
	return b, err
}

// remove ends what does not end with the directory.
func (b *bed) remove() error {
	if b.pool == nil {
		return nil
	}
	return b.pool.stop()
}
