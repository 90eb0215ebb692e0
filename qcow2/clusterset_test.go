package qcow2

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/qcow2/format"
)

// TestMergeRanges: what is merged has what there was, in at most so many ranges, and
// no more beside it than the smallest gaps.
func TestMergeRanges(t *testing.T) {
	_, rng := testenv.Seed(t)
	for range 500 {
		var in [200]bool
		var ranges []format.ClusterRange
		for range 1 + rng.IntN(20) {
			r := format.ClusterRange{At: rng.Int64N(180), N: 1 + rng.Int64N(20)}
			ranges = append(ranges, r)
			for c := r.At; c < r.At+r.N; c++ {
				in[c] = true
			}
		}
		var gaps []int // between what is in
		for c, last := 0, -1; c < len(in); c++ {
			if in[c] {
				if last >= 0 && c > last+1 {
					gaps = append(gaps, c-last-1)
				}
				last = c
			}
		}
		slices.Sort(gaps)
		n := 1 + rng.IntN(len(gaps)+2)
		want := min(n, len(gaps)+1)
		beside := 0
		for _, g := range gaps[:len(gaps)+1-want] {
			beside += g
		}

		merged := mergeRanges(ranges, n)
		require.Len(t, merged, want, "%v to %d", ranges, n)
		for c := range newClusterSet(merged).all() {
			if in[c] {
				in[c] = false
			} else {
				beside--
			}
		}
		require.NotContains(t, in, true, "%v to %d: %v", ranges, n, merged)
		require.Zero(t, beside, "%v to %d: %v", ranges, n, merged)
	}
}

// TestBlocksToCome counts the refcount blocks that are missing one by one.
func TestBlocksToCome(t *testing.T) {
	_, rng := testenv.Seed(t)
	im := &Image{geo: format.Geometry{ClusterBits: 9, RefcountOrder: 6}} // 64 counts a block
	for range 500 {
		im.refs.table = make([]format.RefcountTableEntry, rng.IntN(20))
		for i := range im.refs.table {
			im.refs.table[i] = format.RefcountTableEntry(rng.IntN(2)) << 9
		}
		im.alloc.end, im.alloc.bound = rng.Int64N(1500), rng.Int64N(1500)
		if rng.IntN(2) == 0 {
			im.alloc.bound &^= 63 // just the end of a block
		}
		missing := map[int64]bool{}
		for c := im.alloc.end; c < im.alloc.bound; c++ {
			if !im.hasBlockLocked(c) {
				missing[c/64] = true
			}
		}
		require.EqualValues(t, len(missing), im.blocksToComeLocked(), "%v from %d to %d", im.refs.table, im.alloc.end, im.alloc.bound)
	}
}
