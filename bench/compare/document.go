package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// readRuns reads the records of all runs under dir, by their names: those of their
// directories, whatever they were called before.
func readRuns(dir string) (runs []*record, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), "run-")
		if !ok {
			continue
		}
		r, err := readRecord(filepath.Join(dir, e.Name(), recordName))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		r.Run = name
		runs = append(runs, r)
	}
	if len(runs) == 0 {
		return nil, fmt.Errorf("no run under %s: expected run-ID/%s", dir, recordName)
	}
	return runs, nil
}

// worst are the verdicts of several runs, of each goal the one with the smallest ratio;
// the processor time is the largest that there was.
func worst(runs []*record) (list []verdict) {
	at := map[[2]string]int{}
	for _, r := range runs {
		for _, v := range judgeAll(r.Samples, allArms(ours)) {
			key := [2]string{v.Cell, v.Peer}
			i, ok := at[key]
			if !ok {
				at[key] = len(list)
				list = append(list, v)
				continue
			}
			cpu := max(list[i].CPU, v.CPU)
			if v.Void != "" || list[i].Void == "" && v.Ratio < list[i].Ratio {
				list[i] = v
			}
			list[i].CPU = cpu
		}
	}
	return list
}

// worstBounds are those of the curves, each the largest value that there was.
func worstBounds(runs []*record) (list []bound) {
	for _, r := range runs {
		for _, c := range r.Curves {
			for _, b := range c.Bounds {
				i := slices.IndexFunc(list, func(k bound) bool { return k.Name == b.Name })
				if i < 0 {
					list = append(list, b)
				} else if b.Value > list[i].Value {
					list[i] = b
				}
			}
		}
	}
	return list
}

// together are the samples of several runs, as rounds of one.
func together(runs []*record) (all []sample) {
	for i, r := range runs {
		for _, s := range r.Samples {
			s.Round += i * 1000
			all = append(all, s)
		}
	}
	return all
}

// writeDocument writes the document of several runs, which are of one commit, to path, and
// the chart beside it.
func writeDocument(path string, runs []*record) error {
	for _, r := range runs[1:] {
		if of, is := commitOf(runs[0].Machine), commitOf(r.Machine); of != is {
			return fmt.Errorf("run %s was measured at commit %s, and run %s at %s: expected runs of one commit; measure one of them again, or remove it", runs[0].Run, of, r.Run, is)
		}
	}
	svg := strings.TrimSuffix(path, filepath.Ext(path)) + ".svg"
	return errors.Join(
		os.WriteFile(path, []byte(document(runs, filepath.Base(svg))), 0o644),
		os.WriteFile(svg, []byte(chart(worst(runs))), 0o644),
	)
}

