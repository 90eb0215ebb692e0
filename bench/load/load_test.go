package load

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHistogram(t *testing.T) {
	var h Histogram
	require.Zero(t, h.Quantile(0.5))
	for i := range int64(1000) {
		h.Add(time.Duration(i+1)*time.Microsecond, 1)
	}
	require.EqualValues(t, 1000, h.Count())
	for q, want := range map[float64]time.Duration{0: time.Microsecond, 0.5: 500 * time.Microsecond, 0.99: 990 * time.Microsecond, 1: time.Millisecond} {
		got := h.Quantile(q)
		require.LessOrEqual(t, got, want)
		require.Greater(t, float64(got), float64(want)*0.96)
	}
	var sum Histogram
	sum.Add(time.Hour, 1)
	sum.Merge(&h)
	require.EqualValues(t, 1001, sum.Count())
	require.Greater(t, sum.Quantile(1), 55*time.Minute)
	for b := range 1500 {
		require.Equal(t, b, bucketOf(lowest(b)))
	}
}

// TestWalks: the connections of a Job that asks no place twice share all of them, and
// a random one leaves none out for ever.
func TestWalks(t *testing.T) {
	for _, j := range []Job{
		{Block: 4096, Set: 1000 * 4096, Conns: 4, Once: true},
		{Block: 4096, Set: 1000 << 16, Stride: 1 << 16, Conns: 1, Once: true, Sequential: true},
	} {
		j = j.withDefaults()
		seen := map[int64]int{}
		for i := range j.Conns {
			w := j.walkOf(i)
			for p, ok := w.at(); ok; p, ok = w.at() {
				seen[p]++
			}
		}
		require.Len(t, seen, 1000)
	}
	w, seen := Job{Block: 512, Set: 32 * 512, Seed: 7}.withDefaults().walkOf(0), map[int64]bool{}
	for range 2000 {
		p, ok := w.at()
		require.True(t, ok)
		seen[p] = true
	}
	require.Len(t, seen, 32)
}

// TestFile: what a Job says that it has written to a file is there, with its stamps,
// and nothing else was written.
func TestFile(t *testing.T) {
	for _, j := range []Job{
		{Block: 4096, Set: 1 << 22, Stride: 8192, Depth: 16, Duration: 5 * time.Millisecond, Seed: 3},
		{Block: 4096, Set: 3 << 20, Conns: 3, Once: true, Duration: time.Minute, Seed: 1 << 60},
		{Block: 8192, Set: 1 << 22, Depth: 8, Once: true, Sequential: true, Duration: time.Minute, Seed: 5},
	} {
		path := filepath.Join(t.TempDir(), "disk")
		before := bytes.Repeat([]byte{1}, int(j.Set))
		require.NoError(t, os.WriteFile(path, before, 0o600))
		r, err := RunFile(path, j)
		require.NoError(t, err)
		require.Positive(t, r.Ops)
		require.Equal(t, r.Ops, r.Latency.Count())
		after, err := os.ReadFile(path)
		require.NoError(t, err)
		written, rest := r.Sample(j, 1<<20), r.Untouched(j, 1<<20)
		if j.Once {
			require.EqualValues(t, len(written), r.Ops)
			require.Empty(t, rest)
		}
		for _, off := range written {
			require.NoError(t, CheckStamp(j.Seed)(off, after[off:][:j.Block]))
			require.Error(t, CheckFormer(1)(off, after[off:][:j.Block]))
			after[off+int64(j.Block)-1]++
			require.ErrorContains(t, CheckStamp(j.Seed)(off, after[off:][:j.Block]), fmt.Sprintf("at byte %d of the block", j.Block-16), "its end as well")
			copy(after[off:], before[:j.Block])
		}
		require.Equal(t, before, after)
		_, err = RunFile(path, Job{Op: Read, Block: 4096, Set: 1 << 22})
		require.ErrorContains(t, err, "expected writes")
	}
}
