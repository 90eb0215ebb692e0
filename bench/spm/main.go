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
	rounds   int   // of each number; of one volume ten times as many
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

func bench(ctx context.Context) error {
	o := options{runDir: "/run/tidemark", volumes: []int{10, 100, 1000}, crossing: []int{1, 10, 100}}
	var only, out, doc string
	var strict bool
	flag.StringVar(&o.tidemark, "tidemark", "bin/tidemark", "our program")
	flag.StringVar(&out, "out", ".cache/bench-spm", "the directory for the record")
	flag.StringVar(&o.work, "work", "", "a directory on the file system to be measured; default: in -out")
	flag.StringVar(&only, "only", "directory|lvm|own|vdsm", "a pattern for what is measured; the rest of the record stays. - for nothing")
	flag.IntVar(&o.verbs, "verbs", 60, "how often each verb is asked in a cell")
	flag.IntVar(&o.rounds, "rounds", 5, "how often volumes cross at once in a cell; one alone ten times as often")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of the moments of the model")
	flag.StringVar(&doc, "doc", "", "write the document to this file")
	flag.BoolVar(&strict, "strict", false, "fail if a goal is missed")
	flag.Parse()
	which, err := regexp.Compile("^(" + only + ")$")
	if err != nil {
		return err
	}
	if o.work == "" {
		o.work = filepath.Join(out, "work")
	}
	for _, p := range []*string{&o.tidemark, &o.work, &out} {
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(o.work, 0o755); err != nil {
		return err
	}
	path := filepath.Join(out, "spm.json")
	r, err := readRecord(path)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if !which.MatchString(p.name) {
			continue
		}
		cells, err := p.do(ctx, o)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		r.Parts[p.name] = part{Machine: machine(), Seed: o.seed, Cells: cells}
		if err := r.keep(path); err != nil {
			return err
		}
	}
	missed := r.print(os.Stdout)
	if doc != "" {
		err = os.WriteFile(doc, []byte(r.document()), 0o644)
	}
	if strict && missed > 0 {
		err = errors.Join(err, fmt.Errorf("%d goals are missed", missed))
	}
	return err
}

func (o options) random() *rand.Rand { return rand.New(rand.NewPCG(o.seed, 0)) }
