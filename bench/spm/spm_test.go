package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// smoke are options with which everything is done, hardly ever.
func smoke(t *testing.T) options {
	t.Helper()
	seed, _ := testenv.Seed(t)
	o := options{
		tidemark: filepath.Join(t.TempDir(), "tidemark"), work: t.TempDir(), runDir: t.TempDir(),
		seed: seed, volumes: []int{10}, verbs: 1, crossing: []int{1, 10}, rounds: 1,
	}
	build(t, "-ldflags", "-X main.runDir="+o.runDir, "-o", o.tidemark, "tidemark/cmd/tidemark")
	return o
}

// build takes minutes on a machine that has built nothing yet and does something else too.
func build(t *testing.T, args ...string) {
	t.Helper()
	r := testenv.TryFor(t, 10*time.Minute, "go", append([]string{"build"}, args...)...)
	require.NoError(t, r.Err, r)
}

// requireCells requires that each operation was timed in each of its cells.
func requireCells(t *testing.T, pool string, cells []cell) {
	t.Helper()
	require.Len(t, cells, len(verbs)+2)
	for _, c := range cells {
		require.Equal(t, pool, c.Pool)
		require.Positive(t, c.P50, "%s", c.Op)
		require.LessOrEqual(t, c.P50, c.P99)
		require.LessOrEqual(t, c.P99, c.Max)
		if c.Op == opExtend {
			require.GreaterOrEqual(t, c.All, c.Max)
		}
	}
}

func requireEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestDirectorySmoke(t *testing.T) {
	o := smoke(t)
	cells, err := measureDirectory(t.Context(), o)
	require.NoError(t, err)
	requireCells(t, onDirectory, cells)
	require.Len(t, judge(cells), 2*len(verbs)+2)
	requireEmpty(t, o.work)
}

func TestGroupSmoke(t *testing.T) {
	testenv.Need(t, "root")
	testenv.Need(t, "loop")
	testenv.Tool(t, "lvm")
	testenv.Tool(t, "losetup")
	o := smoke(t)
	o.lvm = filepath.Join(t.TempDir(), "bench") // a test program takes long to start
	build(t, "-o", o.lvm, "tidemark/bench/spm")
	cells, err := measureOwn(t.Context(), o)
	require.NoError(t, err)
	requireCells(t, onLVM, cells)
	for _, c := range cells {
		require.GreaterOrEqual(t, c.LVMCommands, 1.0, "%s: a change, and perhaps a look at it, that others may share", c.Op)
		if c.Op == opExtend && c.At > 1 {
			require.Less(t, c.LVMCommands, 2.0, "those that cross at once share looks")
		}
		require.LessOrEqual(t, c.LVMCommands, 8.0, "%s", c.Op)
		require.Positive(t, c.LVM, "%s", c.Op)
	}
	theirs, err := measureMailbox(t.Context(), o)
	require.NoError(t, err)
	require.Len(t, theirs, 2)
	for _, c := range theirs {
		require.InDelta(t, 1, c.LVMCommands, 0)
	}
	requireEmpty(t, o.work)
}

func TestQuantiles(t *testing.T) {
	times := make([]time.Duration, 100)
	for i := range times {
		times[i] = time.Duration(100-i) * time.Millisecond
	}
	c := newCell(onLVM, opExtend, 1, times)
	require.Equal(t, []float64{50, 99, 100}, []float64{c.P50, c.P99, c.Max})
	require.Zero(t, newCell(onLVM, opExtend, 1, nil).Max)
}

// What is measured is judged, and what is missed is said.
func TestVerdicts(t *testing.T) {
	r := record{Parts: map[string]part{
		"directory": {Cells: []cell{
			{Pool: onDirectory, Op: opCreate, At: 10, N: 101, P50: 20, P99: 101, Max: 102},
			{Pool: onDirectory, Op: opSnapshot, At: 10, N: 100, P50: 20, P99: 12.5, Max: 13},
		}},
		"lvm": {Cells: []cell{{Pool: onLVM, Op: opExtend, At: 100, All: 2999}, {Pool: onLVM, Op: opExtend, At: 10, All: 1e6}}},
		"own": {Cells: []cell{{Pool: onLVM, Op: opExtend, At: 100, LVMCommands: 2, LVM: 20}}},
	}}
	var out strings.Builder
	require.Equal(t, 2, r.print(&out))
	require.Contains(t, out.String(), "| directory | createVolume | 10 | p50 | 20 | 20.0 | held |")
	require.Contains(t, out.String(), "| directory | createVolume | 10 | p99 | 100 | 101.0 | missed |")
	require.Contains(t, out.String(), "| directory | createVolume | 10 | 101 | 20.0 | 101.0 | 102.0 |")
	require.Contains(t, out.String(), "| directory | snapshot | 10 | p99 | 100 | 12.5 | too few timed |")
	require.Contains(t, out.String(), "| directory | snapshot | 10 | 100 | 20.0 |  | 13.0 |", "of a hundred it is the maximum")
	require.Contains(t, out.String(), "| LVM | extension | 100 | all | 3000 | 2999.0 | held |")
	require.Contains(t, out.String(), "| 2999.0 | 2.0 | 20.0 |")
}

// Whatever has a goal for its 99th percentile is timed often enough to have one.
func TestTimedOftenEnough(t *testing.T) {
	o, err := parse(nil)
	require.NoError(t, err)
	require.GreaterOrEqual(t, o.verbs, tailNeeds)
	require.GreaterOrEqual(t, o.rounds*alone, tailNeeds)
}

// A record is of one commit.
func TestRecordIsOfOneCommit(t *testing.T) {
	begun := func(commit string, had ...string) *record {
		r := &record{Commit: commit, Parts: map[string]part{}}
		for _, name := range had {
			r.Parts[name] = part{Seed: 1}
		}
		return r
	}
	everything := []string{"directory", "lvm", "own", "vdsm"}
	for name, c := range map[string]struct {
		had     *record
		now     string
		parts   []string
		refused string
		kept    []string
	}{
		"the first":                 {begun(""), "b", everything[:1], "", nil},
		"go on":                     {begun("a", "directory", "lvm"), "a", everything[1:], "", everything[:1]},
		"go on at another":          {begun("a", "directory", "lvm"), "b", everything[1:], `directory was measured at commit "a", and the tree is at "b"`, nil},
		"of before":                 {begun("", "directory", "lvm"), "b", everything[1:], `directory was measured at commit "", and the tree is at "b"`, nil},
		"all at another":            {begun("a", everything...), "b", everything, "", nil},
		"all that there is":         {begun("a", "lvm"), "b", everything[1:2], "", nil},
		"go on with what is dirty":  {begun("a-dirty", "vdsm"), "a-dirty", everything[:1], "expected a tree whose changes are committed", nil},
		"all of what is dirty":      {begun("a-dirty", "vdsm"), "a-dirty", everything, "", nil},
		"nothing, where it is read": {begun("a", "vdsm"), "b", nil, "", []string{"vdsm"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.had.begin(c.now, c.parts)
			if c.refused != "" {
				require.ErrorContains(t, err, c.refused)
				return
			}
			require.NoError(t, err)
			require.ElementsMatch(t, c.kept, slices.Collect(maps.Keys(c.had.Parts)))
			if c.parts != nil {
				require.Equal(t, c.now, c.had.Commit)
				require.Contains(t, c.had.document(), "All parts are of tidemark commit "+c.now+".")
			}
		})
	}
}
