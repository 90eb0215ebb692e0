package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// engine is what the benchmarks of the engine by itself say (bench/curve_test.go).
func (m *bench) engine(ctx context.Context) (*curve, error) {
	text, err := output(ctx, "go", "test", "tidemark/bench", "-run", "^$", "-bench", "^Benchmark(Open|Mapped|MappedScattered|Chain|Idle|Metadata)$", "-benchtime", "300ms", "-count", "3")
	if err != nil {
		return nil, err
	}
	c := &curve{Name: "The engine by itself", Says: "Over files that cost nothing, the median of three: opening an image that is allocated as a whole, 4K overwrites at random in it, " +
		"with its clusters in the order of the disk and with none behind the one before it, " +
		"4K reads at random through a chain, what an idle disk of 100 GiB takes, in memory and in goroutines, what the metadata of a disk of 16 TiB takes when all of it is used.",
		Columns: []string{"benchmark", "µs; KiB or goroutines a disk; MiB"}}
	found := benchmarks(text)
	units := map[string]struct {
		unit string
		by   float64
	}{"BenchmarkOpen": {"ns/op", 1000}, "BenchmarkMapped": {"ns/op", 1000}, "BenchmarkMappedScattered": {"ns/op", 1000},
		"BenchmarkChain": {"ns/op", 1000}, "BenchmarkIdle": {"B/disk", 1024}, "BenchmarkMetadata": {"B", 1 << 20}}
	by := map[string]float64{}
	for _, f := range found {
		kind, _, _ := strings.Cut(f.name, "/")
		u := units[kind]
		by[f.name] = median(f.values[u.unit]) / u.by
		name := strings.TrimPrefix(f.name, "Benchmark")
		c.Points = append(c.Points, point{name, []float64{by[f.name]}})
		if routines, ok := f.values["goroutines/disk"]; ok {
			c.Points = append(c.Points, point{name + ", goroutines", []float64{median(routines)}})
		}
	}
	open := 0.0
	for name, v := range by {
		if strings.HasPrefix(name, "BenchmarkOpen/") {
			open = max(open, v/1000)
		}
	}
	c.Bounds = []bound{
		{"opening, up to 16 TiB", open, 50, "ms"},
		{"overwrites with 512 GiB mapped by those with 1 GiB", by["BenchmarkMapped/size=512G"] / by["BenchmarkMapped/size=1G"], 1.2, "times"},
		{"the same, the clusters in no order", by["BenchmarkMappedScattered/size=512G"] / by["BenchmarkMappedScattered/size=1G"], 1.2, "times"},
		{"an idle disk of 100 GiB in the engine", by["BenchmarkIdle/disks=1000"], 64, "KiB"},
		{"metadata of a disk of 16 TiB in memory", by["BenchmarkMetadata"], 64, "MiB"},
	}
	for _, b := range c.Bounds {
		if !(b.Value > 0) {
			return nil, fmt.Errorf("no figure for %q in %s", b.Name, text)
		}
	}
	return c, nil
}

// A benchmark is the lines of one in what go test prints.
type benchmark struct {
	name   string
	values map[string][]float64 // by unit
}

var benchmarkLine = regexp.MustCompile(`(?m)^(Benchmark\S+?)(?:-\d+)?\s+\d+\s+(.*)$`)

// benchmarks are those in the output of go test, in its order.
func benchmarks(text string) (list []benchmark) {
	at := map[string]int{}
	for _, line := range benchmarkLine.FindAllStringSubmatch(text, -1) {
		i, ok := at[line[1]]
		if !ok {
			i = len(list)
			at[line[1]] = i
			list = append(list, benchmark{line[1], map[string][]float64{}})
		}
		f := strings.Fields(line[2])
		for k := 0; k+1 < len(f); k += 2 {
			if v, err := strconv.ParseFloat(f[k], 64); err == nil {
				list[i].values[f[k+1]] = append(list[i].values[f[k+1]], v)
			}
		}
	}
	return list
}
