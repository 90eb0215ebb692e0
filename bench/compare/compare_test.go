package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/bench/load"
)

func TestMedianAndInterval(t *testing.T) {
	require.Zero(t, median(nil))
	require.InDelta(t, 2, median([]float64{9, 1, 2}), 0)
	require.InDelta(t, 2.5, median([]float64{3, 1, 2, 9}), 0)
	low, high := interval([]float64{1, 2, 3})
	require.InDelta(t, 1, low, 0)
	require.InDelta(t, 3, high, 0)
	low, high = interval([]float64{2, 2.1, 1.9, 2, 2, 2.05, 1.95, 2, 2, 2})
	require.InDelta(t, 2, low, 0.05)
	require.InDelta(t, 2, high, 0.05)
}

// TestIntervalsAreWhatTheySay: their range below six values, narrower from there on.
func TestIntervalsAreWhatTheySay(t *testing.T) {
	for n := 1; n <= 12; n++ {
		var list []float64
		for i := range n {
			list = append(list, float64(i+1))
		}
		low, high := interval(list)
		require.Equal(t, n < fewRounds, low == 1 && high == float64(n), n)
	}
	require.Contains(t, meaning(3), "with 3 rounds have the median between them in 75 of 100 cases")
	require.Contains(t, meaning(5), "in 94 of 100")
	require.Contains(t, meaning(10), "95 %")
}

// spoken are samples of a cell of three rounds, in which the machine was not as fast.
func spoken(cell string, speeds map[string]float64) (all []sample) {
	for round, speed := range []float64{1, 3, 0.5} {
		for name, n := range speeds {
			all = append(all, sample{Cell: cell, Arm: name, Round: round, IOPS: n * speed, CPU: n / 100})
		}
	}
	return all
}

// TestVerdicts: the peer is the best arm of its kind, rounds are paired, and what is
// void does not count.
func TestVerdicts(t *testing.T) {
	const cell = "4K overwrite, QD32, 16 MiB" // 1.4 times QEMU, 0.95 times nbdkit
	list := []arm{{name: ours}, {name: "q1", qemu: true}, {name: "q2", qemu: true}, {name: "k", raw: true}}
	all := spoken(cell, map[string]float64{ours: 300, "q1": 100, "q2": 120, "k": 600})
	all = append(all, sample{Cell: cell, Arm: "q1", Round: 3, IOPS: 1e9, Void: "it lost a block"})
	v := judgeAll(all, list)
	require.Len(t, v, 2)
	require.Equal(t, "q2", v[0].Arm)
	require.InDelta(t, 2.5, v[0].Ratio, 1e-9)
	require.InDelta(t, 2.5, v[0].Low, 1e-9)
	require.InDelta(t, 2.5, v[0].CPU, 1e-9)
	require.Equal(t, held, v[0].word())
	require.Equal(t, missed, v[0].cpuWord())
	require.Equal(t, nbdkit, v[1].Peer)
	require.InDelta(t, 0.5, v[1].Ratio, 1e-9)
	require.Equal(t, missed, v[1].word())
	require.Empty(t, v[1].cpuWord(), "nothing is wanted")

	all = append(all, sample{Cell: cell, Arm: ours, Round: 3, IOPS: 1e9, Void: "it lost a block"})
	require.Equal(t, missed, judgeAll(all, list)[0].word(), "ours may lose nothing, ever")

	d := xml.NewDecoder(strings.NewReader(chart(v)))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
}

