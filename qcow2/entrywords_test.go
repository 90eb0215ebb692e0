package qcow2

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/qcow2/format"
)

// TestNarrowEntries: what fits into a narrow word comes out of it as it was, and what
// would not says so.
func TestNarrowEntries(t *testing.T) {
	_, rng := testenv.Seed(t)
	for clusterBits := uint8(format.MinClusterBits); clusterBits <= format.MaxClusterBits; clusterBits++ {
		for _, e := range []format.L2Entry{0, format.ZeroEntry, format.NewL2Entry(0), format.NewL2Entry((1<<30 - 1) << clusterBits),
			format.NewL2Entry(1<<clusterBits) | format.ZeroEntry, 5 << clusterBits} {
			_, fits := narrowed(e, clusterBits)
			require.True(t, fits, "%#x with clusters of 2^%d bytes", e, clusterBits)
		}
		for _, e := range []format.L2Entry{badEntry, 1 << 62, 1<<62 | 1<<clusterBits, 1 << 61, 1 << 56, 2, 1 << (clusterBits - 1),
			format.L2Entry(1<<30) << clusterBits, format.NewL2Entry(1 << 30 << clusterBits)} {
			_, fits := narrowed(e, clusterBits)
			require.False(t, fits, "%#x with clusters of 2^%d bytes", e, clusterBits)
		}
		for range 10_000 {
			e := format.L2Entry(rng.Uint64())
			for range rng.IntN(4) {
				e &= format.L2Entry(rng.Uint64()) | 1<<63 | 1
			}
			if rng.IntN(2) == 0 {
				e &= 1<<63 | 1 | (1<<30-1)<<clusterBits
			}
			if w, fits := narrowed(e, clusterBits); fits {
				require.Equal(t, e, widened(w, clusterBits))
			}
		}
	}
}

// TestWordsWiden: entries keep their values when one comes that does not fit, at every
// place and in every kind of words, and the words know what they take.
func TestWordsWiden(t *testing.T) {
	_, rng := testenv.Seed(t)
	g := format.Geometry{Version: 3, ClusterBits: 16}
	extended := g
	extended.ExtendedL2 = true
	for name, c := range map[string]struct {
		g         format.Geometry
		n         int
		narrow    []atomic.Uint32
		bytes     int64
		wideBytes int64
	}{
		"narrow":   {g, 512, make([]atomic.Uint32, 512), 2048, 2048 + 4096},
		"small":    {format.Geometry{Version: 3, ClusterBits: 9}, 64, make([]atomic.Uint32, 64), 256, 256 + 4096},
		"wide":     {g, 512, nil, 4096, 4096},
		"extended": {extended, 256, nil, 4096, 4096},
	} {
		t.Run(name, func(t *testing.T) {
			var w entryWords
			w.use(c.narrow, form{wide: c.narrow == nil}, c.n, c.g)
			require.Equal(t, c.n, w.entries())
			require.Equal(t, c.bytes, w.bytes())
			want := make([]format.L2Pair, c.n)
			for range 4 * c.n {
				i := rng.IntN(c.n)
				want[i].Entry = format.NewL2Entry(rng.Int64N(1<<30) << c.g.ClusterBits)
				if c.g.ExtendedL2 {
					want[i].Sub = format.Subclusters(rng.Uint64())
				}
				w.storeLocked(i, want[i])
			}
			require.Equal(t, c.bytes, w.bytes())
			for k := range 20 {
				for i := range want {
					require.Equal(t, want[i], w.loadLocked(i), "entry %d after %d that do not fit", i, k)
				}
				i := rng.IntN(c.n)
				want[i].Entry = badEntry
				w.storeLocked(i, want[i])
				require.Equal(t, c.wideBytes, w.bytes())
			}
		})
	}
}

// TestWidenBesideReaders: entries only count up here, a run or narrow at first and wide in
// the end, under readers that hold no lock: none sees an entry go back, nor an older
// one than what was there when he began.
func TestWidenBesideReaders(t *testing.T) {
	const entries, rounds, steps, readers = 8, 300, 40, 3
	const first = 512 - entries // the last ones of a slice are the last to become wide
	seed, _ := testenv.Seed(t)
	im := &Image{geo: format.Geometry{Version: 3, ClusterBits: 16}}
	// Step k of entry i names cluster 1+i+512*k, so that all at step 0 are a run; from
	// wideFrom on one that needs a wide word.
	const wideFrom, far = steps / 2, int64(1) << 31
	at := func(i int, k int64) format.L2Pair {
		c := int64(1+i) + 512*k
		if k >= wideFrom {
			c += far
		}
		return format.L2Pair{Entry: format.NewL2Entry(c << 16)}
	}
	step := func(i int, p format.L2Pair) int64 {
		c := p.Entry.Offset() >> 16
		if c >= far {
			c -= far
		}
		if (c-1-int64(i))%512 != 0 {
			return -1 // another entry's
		}
		return (c - 1 - int64(i)) / 512
	}
	start := make([]format.L2Pair, 512)
	for i := range start {
		start[i] = at(i, 0)
	}
	require.Equal(t, len(start), formOf(start, im.geo).n)
	for round := range rounds {
		s := im.newSlice(0, 0, []form{{}, formOf(start, im.geo)}[round%2])
		for i, p := range start {
			s.storeLocked(i, p)
		}
		var begun, done [entries]atomic.Int64
		var ended atomic.Bool
		var wg sync.WaitGroup
		for reader := range readers {
			rng := rand.New(rand.NewPCG(seed, uint64(round*readers+reader)))
			wg.Go(func() {
				for !ended.Load() {
					i := rng.IntN(entries)
					least := done[i].Load()
					k := step(first+i, s.load(first+i))
					if most := begun[i].Load(); k < least || k > most {
						t.Errorf("entry %d: step %d, expected %d to %d", i, k, least, most)
						return
					}
				}
			})
		}
		rng := rand.New(rand.NewPCG(seed, uint64(round)))
		for range entries * steps {
			i := rng.IntN(entries)
			k := min(begun[i].Load()+1, steps)
			begun[i].Store(k)
			s.mu.Lock()
			s.storeLocked(first+i, at(first+i, k))
			s.mu.Unlock()
			done[i].Store(k)
		}
		ended.Store(true)
		wg.Wait()
	}
}
