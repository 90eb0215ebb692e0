package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
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
}

func parse() (o options, err error) {
	flag.IntVar(&o.rounds, "rounds", 3, "how often every arm has its turn")
	flag.DurationVar(&o.duration, "time", 2*time.Second, "of one turn")
	cellsRE := flag.String("cells", "", "a pattern for the names of the cells; all")
	armsRE := flag.String("arms", "", "a pattern for the names of the arms, ours apart; all")
	flag.StringVar(&o.out, "out", ".cache/bench", "the directory for the report")
	flag.StringVar(&o.work, "work", "", "a directory on the file system to be measured; default: in -out")
	flag.StringVar(&o.tidemark, "tidemark", "bin/tidemark", "our program")
	flag.BoolVar(&o.resume, "resume", false, "go on with what -out has of an earlier run")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of the order and the places")
	flag.Parse()
	if o.cells, err = regexp.Compile(*cellsRE); err != nil {
		return o, err
	}
	if o.arms, err = regexp.Compile(*armsRE); err != nil {
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
	return o, errors.Join(os.MkdirAll(o.out, 0o755), os.MkdirAll(o.work, 0o755))
}

func compare(ctx context.Context) error {
	o, err := parse()
	if err != nil {
		return err
	}
	list, missing := arms(o.tidemark)
	list = slices.DeleteFunc(list, func(a arm) bool { return !a.ours() && !o.arms.MatchString(a.name) })
	wanted := slices.DeleteFunc(cells(), func(c cell) bool { return !o.cells.MatchString(c.name) })
	if len(wanted) == 0 || !slices.ContainsFunc(list, func(a arm) bool { return a.name == ours }) {
		return fmt.Errorf("nothing to do: no cell matches, or %s is missing (%s)", o.tidemark, strings.Join(missing, "; "))
	}
	describe(list, missing, o)
	m := &bench{stable: stable{o.work}, tidemark: o.tidemark, work: o.work, duration: o.duration, seed: o.seed}
	defer m.clean()
	if err := m.printFloors(ctx); err != nil {
		return err
	}
	all, err := m.rounds(ctx, o, wanted, list)
	if err != nil {
		return err
	}
	if err := m.printSyncs(ctx, os.Stdout, wanted, list); err != nil {
		return err
	}
	verdicts := judgeAll(all, wanted, list)
	printTable(os.Stdout, all, wanted, list)
	fmt.Println()
	printVerdicts(os.Stdout, verdicts)
	return write(o.out, all, verdicts)
}

// rounds are all turns, in rounds; each sample is kept at once, so that a run that
// was stopped can go on.
func (m *bench) rounds(ctx context.Context, o options, cells []cell, arms []arm) ([]sample, error) {
	kept := filepath.Join(o.out, "samples.json")
	var all []sample
	if o.resume {
		b, err := os.ReadFile(kept)
		if err == nil {
			err = json.Unmarshal(b, &all)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("go on with %s: %w", kept, err)
		}
	}
	rng := rand.New(rand.NewPCG(o.seed, 0))
	for round := range o.rounds {
		for _, c := range cells {
			for _, i := range rng.Perm(len(arms)) {
				a := arms[i]
				if !c.has(a) || slices.ContainsFunc(all, func(s sample) bool { return s.Cell == c.name && s.Arm == a.name && s.Round == round }) {
					continue
				}
				s, err := m.measure(ctx, c, a, round)
				if err != nil {
					return nil, fmt.Errorf("%s, %s, round %d: %w", c.name, a.name, round, err)
				}
				fmt.Fprintf(os.Stderr, "round %d  %-45s %-32s %9.0f IOPS %7.2f µs/op %s\n", round+1, c.name, a.name, s.IOPS, s.CPU, s.Void)
				all = append(all, s)
				b, err := json.Marshal(all)
				if err = errors.Join(err, os.WriteFile(kept, b, 0o644)); err != nil {
					return nil, err
				}
			}
		}
	}
	return all, nil
}

// describe says what is measured, so that it can be done again.
func describe(list []arm, missing []string, o options) {
	uname, _ := exec.Command("uname", "-srm").Output()
	fmt.Printf("%s, seed %d, %d rounds of %v\n", strings.TrimSpace(string(uname)), o.seed, o.rounds, o.duration)
	seen := map[string]bool{}
	for _, a := range list {
		args := a.args(bed{image: "IMAGE", socket: "SOCKET"})
		if program := args[0]; !seen[program] {
			seen[program] = true
			fmt.Printf("  %s: %s\n", filepath.Base(program), versionOf(program))
		}
		fmt.Printf("    %s: %s\n", a.name, strings.Join(args[1:], " "))
	}
	for _, m := range missing {
		fmt.Printf("  missing: %s\n", m)
	}
	fmt.Println()
}

// versionOf is the first line of what a program says of its version.
func versionOf(program string) string {
	how := "--version"
	if filepath.Base(program) == ours {
		how = "version"
	}
	text, _ := exec.Command(program, how).Output()
	first, _, _ := strings.Cut(string(text), "\n")
	return first
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
