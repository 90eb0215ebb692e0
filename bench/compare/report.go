package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// ours is the arm that the others are compared with.
const ours = "tidemark"

// A verdict is how ours stands in a cell beside a peer.
type verdict struct {
	Cell, Peer, Arm  string // Arm is the one that counts as the peer: with the best median of its own
	Ratio, Low, High float64
	Wanted, Aim      float64 // 0: nothing is
	CPU              float64 // ours by the peer's
	Void             string  // why ours does not count
}

// word says whether what is wanted is held; "" if nothing is.
func (v verdict) word() string {
	switch {
	case v.Wanted == 0:
		return ""
	case v.Void == "" && v.Ratio >= v.Wanted:
		return held
	}
	return missed
}

// cpuWord says the same of the processor time, which is compared with QEMU's.
func (v verdict) cpuWord() string {
	switch {
	case v.Peer != bestQEMU:
		return ""
	case v.Void == "" && v.CPU <= cpuMost:
		return held
	}
	return missed
}

const (
	held     = "held"
	missed   = "missed"
	notThere = "not measured"
)

// samplesOf are the values of an arm in a cell, by round; void ones are left out.
func samplesOf(all []sample, cell, arm string, value func(sample) float64) map[int]float64 {
	m := map[int]float64{}
	for _, s := range all {
		if s.Cell == cell && s.Arm == arm && s.Void == "" {
			m[s.Round] = value(s)
		}
	}
	return m
}

func iops(s sample) float64 { return s.IOPS }
func cpu(s sample) float64  { return s.CPU }

func values(m map[int]float64) (list []float64) {
	for _, v := range m {
		list = append(list, v)
	}
	return list
}

// ratios are those of the rounds that both have.
func ratios(a, b map[int]float64) (list []float64) {
	for round, v := range a {
		if w := b[round]; w > 0 {
			list = append(list, v/w)
		}
	}
	return list
}

// judgeAll compares ours with the best arm of the peer of every row of the goals that
// something was measured for.
func judgeAll(all []sample, arms []arm) (list []verdict) {
	for _, g := range goals {
		own, best := "", ""
		for _, a := range arms {
			speed := func(arm string) float64 { return median(values(samplesOf(all, g.Cell, arm, iops))) }
			switch {
			case a.at != cellOf(g.Cell).at:
			case a.ours():
				own = a.name
			case a.peer() == g.Peer && (best == "" || speed(a.name) > speed(best)):
				best = a.name
			}
		}
		v := verdict{Cell: g.Cell, Peer: g.Peer, Arm: best, Wanted: g.Least, Aim: g.Aim}
		for _, s := range all {
			if s.Cell == g.Cell && s.Arm == own && s.Void != "" {
				v.Void = s.Void
			}
		}
		r := ratios(samplesOf(all, g.Cell, own, iops), samplesOf(all, g.Cell, best, iops))
		if len(r) == 0 && v.Void == "" {
			continue
		}
		v.Ratio = median(r)
		v.Low, v.High = interval(r)
		v.CPU = median(ratios(samplesOf(all, g.Cell, own, cpu), samplesOf(all, g.Cell, best, cpu)))
		list = append(list, v)
	}
	return list
}

// cellOf is the cell with a name.
func cellOf(name string) cell {
	for _, c := range cells() {
		if c.name == name {
			return c
		}
	}
	return cell{}
}

// A row is an arm in a cell: medians.
type row struct {
	cell, arm string
	values    []float64 // as rowColumns
}

var rowColumns = []string{"IOPS", "until the last reply", "p50 µs", "p99 µs", "p99.9 µs", "CPU µs/op"}

func rowsOf(all []sample, arms []arm) (list []row) {
	for _, c := range cells() {
		for _, a := range arms {
			m := func(f func(sample) float64) float64 { return median(values(samplesOf(all, c.name, a.name, f))) }
			if m(iops) == 0 {
				continue
			}
			list = append(list, row{cell: c.name, arm: a.name, values: []float64{m(iops), m(func(s sample) float64 { return s.IOPSOpen }),
				m(func(s sample) float64 { return s.P50 }), m(func(s sample) float64 { return s.P99 }), m(func(s sample) float64 { return s.P999 }), m(cpu)}})
		}
	}
	return list
}

