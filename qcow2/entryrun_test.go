package qcow2

import (
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/qcow2/format"
)

var clusters64K = format.Geometry{Version: 3, ClusterBits: 16}

// inOrder are n entries of clusters from first on, with these marks.
func inOrder(g format.Geometry, first int64, n int, marks format.L2Entry) []format.L2Pair {
	pairs := make([]format.L2Pair, n)
	for i := range pairs {
		pairs[i].Entry = format.L2Entry((first+int64(i))<<g.ClusterBits) | marks
	}
	return pairs
}

// TestRunOf: entries are a run if they name cluster after cluster with the same marks, of
// clusters that fit into a narrow word, up to the last that is not 0, and there are enough
// of them, in a slice of the most entries.
func TestRunOf(t *testing.T) {
	const copied, entries = format.L2Entry(1 << 63), len(narrowWords{})
	extended, small := clusters64K, clusters64K
	extended.ExtendedL2, small.ClusterBits = true, 9
	changed := func(i int, e format.L2Entry) []format.L2Pair {
		pairs := inOrder(clusters64K, 1000, entries, copied)
		pairs[i].Entry ^= e
		return pairs
	}
	begun := func(n int) []format.L2Pair {
		pairs := inOrder(clusters64K, 1000, entries, copied)
		clear(pairs[n:])
		return pairs
	}
	for name, c := range map[string]struct {
		g     format.Geometry
		pairs []format.L2Pair
		first uint32
		n     int
	}{
		"owned":           {clusters64K, inOrder(clusters64K, 1000, entries, copied), narrowCopied | 1000, entries},
		"shared":          {clusters64K, inOrder(clusters64K, 1000, entries, 0), 1000, entries},
		"zero":            {clusters64K, inOrder(clusters64K, 1000, entries, copied|format.ZeroEntry), narrowCopied | narrowZero | 1000, entries},
		"first cluster":   {clusters64K, inOrder(clusters64K, 1, entries, 0), 1, entries},
		"last cluster":    {clusters64K, inOrder(clusters64K, 1<<30-1-int64(entries), entries, copied), narrowCopied | (1<<30 - 1 - uint32(entries)), entries},
		"beyond":          {clusters64K, inOrder(clusters64K, 1<<30+1-int64(entries), entries, 0), 0, 0},
		"far beyond":      {clusters64K, inOrder(clusters64K, 1<<31, entries, copied), 0, 0},
		"empty":           {clusters64K, make([]format.L2Pair, entries), 0, 0},
		"from no cluster": {clusters64K, inOrder(clusters64K, 0, entries, 0), 0, 0},
		"hole":            {clusters64K, changed(100, copied|1100<<16), 0, 0},
		"hole at the end": {clusters64K, begun(entries - 1), narrowCopied | 1000, entries - 1},
		"long enough":     {clusters64K, begun(leastRun), narrowCopied | 1000, leastRun},
		"too short":       {clusters64K, begun(leastRun - 1), 0, 0},
		"one is shared":   {clusters64K, changed(entries-1, copied), 0, 0},
		"one is zero":     {clusters64K, changed(entries-1, format.ZeroEntry), 0, 0},
		"first is not":    {clusters64K, changed(0, 1<<16), 0, 0},
		"compressed":      {clusters64K, inOrder(clusters64K, 1000, entries, 1<<62), 0, 0},
		"bad bits":        {clusters64K, inOrder(clusters64K, 1000, entries, copied|2), 0, 0},
		"small slice":     {small, inOrder(small, 1000, 64, copied), 0, 0},
		"extended L2":     {extended, inOrder(extended, 1000, entries/2, copied), 0, 0},
	} {
		first, n := runOf(c.pairs, c.g)
		require.Equal(t, c.first, first, name)
		require.Equal(t, c.n, n, name)
	}
}

// TestRunBesidePlainEntries: a run is what a list of entries is, whatever is stored where:
// what is there already, what fits into a narrow word and what does not. What it takes is
// counted before it does.
func TestRunBesidePlainEntries(t *testing.T) {
	_, rng := testenv.Seed(t)
	const entries = len(narrowWords{})
	for range 50 {
		want := inOrder(clusters64K, 1+rng.Int64N(1<<29), entries, 1<<63)
		clear(want[leastRun+rng.IntN(entries-leastRun+1):])
		var w entryWords
		w.use(nil, formOf(want, clusters64K), entries, clusters64K)
		bytes := int64(maxSliceBytes / 2)
		same := func() {
			require.Equal(t, bytes, w.bytes())
			for i, p := range want {
				if got := w.loadLocked(i); got != p {
					t.Fatalf("entry %d: %#x instead of %#x", i, got.Entry, p.Entry)
				}
			}
		}
		for i, p := range want { // as when a slice is loaded
			w.storeLocked(i, p)
		}
		same()
		require.Nil(t, w.run.spelled.Load(), "nothing has changed")
		for k := range 64 {
			i, e := rng.IntN(entries), format.L2Entry(0)
			switch kind := rng.IntN(8); {
			case kind == 0:
			case kind == 1:
				e = format.ZeroEntry
			case kind == 2:
				e = want[i].Entry
			case kind == 3 && k > 40:
				e, bytes = badEntry, maxSliceBytes/2+maxSliceBytes
			default:
				e = format.NewL2Entry(rng.Int64N(1<<30) << 16)
			}
			want[i].Entry = e
			w.storeLocked(i, want[i])
			same()
		}
		require.NotNil(t, w.run.spelled.Load())
	}
}

// TestRunWidens: a run in which an entry does not fit into a narrow word becomes wide
// without being spelled out.
func TestRunWidens(t *testing.T) {
	const entries = len(narrowWords{})
	want := inOrder(clusters64K, 5, entries, 1<<63)
	clear(want[100:])
	var w entryWords
	w.use(nil, formOf(want, clusters64K), entries, clusters64K)
	want[3].Entry = badEntry
	w.storeLocked(3, want[3])
	require.Nil(t, w.run.spelled.Load())
	for i, p := range want {
		require.Equal(t, p, w.loadLocked(i), "entry %d", i)
	}
}

// TestRunSlice: a slice of a run has no words of its own, and counts as one that has.
func TestRunSlice(t *testing.T) {
	im := &Image{geo: clusters64K}
	run := formOf(inOrder(im.geo, 5, len(narrowWords{}), 1<<63), im.geo)
	s, narrow := im.newSlice(0, 0, run), im.newSlice(0, 0, form{})
	require.Nil(t, s.narrow)
	require.Len(t, narrow.narrow, len(narrowWords{}))
	require.Equal(t, narrow.bytes(), s.bytes(), "counted as if it were spelled out")
	require.Equal(t, format.NewL2Entry(12<<16), s.load(7).Entry)
}