func document(runs []*record, svg string) string {
	var b strings.Builder
	last := runs[len(runs)-1]
	fmt.Fprintf(&b, `# Speed

Written by %[1]sgo run ./bench/compare -render -doc docs/performance.md%[1]s from %[2]d runs of %[3]d rounds of %[4]s (%[1]smake bench%[1]s);
%[1]sgo doc tidemark/bench/compare%[1]s says how it is measured. Change the program, not this file.

![How many times as fast as the best of each peer](%[5]s)

## Goals

How many times as fast as the best arm of the peer: the worst of the runs, the median of the ratios of its rounds. The interval
is %[8]s; the median alone
says what is held. The best arm is that with the largest median of its own speed in the run, chosen after it was measured.
Processor time is the server's for each operation, its children and on LVM the pool's manager included, ours by the peer's: the
largest of the runs; at most %[6]g is wanted beside QEMU, %[6]g to %[7]g is the way there. The speed of writes is that with a FLUSH and
the end of the connections. QEMU 7.2's FUSE export loses concurrent writes, and where there are any its content is not checked.

`, "`", len(runs), last.Rounds, last.Time, svg, cpuMost, cpuAim, meaning(last.Rounds))
	table(&b, []string{"cell", "beside", "at least", "aim", "measured", "interval", "", "processor time", ""}, func(add func(...string)) {
		judged := worst(runs)
		for _, v := range judged {
			word := v.word()
			if v.Void != "" {
				word = "void: " + v.Void
			}
			add(v.Cell, cellOf(v.Cell).marked(v.Arm), wish(v.Wanted), wish(v.Aim), fmt.Sprintf("%.2f", v.Ratio), fmt.Sprintf("%.2f-%.2f", v.Low, v.High), word, wish(v.CPU), v.cpuWord())
		}
		for _, g := range unmeasured(goals, judged) {
			add(g.Cell, g.Peer, wish(g.Least), wish(g.Aim), "", "", notThere, "", "")
		}
	})
	table(&b, []string{"what grows", "at most", "measured, the worst of the runs", ""}, func(add func(...string)) {
		for _, k := range worstBounds(runs) {
			add(k.Name, fmt.Sprintf("%g %s", k.Most, k.Unit), fmt.Sprintf("%.3g %s", k.Value, k.Unit), k.word())
		}
	})
	figures(&b, runs)
	for _, c := range last.Curves {
		fmt.Fprintf(&b, "## %s\n\n%s\n\n", c.Name, c.Says)
		table(&b, c.Columns, func(add func(...string)) {
			for _, p := range c.Points {
				add(append([]string{p.At}, numbers(p.Values)...)...)
			}
		})
	}
	conditions(&b, runs)
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// floorNames are those of all runs.
func floorNames(runs []*record) (names []string) {
	for _, r := range runs {
		for _, f := range r.Floors {
			names = including(names, f.Name)
		}
	}
	return names
}

// figures are the medians of all arms over all runs, and what to compare them with.
func figures(b *strings.Builder, runs []*record) {
	fmt.Fprint(b, "## Figures\n\nOperations a second, medians of all rounds of all runs.\n\n")
	table(b, append([]string{"cell", "server"}, rowColumns...), func(add func(...string)) {
		for _, r := range rowsOf(together(runs), allArms(ours)) {
			add(append([]string{r.cell, cellOf(r.cell).marked(r.arm)}, numbers(r.values)...)...)
		}
	})
	table(b, []string{"to compare with", "a second, of each run"}, func(add func(...string)) {
		for _, name := range floorNames(runs) {
			var each []string
			for _, r := range runs {
				if i := slices.IndexFunc(r.Floors, func(f floor) bool { return f.Name == name }); i >= 0 {
					each = append(each, fmt.Sprintf("%.0f", r.Floors[i].IOPS))
				} else {
					each = append(each, "not measured")
				}
			}
			add(name, strings.Join(each, ", "))
		}
	})
	table(b, []string{"cell", "server", "syncs for each flush"}, func(add func(...string)) {
		for _, s := range runs[len(runs)-1].Syncs {
			add(s.Cell, s.Arm, fmt.Sprintf("%.2f", s.PerFlush))
		}
	})
}

// conditions say what was measured on, and with what.
func conditions(b *strings.Builder, runs []*record) {
	fmt.Fprint(b, "## Conditions\n\n")
	for _, r := range runs {
		fmt.Fprintf(b, "- run %s, seed %d: %s\n", r.Run, r.Seed, strings.Join(r.Machine, "; "))
	}
	fmt.Fprint(b, "\nThe servers:\n\n")
	for _, a := range runs[len(runs)-1].Arms {
		fmt.Fprintf(b, "    %s\n", a)
	}
	for _, m := range runs[len(runs)-1].Missing {
		fmt.Fprintf(b, "    missing: %s\n", m)
	}
}

// table writes a table whose rows are added by fill; without any it writes nothing.
func table(b *strings.Builder, head []string, fill func(add func(...string))) {
	n := 0
	fill(func(cells ...string) {
		if n == 0 {
			fmt.Fprintf(b, "| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
		}
		n++
		fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
	})
	if n > 0 {
		b.WriteString("\n")
	}
}
