package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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

// TestVerdicts: the peer is the best arm of its kind, rounds are paired, and what is
// void does not count.
func TestVerdicts(t *testing.T) {
	c := cell{name: "4K allocating, QD1"} // of which nothing is wanted beside nbdkit
	require.InDelta(t, 1.8, goalOf(c.name, bestQEMU).Least, 0)
	list := []arm{{name: ours}, {name: "q1", qemu: true}, {name: "q2", qemu: true}, {name: "k", raw: true}}
	var all []sample
	for round, speed := range []float64{1, 3, 0.5} { // the machine's
		for name, n := range map[string]float64{ours: 300, "q1": 100, "q2": 120, "k": 600} {
			all = append(all, sample{Cell: c.name, Arm: name, Round: round, IOPS: n * speed, CPU: n / 100})
		}
	}
	all = append(all, sample{Cell: c.name, Arm: "q1", Round: 3, IOPS: 1e9, Void: "it lost a block"})
	v := judgeAll(all, []cell{c}, list)
	require.Len(t, v, 2)
	require.Equal(t, "q2", v[0].Arm)
	require.InDelta(t, 2.5, v[0].Ratio, 1e-9)
	require.InDelta(t, 2.5, v[0].Low, 1e-9)
	require.InDelta(t, 2.5, v[0].CPU, 1e-9)
	require.Equal(t, "ok", v[0].word())
	require.Equal(t, nbdkit, v[1].Peer)
	require.InDelta(t, 0.5, v[1].Ratio, 1e-9)
	require.Empty(t, v[1].word(), "nothing is wanted")

	d := xml.NewDecoder(strings.NewReader(chart(v)))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
}

// TestCellsAreJobs: names differ, and each job can be done.
func TestCellsAreJobs(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range cells() {
		require.False(t, seen[c.name], c.name)
		seen[c.name] = true
		require.LessOrEqual(t, c.job.Set, c.image.size, c.name)
		require.NotNil(t, goalOf(c.name, bestQEMU), c.name)
	}
	for _, g := range goals {
		require.True(t, seen[g.Cell], g.Cell)
	}
}
