package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

type options struct {
	rounds   int
	duration time.Duration
	cells    choice
	arms     choice // ours is always there
	out      string
	work     string
	tidemark string
	resume   bool
	seed     uint64
	run      string
	curves   choice
	strict   bool
	doc      string
	render   bool
}

// A choice is a pattern for names. The zero value and "" choose all, and "-" none.
type choice struct {
	text string
	re   *regexp.Regexp
}

func (c *choice) String() string { return c.text }

// Set makes the choice that a flag has.
func (c *choice) Set(text string) (err error) {
	c.text = text
	c.re, err = regexp.Compile(text)
	return err
}

func (c choice) none() bool { return strings.TrimPrefix(c.text, "^") == "-" }

func (c choice) has(name string) bool {
	return !c.none() && (c.re == nil || c.re.MatchString(name))
}

// from is what is chosen of names; an error if a pattern that is there to choose
// something chooses nothing.
func (c choice) from(what string, names []string) ([]string, error) {
	list := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !c.has(name) })
	if len(list) == 0 && !c.none() {
		return nil, fmt.Errorf("-%s %s: expected a pattern for one or more of %q, or - for none; found none of them", what, c.text, names)
	}
	return list, nil
}

func parse(args []string, errs io.Writer) (o options, err error) {
	f := flag.NewFlagSet("compare", flag.ContinueOnError)
	f.SetOutput(errs)
	f.IntVar(&o.rounds, "rounds", 3, "how often every arm has its turn")
	f.DurationVar(&o.duration, "time", 2*time.Second, "of one turn")
	f.Var(&o.cells, "cells", "a pattern for the names of the cells; all, - for none")
	f.Var(&o.arms, "arms", "a pattern for the names of the arms, ours apart; all, - for none")
	f.StringVar(&o.out, "out", ".cache/bench", "the directory for the report")
	f.StringVar(&o.work, "work", "", "a directory on the file system to be measured, in which one is made, and removed at the end; default: -out")
	f.StringVar(&o.tidemark, "tidemark", "bin/tidemark", "our program")
	f.StringVar(&o.run, "run-id", "1", "names the run: its record is -out/run-ID/run.json")
	f.Var(&o.curves, "curves", "a pattern for the curves: connections, exports, churn, latency, dirty, engine; all, - for none")
	f.BoolVar(&o.strict, "strict", false, "fail if a goal is missed, or was to be measured and was not")
	f.StringVar(&o.doc, "doc", "", "write the document of all runs under -out to this file, and its chart beside it")
	f.BoolVar(&o.render, "render", false, "measure nothing: only report, and write -doc, of the runs that there are")
	f.BoolVar(&o.resume, "resume", false, "go on with what -out has of this run: of the same commit, with the same -time")
	f.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of the order and the places")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("%q behind the flags: expected nothing there", f.Args())
	}
	if err := o.check(); err != nil {
		return o, err
	}
	if o.work == "" {
		o.work = o.out
	}
	o.work = filepath.Join(o.work, workName)
	var err1, err2 error
	o.work, err1 = filepath.Abs(o.work)
	o.tidemark, err2 = filepath.Abs(o.tidemark)
	return o, errors.Join(err1, err2)
}

// workName is the directory that the images are in: all of it is removed at the end, so it
// is never one that somebody has named, who may have files there.
const workName = "tidemark-compare"

var runID = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)

// check refuses what would measure nothing, and names that are no part of a path.
func (o options) check() error {
	var of, grown, peers []string
	for _, c := range cells() {
		of = append(of, c.name)
	}
	for _, p := range plots {
		grown = append(grown, p.name)
	}
	for _, a := range allArms(ours) {
		if !a.ours() {
			peers = append(peers, a.name)
		}
	}
	chosen, err1 := o.cells.from("cells", of)
	curves, err2 := o.curves.from("curves", grown)
	_, err3 := o.arms.from("arms", peers)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	switch {
	case len(chosen)+len(curves) == 0:
		return errors.New("nothing to measure: expected -cells or -curves to choose something, found - for both")
	case o.rounds < 1:
		return fmt.Errorf("-rounds %d: expected 1 or more", o.rounds)
	case o.duration <= 0:
		return fmt.Errorf("-time %s: expected more than nothing", o.duration)
	case !runID.MatchString(o.run):
		return fmt.Errorf("-run-id %q: expected letters, digits, dots, - and _, as it is part of the name of a directory", o.run)
	}
	return nil
}
