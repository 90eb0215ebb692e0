package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := compare(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

type options struct {
	rounds   int
	duration time.Duration
	cells    *regexp.Regexp
	arms     *regexp.Regexp
	out      string
	work     string
	tidemark string
	resume   bool
	seed     uint64
	run      string
	curves   *regexp.Regexp
	strict   bool
	doc      string
	render   bool
}

func parse() (o options, err error) {
	flag.IntVar(&o.rounds, "rounds", 3, "how often every arm has its turn")
	flag.DurationVar(&o.duration, "time", 2*time.Second, "of one turn")
	cellsRE := flag.String("cells", "", "a pattern for the names of the cells; all")
	armsRE := flag.String("arms", "", "a pattern for the names of the arms, ours apart; all")
	flag.StringVar(&o.out, "out", ".cache/bench", "the directory for the report")
	flag.StringVar(&o.work, "work", "", "a directory on the file system to be measured; default: in -out")
	flag.StringVar(&o.tidemark, "tidemark", "bin/tidemark", "our program")
	flag.StringVar(&o.run, "run-id", "1", "names the run: its record is -out/run-ID/run.json")
	curvesRE := flag.String("curves", ".", "a pattern for the curves: connections, exports, churn, latency, dirty, engine; - for none")
	flag.BoolVar(&o.strict, "strict", false, "fail if something that is wanted is missed")
	flag.StringVar(&o.doc, "doc", "", "write the document of all runs under -out to this file, and its chart beside it")
	flag.BoolVar(&o.render, "render", false, "measure nothing: only report, and write -doc, of the runs that there are")
	flag.BoolVar(&o.resume, "resume", false, "go on with what -out has of this run: of the same commit, with the same -time")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of the order and the places")
	flag.Parse()
	if o.cells, err = regexp.Compile(*cellsRE); err != nil {
		return o, err
	}
	if o.arms, err = regexp.Compile(*armsRE); err != nil {
		return o, err
	}
	if o.curves, err = regexp.Compile(*curvesRE); err != nil {
		return o, err
	}
	if o.work == "" {
		o.work = filepath.Join(o.out, "work")
	}
	if o.work, err = filepath.Abs(o.work); err != nil {
		return o, err
	}
	if o.tidemark, err = filepath.Abs(o.tidemark); err != nil {
		return o, err
	}
	return o, nil
}

func compare(ctx context.Context) error {
	o, err := parse()
	if err != nil {
		return err
	}
	if !o.render {
		if err := measureAll(ctx, o); err != nil {
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
	last := runs[len(runs)-1]
	if !o.render {
		last = runs[slices.IndexFunc(runs, func(r *record) bool { return r.Run == o.run })]
	}
	missed := report(os.Stdout, last)
	if o.strict && missed > 0 {
		return fmt.Errorf("%d goals are missed", missed)
	}
	return nil
}

// measureAll does a run: what its record has already is left out.
func measureAll(ctx context.Context, o options) error {
	list, missing := arms(o.tidemark)
	list = slices.DeleteFunc(list, func(a arm) bool { return !a.ours() && !o.arms.MatchString(a.name) })
	wanted := slices.DeleteFunc(cells(), func(c cell) bool { return !o.cells.MatchString(c.name) })
	if !slices.ContainsFunc(list, func(a arm) bool { return a.name == ours }) {
		return fmt.Errorf("nothing to do: %s is missing (%s)", o.tidemark, strings.Join(missing, "; "))
	}
	o.out = filepath.Join(o.out, "run-"+o.run)
	if err := errors.Join(os.MkdirAll(o.out, 0o755), os.MkdirAll(o.work, 0o755)); err != nil {
		return err
	}
	r := newRecord(o)
	r.describe(list, missing)
	if o.resume {
		var err error
		if r, err = r.orKept(); err != nil {
			return err
		}
	}
	for _, line := range slices.Concat(r.Machine, r.Arms, r.Missing) {
		fmt.Fprintln(os.Stderr, line)
	}
	m := &bench{stable: stable{o.work}, tidemark: o.tidemark, work: o.work, duration: o.duration, seed: r.Seed}
	defer m.clean()
	if err := m.floors(ctx, r); err != nil {
		return err
	}
	if err := m.rounds(ctx, r, wanted, list); err != nil {
		return err
	}
	if err := m.allSyncs(ctx, r, wanted, list); err != nil {
		return err
	}
	return m.plotAll(ctx, r, o.curves)
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
func (m *bench) plotAll(ctx context.Context, r *record, which *regexp.Regexp) error {
	for _, p := range plots {
		if !which.MatchString(p.name) || slices.ContainsFunc(r.Curves, func(c curve) bool { return c.ID == p.name }) {
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
