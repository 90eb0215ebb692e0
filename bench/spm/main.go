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
	"syscall"
	"time"
)

func main() {
	if filepath.Base(os.Args[0]) == "lvm" {
		os.Exit(timeLVM())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench/spm:", err)
		os.Exit(1)
	}
}

// options say what is measured. The counts are how often.
type options struct {
	tidemark string
	work     string // a directory on the file system to be measured
	runDir   string // where the program keeps what lives as long as the host is up
	lvm      string // the program that notes lvm's own time; "" is this one
	seed     uint64

	volumes  []int // that a domain has besides
	verbs    int   // of each verb
	crossing []int // how many volumes need space at once
	rounds   int   // of each number; of one volume forty times as many

	only   *regexp.Regexp // the parts that are measured
	record string         // its file
	doc    string         // the document's; "" for none
	strict bool
}

// What is measured, by the names of -only. Each is a part of the record.
var parts = []struct {
	name string
	do   func(context.Context, options) ([]cell, error)
}{
	{"directory", measureDirectory},
	{"lvm", measureGroup},
	{"own", measureOwn},
	{"vdsm", measureMailbox},
}

// parse reads the options of a command line.
func parse(args []string) (o options, err error) {
	o = options{runDir: "/run/tidemark", volumes: []int{10, 100, 1000}, crossing: []int{1, 10, 100}}
	var only, out string
	f := flag.NewFlagSet("spm", flag.ContinueOnError)
	f.StringVar(&o.tidemark, "tidemark", "bin/tidemark", "our program")
	f.StringVar(&out, "out", ".cache/bench-spm", "the directory for the record")
	f.StringVar(&o.work, "work", "", "a directory on the file system to be measured; default: in -out")
	f.StringVar(&only, "only", "directory|lvm|own|vdsm", "a pattern for what is measured; the rest of the record stays, if it is of the same commit. - for nothing")
	f.IntVar(&o.verbs, "verbs", 200, "how often each verb is asked in a cell")
	f.IntVar(&o.rounds, "rounds", 5, "how often volumes cross at once in a cell; one alone forty times as often")
	f.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of the moments of the model")
	f.StringVar(&o.doc, "doc", "", "write the document to this file")
	f.BoolVar(&o.strict, "strict", false, "fail if a goal is missed")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.only, err = regexp.Compile("^(" + only + ")$"); err != nil {
		return o, err
	}
	if o.work == "" {
		o.work = filepath.Join(out, "work")
	}
	for _, p := range []*string{&o.tidemark, &o.work, &out} {
		if *p, err = filepath.Abs(*p); err != nil {
			return o, err
		}
	}
	o.record = filepath.Join(out, "spm.json")
	return o, nil
}

func bench(ctx context.Context) error {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.work, 0o755); err != nil {
		return err
	}
	r, err := measure(ctx, o)
	if err != nil {
		return err
	}
	if r.Commit == "" {
		return fmt.Errorf("%s has nothing that was measured at one commit: measure everything (without -only)", o.record)
	}
	missed := r.print(os.Stdout)
	if o.doc != "" {
		err = os.WriteFile(o.doc, []byte(r.document()), 0o644)
	}
	if o.strict && missed > 0 {
		err = errors.Join(err, fmt.Errorf("%d goals are missed", missed))
	}
	return err
}

// measure measures the parts that are chosen, and keeps each in the record at once.
func measure(ctx context.Context, o options) (*record, error) {
	r, err := readRecord(o.record)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range parts {
		if o.only.MatchString(p.name) {
			names = append(names, p.name)
		}
	}
	if err := r.begin(commit(), names); err != nil {
		return nil, fmt.Errorf("go on with %s: %w; measure everything (without -only), or remove that file", o.record, err)
	}
	for _, p := range parts {
		if !slices.Contains(names, p.name) {
			continue
		}
		cells, err := p.do(ctx, o)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		r.Parts[p.name] = part{Machine: machine(), Seed: o.seed, Cells: cells}
		if err := r.keep(o.record); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (o options) random() *rand.Rand { return rand.New(rand.NewPCG(o.seed, 0)) }