// report prints a run, and returns how many goals it misses, and of those that are
// expected does not have.
func report(w io.Writer, r *record, expected expectation) (misses int) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "cell\tarm\t%s\t\n", strings.Join(rowColumns, "\t"))
	for _, row := range rowsOf(r.Samples, allArms(ours)) {
		fmt.Fprintf(t, "%s\t%s\t%s\t\n", row.cell, cellOf(row.cell).marked(row.arm), strings.Join(numbers(row.values), "\t"))
	}
	for _, c := range r.Curves {
		fmt.Fprintf(t, "\t\n%s\t\n%s\t\n", c.Name, strings.Join(c.Columns, "\t"))
		for _, p := range c.Points {
			fmt.Fprintf(t, "%s\t%s\t\n", p.At, strings.Join(numbers(p.Values), "\t"))
		}
	}
	t.Flush()
	for _, f := range r.Floors {
		fmt.Fprintf(w, "%s: %.0f a second\n", f.Name, f.IOPS)
	}
	for _, s := range r.Syncs {
		fmt.Fprintf(w, "%s, %s: %.2f syncs for each flush\n", s.Cell, s.Arm, s.PerFlush)
	}
	for _, s := range r.Samples {
		if s.Void != "" {
			fmt.Fprintf(w, "void: %s, %s, round %d: %s\n", s.Cell, s.Arm, s.Round, s.Void)
		}
	}
	fmt.Fprintln(w)
	return printGoals(w, r, expected)
}

// printGoals prints a line for every goal, and returns how many are missed or, if they
// are expected, not measured.
func printGoals(w io.Writer, r *record, expected expectation) (misses int) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "goal\tbeside\tat least\taim\tmeasured\tinterval\t\tCPU ratio\t\t")
	judged := judgeAll(r.Samples, allArms(ours))
	for _, v := range judged {
		for _, word := range []string{v.word(), v.cpuWord()} {
			if word == missed {
				misses++
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%.2f\t%.2f-%.2f\t%s\t%s\t%s\t\n", v.Cell, cellOf(v.Cell).marked(v.Arm), wish(v.Wanted), wish(v.Aim), v.Ratio, v.Low, v.High, v.word(), wish(v.CPU), v.cpuWord())
	}
	absent := 0
	for _, g := range unmeasured(expected.goals, judged) {
		if g.Least > 0 {
			absent++
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t\t\t%s\t\t\t\n", g.Cell, g.Peer, wish(g.Least), wish(g.Aim), notThere)
	}
	fmt.Fprintln(t, "goal\t\tat most\t\tmeasured\t")
	for _, c := range r.Curves {
		for _, b := range c.Bounds {
			if b.word() == missed {
				misses++
			}
			fmt.Fprintf(t, "%s\t\t%g %s\t\t%.3g\t\t%s\t\n", b.Name, b.Most, b.Unit, b.Value, b.word())
		}
	}
	for _, name := range expected.curves {
		if !slices.ContainsFunc(r.Curves, func(c curve) bool { return c.ID == name }) {
			absent++
			fmt.Fprintf(t, "curve %s\t\t\t\t\t\t%s\t\n", name, notThere)
		}
	}
	t.Flush()
	fmt.Fprintf(w, "The interval is %s; what counts is the median.\n", meaning(r.Rounds))
	fmt.Fprintf(w, "%d goals are missed, %d were to be measured and were not\n", misses, absent)
	return misses + absent
}

// wish is what is wanted, or was measured; "" for nothing.
func wish(n float64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", n)
}

// numbers have as many digits as say something.
func numbers(list []float64) (out []string) {
	for _, n := range list {
		switch {
		case n >= 100 || n == math.Trunc(n):
			out = append(out, fmt.Sprintf("%.0f", n))
		default:
			out = append(out, fmt.Sprintf("%.2f", n))
		}
	}
	return out
}
