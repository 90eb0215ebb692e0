package main

import (
	"encoding/json"
	"fmt"
	"html"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// ours is the arm that the others are compared with.
const ours = "tidemark"

// A verdict is how ours stands in a cell beside a peer.
type verdict struct {
	Cell, Peer, Arm  string // Arm is the one that counts as the peer: the best
	Ratio, Low, High float64
	Wanted, Aim      float64 // 0: nothing is
	CPU              float64 // ours by the peer's
}

func (v verdict) word() string {
	switch {
	case v.Wanted == 0:
		return ""
	case v.Ratio >= v.Wanted:
		return "ok"
	}
	return "short"
}

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

// judgeAll compares ours with the best arm of every peer.
func judgeAll(all []sample, cells []cell, arms []arm) (list []verdict) {
	for _, c := range cells {
		name := ""
		for _, a := range arms {
			if a.ours() && a.at == c.at {
				name = a.name
			}
		}
		own := samplesOf(all, c.name, name, iops)
		for _, peer := range []string{bestQEMU, nbdkit} {
			best := ""
			for _, a := range arms {
				if a.peer() == peer && a.at == c.at && (best == "" || median(values(samplesOf(all, c.name, a.name, iops))) > median(values(samplesOf(all, c.name, best, iops)))) {
					best = a.name
				}
			}
			r := ratios(own, samplesOf(all, c.name, best, iops))
			if best == "" || len(r) == 0 {
				continue
			}
			v := verdict{Cell: c.name, Peer: peer, Arm: best, Ratio: median(r)}
			if g := goalOf(c.name, peer); g != nil {
				v.Wanted, v.Aim = g.Least, g.Aim
			}
			v.Low, v.High = interval(r)
			v.CPU = median(ratios(samplesOf(all, c.name, name, cpu), samplesOf(all, c.name, best, cpu)))
			list = append(list, v)
		}
	}
	return list
}

// printTable prints every arm of every cell.
func printTable(w io.Writer, all []sample, cells []cell, arms []arm) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "cell\tarm\tIOPS\tuntil the last reply\tp50 µs\tp99 µs\tp99.9 µs\tCPU µs/op\t")
	for _, c := range cells {
		for _, a := range arms {
			m := func(f func(sample) float64) float64 { return median(values(samplesOf(all, c.name, a.name, f))) }
			if m(iops) == 0 {
				continue
			}
			fmt.Fprintf(t, "%s\t%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.2f\t\n", c.name, a.name, m(iops), m(func(s sample) float64 { return s.IOPSOpen }),
				m(func(s sample) float64 { return s.P50 }), m(func(s sample) float64 { return s.P99 }), m(func(s sample) float64 { return s.P999 }), m(cpu))
		}
	}
	t.Flush()
	for _, s := range all {
		if s.Void != "" {
			fmt.Fprintf(w, "void: %s, %s, round %d: %s\n", s.Cell, s.Arm, s.Round, s.Void)
		}
	}
}

func printVerdicts(w io.Writer, list []verdict) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "cell\tbeside\tratio\t95 %\twanted\t\tCPU ratio\t")
	for _, v := range list {
		wanted := ""
		if v.Wanted > 0 {
			wanted = fmt.Sprintf("%.2f", v.Wanted)
		}
		fmt.Fprintf(t, "%s\t%s\t%.2f\t%.2f-%.2f\t%s\t%s\t%.2f\t\n", v.Cell, v.Arm, v.Ratio, v.Low, v.High, wanted, v.word(), v.CPU)
	}
	t.Flush()
}

// write leaves the samples, the verdicts and a chart in dir.
func write(dir string, all []sample, list []verdict) error {
	b, err := json.MarshalIndent(map[string]any{"samples": all, "verdicts": list}, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bench.json"), b, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "bench.svg"), []byte(chart(list)), 0o644)
}

// chart is a bar for each verdict, on a logarithmic scale from 1/4 to 8, with its
// interval and what is wanted.
func chart(list []verdict) string {
	const rowH, left, width = 22, 430, 420
	x := func(r float64) float64 {
		return left + width*(math.Log2(min(max(r, 0.25), 8))+2)/5
	}
	var b strings.Builder
	h := rowH*len(list) + 50
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", left+width+60, h)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	for _, r := range []float64{0.25, 0.5, 1, 2, 4, 8} {
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="24" y2="%d" stroke="#ccc"/><text x="%.1f" y="16" text-anchor="middle">%g</text>`+"\n", x(r), x(r), h-10, x(r), r)
	}
	for i, v := range list {
		y := 30 + i*rowH
		colour := "#4a7ebb"
		if v.word() == "short" {
			colour = "#c0504d"
		}
		from, to := min(x(1), x(v.Ratio)), max(x(1), x(v.Ratio))
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`, left-8, y+12, html.EscapeString(v.Cell+" / "+v.Peer))
		fmt.Fprintf(&b, `<rect x="%.1f" y="%d" width="%.1f" height="14" fill="%s"/>`, from, y, to-from, colour)
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="black"/>`, x(v.Low), x(v.High), y+7, y+7)
		if v.Wanted > 0 {
			fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#2a2" stroke-width="2"/>`, x(v.Wanted), x(v.Wanted), y-2, y+16)
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%d">%.2f</text>`+"\n", max(to, x(v.High))+6, y+12, v.Ratio)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
