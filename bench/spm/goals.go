package main

// What of a cell a goal is about.
const (
	p50 = "p50"
	p99 = "p99"
	all = "all"
)

// A goal is an upper bound, in milliseconds.
type goal struct {
	Pool    string
	Ops     []string
	At      []int // nil: all
	Measure string
	Most    float64
}

var verbs = []string{opCreate, opSnapshot, opDeleteSnapshot, opDeleteVolume}

// goals is the table.
var goals = []goal{
	{onDirectory, verbs, nil, p50, 20},
	{onDirectory, verbs, nil, p99, 100},
	{onDirectory, []string{opExtend}, []int{1}, p50, 20},
	{onDirectory, []string{opExtend}, []int{1}, p99, 100},
	{onDirectory, []string{opExtend}, []int{100}, all, 2000},
	{onLVM, verbs, nil, p99, 150},
	{onLVM, []string{opExtend}, []int{1}, p99, 150},
	{onLVM, []string{opExtend}, []int{100}, all, 3000},
}

// of is the measure of a cell.
func (g goal) of(c cell) float64 {
	switch g.Measure {
	case p50:
		return c.P50
	case p99:
		return c.P99
	}
	return c.All
}