// TestDocument: of several runs the worst counts, of the speed, the processor time and
// what grows; and a run can be kept and gone on with.
func TestDocument(t *testing.T) {
	const cell = "4K allocating, QD1"
	dir := filepath.Join(t.TempDir(), "o[1]")
	require.NoError(t, os.Mkdir(dir, 0o755))
	_, err := readRuns(dir)
	require.ErrorContains(t, err, "no run under")
	for i, own := range []float64{300, 170, 250} {
		o := options{run: string(rune('a' + i)), out: filepath.Join(dir, "run-"+string(rune('a'+i)))}
		require.NoError(t, os.Mkdir(o.out, 0o755))
		r := newRecord(o)
		r.Floors = []floor{{nullFloor(1), own}}
		r.Samples = spoken(cell, map[string]float64{ours: own, "qemu-nbd, threads": 100, "qemu-nbd, io_uring": 50})
		r.Curves = []curve{{Name: "C", Columns: []string{"x", "y"}, Points: []point{{"1", []float64{2.5}}}, Bounds: []bound{{"b", own, 200, "KiB"}}}}
		require.NoError(t, r.keep())
		again, err := newRecord(o).orKept()
		require.NoError(t, err)
		require.True(t, again.has(cell, ours, 2))
		require.False(t, again.has(cell, ours, 3))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "run-without"), 0o755))
	runs, err := readRuns(dir)
	require.NoError(t, err)
	require.Len(t, runs, 3)
	require.NoError(t, os.Rename(filepath.Join(dir, "run-c"), filepath.Join(dir, "run-d")))
	copied, err := (&record{Run: "d", directory: filepath.Join(dir, "run-d"), Time: runs[2].Time}).orKept()
	require.NoError(t, err)
	require.Equal(t, "d", copied.Run, "the name is that of the directory")
	moved, err := readRuns(dir)
	require.NoError(t, err)
	require.Equal(t, "d", moved[2].Run)
	v := worst(runs)
	require.Len(t, v, 1)
	require.InDelta(t, 1.7, v[0].Ratio, 1e-9)
	require.InDelta(t, 3, v[0].CPU, 1e-9)
	require.Equal(t, missed, v[0].word())
	require.InDelta(t, 300, worstBounds(runs)[0].Value, 0)
	text := document(runs, "c.svg")
	require.Contains(t, text, "| 4K allocating, QD1 | qemu-nbd, threads | 1.80 | 2.20 | 1.70 | 1.70-1.70 | missed | 3.00 | missed |")
	require.Contains(t, text, "| "+nullFloor(1)+" | 300, 170, 250 |")
	require.Contains(t, text, "| 4K overwrite, QD1, fio | best QEMU | 1.10 | 1.30 |  |  | not measured |  |  |")
	require.Contains(t, text, "| b | 200 KiB | 300 KiB | missed |")
	require.Equal(t, 2, report(io.Discard, runs[1], expectation{}), "the ratio and the processor time; what grows is held")

	doc := filepath.Join(t.TempDir(), "d.md")
	require.NoError(t, writeDocument(doc, runs))
	runs[1].Machine = []string{commitIs + "abc"}
	require.ErrorContains(t, writeDocument(doc, runs), "run b at abc: expected runs of one commit")
}

// TestBuiltOf: what is measured is what the record names.
func TestBuiltOf(t *testing.T) {
	of := []debug.BuildSetting{{Key: "vcs", Value: "git"}, {Key: "vcs.revision", Value: "abc"}}
	require.NoError(t, builtOf("p", of, "abc"))
	require.NoError(t, builtOf("p", of[:1], "abc"))
	require.ErrorContains(t, builtOf("p", of, "abd"), "p was built of commit abc, and the tree is at abd")
}

// TestOptionsThatMeasureNothing are refused.
func TestOptionsThatMeasureNothing(t *testing.T) {
	for args, want := range map[string]string{
		"-cells nosuch":                 "-cells nosuch: expected a pattern",
		"-curves nosuch":                "-curves nosuch: expected a pattern",
		"-arms nosuch":                  "-arms nosuch: expected a pattern",
		"-cells - -curves ^-":           "nothing to measure",
		"-rounds 0":                     "-rounds 0: expected 1 or more",
		"-rounds -1":                    "-rounds -1: expected 1 or more",
		"-time 0s":                      "-time 0s",
		"-rounds 1 more":                `["more"] behind the flags`,
		"-run-id a/b":                   `-run-id "a/b": expected letters`,
		"-cells LVM -curves - -arms -":  "",
		"-cells - -curves dirty":        "",
		"-render -out /tmp/o[1] -doc d": "",
	} {
		_, err := parse(strings.Fields(args), io.Discard)
		if want == "" {
			require.NoError(t, err, args)
		} else {
			require.ErrorContains(t, err, want, args)
		}
	}
}

