package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := compare(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

func compare(ctx context.Context) error {
	o, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	var done *record
	if !o.render {
		if done, err = measureAll(ctx, o); err != nil {
			return err
		}
	}
	runs, err := readRuns(o.out)
	if err != nil {
		return err
	}
	if o.doc != "" {
		if err := writeDocument(o.doc, runs); err != nil {
			return err
		}
	}
	if o.render {
		done = runs[len(runs)-1]
	}
	missed := report(os.Stdout, done, o.expected())
	if o.strict && missed > 0 {
		return fmt.Errorf("%d goals are missed or not measured", missed)
	}
	return nil
}

// measureAll does a run: what its record has already is left out, and what this machine
// cannot do is named in it.
func measureAll(ctx context.Context, o options) (*record, error) {
	list, missing := arms(o.tidemark)
	list = slices.DeleteFunc(list, func(a arm) bool { return !a.ours() && !o.arms.has(a.name) })
	wanted := slices.DeleteFunc(cells(), func(c cell) bool { return !o.cells.has(c.name) })
	if !slices.ContainsFunc(list, func(a arm) bool { return a.name == ours }) {
		return nil, fmt.Errorf("nothing to do: %s is missing (%s)", o.tidemark, strings.Join(missing, "; "))
	}
	wanted, cannot := possible(wanted, here)
	missing = append(missing, cannot...)
	if _, err := exec.LookPath("strace"); err != nil {
		missing = append(missing, fmt.Sprintf("the syncs for each FLUSH: %v", err))
	}
	if err := builtHere(o.tidemark); err != nil {
		return nil, err
	}
	o.out = filepath.Join(o.out, "run-"+o.run)
	if err := errors.Join(os.MkdirAll(o.out, 0o755), os.MkdirAll(o.work, 0o755)); err != nil {
		return nil, err
	}
	r := newRecord(o)
	r.describe(list, missing)
	if o.resume {
		var err error
		if r, err = r.orKept(); err != nil {
			return nil, err
		}
	}
	for _, line := range slices.Concat(r.Machine, r.Arms, r.Missing) {
		fmt.Fprintln(os.Stderr, line)
	}
	m := &bench{stable: stable{o.work}, tidemark: o.tidemark, work: o.work, duration: o.duration, seed: r.Seed}
	defer m.clean()
	if err := m.floors(ctx, r); err != nil {
		return nil, err
	}
	if err := m.rounds(ctx, r, wanted, list); err != nil {
		return nil, err
	}
	if err := m.allSyncs(ctx, r, wanted, list); err != nil {
		return nil, err
	}
	return r, m.plotAll(ctx, r, o.curves)
}

// rounds are all turns, in rounds; each sample is kept at once, so that a run that
// was stopped can go on.
func (m *bench) rounds(ctx context.Context, r *record, cells []cell, arms []arm) error {
	rng := rand.New(rand.NewPCG(r.Seed, 0))
	for round := range r.Rounds {
		for _, c := range cells {
			for _, i := range rng.Perm(len(arms)) {
				a := arms[i]
				if !c.has(a) || r.has(c.name, a.name, round) {
					continue
				}
				s, err := m.measure(ctx, c, a, round)
				if err != nil {
					return fmt.Errorf("%s, %s, round %d: %w", c.name, a.name, round, err)
				}
				fmt.Fprintf(os.Stderr, "round %d  %-45s %-32s %9.0f IOPS %7.2f µs/op %s\n", round+1, c.name, a.name, s.IOPS, s.CPU, s.Void)
				r.Samples = append(r.Samples, s)
				if err := r.keep(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// plotAll measures the curves.
func (m *bench) plotAll(ctx context.Context, r *record, which choice) error {
	for _, p := range plots {
		if !which.has(p.name) || slices.ContainsFunc(r.Curves, func(c curve) bool { return c.ID == p.name }) {
			continue
		}
		fmt.Fprintln(os.Stderr, "curve", p.name)
		c, err := p.do(m, ctx)
		if err != nil {
			return fmt.Errorf("curve %s: %w", p.name, err)
		}
		c.ID = p.name
		r.Curves = append(r.Curves, *c)
		if err := r.keep(); err != nil {
			return err
		}
	}
	return nil
}

// clean removes the images, and the device.
func (m *bench) clean() {
	if m.lun != nil {
		if err := m.lun.remove(); err != nil {
			fmt.Fprintln(os.Stderr, "compare: left behind:", err)
		}
	}
	_ = os.RemoveAll(m.work)
}
