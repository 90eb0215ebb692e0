package qcow2

import (
	"iter"
	"math/bits"
	"slices"

	"tidemark/qcow2/format"
)

// A clusterSet is a set of host clusters within a few ranges: a bit for each cluster
// of them.
type clusterSet struct {
	ranges []format.ClusterRange // sorted, apart
	words  [][]uint64            // of each range
}

// newClusterSet is the set of all clusters of ranges.
func newClusterSet(ranges []format.ClusterRange) *clusterSet {
	s := &clusterSet{ranges: mergeRanges(ranges, len(ranges))}
	for _, r := range s.ranges {
		words := make([]uint64, (r.N+63)/64)
		for i := range words {
			words[i] = ^uint64(0)
		}
		if rest := r.N % 64; rest != 0 {
			words[len(words)-1] = 1<<rest - 1
		}
		s.words = append(s.words, words)
	}
	return s
}

// remove takes cluster c out, if it is in.
func (s *clusterSet) remove(c int64) {
	for i, r := range s.ranges {
		if c >= r.At && c < r.At+r.N {
			s.words[i][(c-r.At)/64] &^= 1 << ((c - r.At) % 64)
		}
	}
}

// all yields every cluster that is in, in order; it may be removed meanwhile.
func (s *clusterSet) all() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for i, r := range s.ranges {
			for j, w := range s.words[i] {
				for ; w != 0; w &= w - 1 {
					if !yield(r.At + int64(j)*64 + int64(bits.TrailingZeros64(w))) {
						return
					}
				}
			}
		}
	}
}

// mergeRanges sorts ranges, joins those that touch, and then those with the
// smallest gaps until at most n are left.
func mergeRanges(ranges []format.ClusterRange, n int) []format.ClusterRange {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b format.ClusterRange) int { return int(min(max(a.At-b.At, -1), 1)) })
	join := func(i int) { // i with the one behind it
		end := max(sorted[i].At+sorted[i].N, sorted[i+1].At+sorted[i+1].N)
		sorted[i].N = end - sorted[i].At
		sorted = slices.Delete(sorted, i+1, i+2)
	}
	gap := func(i int) int64 { return sorted[i+1].At - sorted[i].At - sorted[i].N }
	for i := 0; i+1 < len(sorted); {
		if gap(i) <= 0 {
			join(i)
		} else {
			i++
		}
	}
	for len(sorted) > n {
		least := 0
		for i := 1; i+1 < len(sorted); i++ {
			if gap(i) < gap(least) {
				least = i
			}
		}
		join(least)
	}
	return sorted
}