// TestGoalsThatWereNotMeasured do not vanish, if all that they need was chosen.
func TestGoalsThatWereNotMeasured(t *testing.T) {
	expected := func(args ...string) []goal {
		o, err := parse(args, io.Discard)
		require.NoError(t, err)
		return o.expected().goals
	}
	require.Equal(t, goals, expected())
	require.Equal(t, []goal{{"4K allocating, QD1", bestQEMU, 1.8, 2.2}}, expected("-cells", "^4K allocating, QD1$"))
	require.Equal(t, []goal{{"4K overwrite, QD32, 16 MiB", nbdkit, 0.95, 1.1}}, expected("-cells", "16 MiB", "-arms", "nbdkit|threads"), "qemu-storage-daemon is not there")
	require.Empty(t, expected("-cells", "-"))

	list := expectation{expected("-cells", "QD32, 16 MiB"), []string{"latency"}}
	r := &record{Rounds: 3, Samples: spoken("4K overwrite, QD32, 16 MiB", map[string]float64{ours: 300, "qemu-nbd, threads": 100})}
	var text strings.Builder
	require.Equal(t, 3, report(&text, r, list), "the processor time is missed, nbdkit and the latency were not measured")
	require.Contains(t, text.String(), "1 goals are missed, 2 were to be measured and were not")
}

// TestGoingOn: results are of one commit and one time of a turn; when it began stays.
func TestGoingOn(t *testing.T) {
	of := func(date, commit, turn string) *record {
		return &record{Rounds: 2, Time: turn, Machine: []string{"2 processors", date, commitIs + commit, "qemu-nbd 7"}, Arms: []string{"a: x"}}
	}
	kept, now := of("2026-01-01 10:00 UTC", "abc", "1s"), of("2026-01-02 11:00 UTC", "abc", "1s")
	now.Rounds, now.Machine, now.Arms = 3, append(now.Machine, "fio-3"), []string{"b: y"}
	require.NoError(t, kept.goOn(now))
	require.Equal(t, []string{"2 processors", "2026-01-01 10:00 UTC", commitIs + "abc", "qemu-nbd 7", "fio-3"}, kept.Machine)
	require.Equal(t, []string{"a: x", "b: y"}, kept.Arms)
	require.Equal(t, 3, kept.Rounds)

	require.ErrorContains(t, kept.goOn(of("", "abd", "1s")), "at commit abc, and the tree is at abd")
	require.ErrorContains(t, kept.goOn(of("", "abc"+dirty, "1s")), "the tree is at abc-dirty")
	require.ErrorContains(t, of("", "abc"+dirty, "1s").goOn(of("", "abc"+dirty, "1s")), "expected a tree whose changes are committed")
	require.ErrorContains(t, kept.goOn(of("", "abc", "5s")), "turns are of 1s: expected that time, found 5s")
}

// TestBenchmarksAreRead: the figures of go test, of several times the same.
func TestBenchmarksAreRead(t *testing.T) {
	found := benchmarks("goos: linux\nBenchmarkOpen/size=1G-2   \t 10\t 1500 ns/op\t 20 B/op\nBenchmarkOpen/size=1G-2 \t 10\t 2500 ns/op\t 20 B/op\nBenchmarkMetadata \t 1\t 5 ns/op\t 77 B\nPASS\n")
	require.Len(t, found, 2)
	require.Equal(t, "BenchmarkOpen/size=1G", found[0].name)
	require.Equal(t, []float64{1500, 2500}, found[0].values["ns/op"])
	require.Equal(t, []float64{77}, found[1].values["B"])
}

// TestCellsAreJobs: names differ, and each job can be done.
func TestCellsAreJobs(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range cells() {
		require.False(t, seen[c.name], c.name)
		seen[c.name] = true
		size := c.image.size
		if c.at == onLVM {
			size = volumeSize
		}
		require.LessOrEqual(t, c.job.Set, size, c.name)
		require.NotNil(t, goalOf(c.name, bestQEMU), c.name)
	}
	for _, g := range goals {
		require.True(t, seen[g.Cell], g.Cell)
	}
}

// TestContent: how much is read back, what fio may have left, and which row is marked.
func TestContent(t *testing.T) {
	whole, heads := split([]int64{0, 1, 2, 3, 4, 5, 6}, 3)
	require.Equal(t, []int64{0, 3, 6}, whole)
	require.Equal(t, []int64{1, 2, 4, 5}, heads)
	whole, heads = split([]int64{7, 8}, 3)
	require.Equal(t, []int64{7, 8}, whole)
	require.Empty(t, heads)

	block := bytes.Repeat([]byte{0, 0x10, 0, 0, 0, 0, 0, 0}, 512)
	require.NoError(t, checkFio(4096, block))
	require.NoError(t, checkFio(0, make([]byte, 4096)), "its offset")
	require.Error(t, checkFio(4096, bytes.Repeat([]byte{1}, 4096)), "lost")
	require.Error(t, checkFio(4096, make([]byte, 4096)), "nothing was zero")
	block[4095] = 1
	require.Error(t, checkFio(4096, block), "torn")

	places, err := fioPlaces("0, 29044, 1, 4096, 8192, 0\n3, 2, 1, 4096, 4096, 0\n", load.Job{Block: 4096, Set: 16384})
	require.NoError(t, err)
	require.Equal(t, load.Places{0b110}, places)
	for _, wrong := range []string{"0, 1, 1, 4096\n", "0, 1, 1, 4096, 16384, 0\n", "0, 1, 1, 4096, 512, 0\n", "0, 1, 1, 4096, x\n"} {
		_, err := fioPlaces(wrong, load.Job{Block: 4096, Set: 16384})
		require.ErrorContains(t, err, "where fio wrote: expected", wrong)
	}

	require.Equal(t, "qemu-storage-daemon, fuse (content not checked)", cellOf("FUSE 4K overwrite, 4 jobs").marked("qemu-storage-daemon, fuse"))
	require.Equal(t, "qemu-storage-daemon, fuse", cellOf("FUSE 4K overwrite, QD1").marked("qemu-storage-daemon, fuse"))
	require.Equal(t, ours+", mount", cellOf("FUSE 4K overwrite, 4 jobs").marked(ours+", mount"))
}

// TestWhatThisMachineCannotDo is named, and does not stop the rest.
func TestWhatThisMachineCannotDo(t *testing.T) {
	rest, missing := possible(cells(), func(need string) error {
		if need == "root" || need == "fio" {
			return errors.New("no " + need)
		}
		return nil
	})
	require.Len(t, missing, len(lvmCells())+2)
	require.Len(t, rest, len(cells())-len(missing))
	require.Equal(t, `the cell "4K overwrite, QD1, fio": no fio`, missing[0])
	require.Equal(t, `the cell "LVM 4K overwrite, QD32": no root`, missing[1])
	for _, c := range rest {
		require.False(t, c.loop || c.at == onLVM, c.name)
	}
}

// What is removed at the end is never a directory that was named: others' files may be there.
func TestWorkIsNotWhatWasNamed(t *testing.T) {
	for _, flag := range []string{"-work", "-out"} {
		dir := t.TempDir()
		theirs := filepath.Join(dir, "work")
		require.NoError(t, os.Mkdir(theirs, 0o700))
		o, err := parse([]string{flag, dir}, io.Discard)
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(o.work, 0o700))
		(&bench{work: o.work}).clean()
		require.NoDirExists(t, o.work)
		require.DirExists(t, theirs, "%s", flag)
	}
}
