package qcow2

import (
	"cmp"
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
	slices.SortFunc(sorted, func(a, b format.ClusterRange) int { return cmp.Compare(a.At, b.At) })
	apart := joinRanges(sorted, func(i int, gap int64) bool { return gap <= 0 })
	if len(apart) <= n {
		return apart
	}
	gap := func(i int) int64 { return apart[i+1].At - apart[i].At - apart[i].N }
	order := make([]int, len(apart)-1) // of the gaps, the smallest first
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(gap(a), gap(b)) })
	closed := make([]bool, len(order))
	for _, i := range order[:len(apart)-n] {
		closed[i] = true
	}
	return joinRanges(apart, func(i int, _ int64) bool { return closed[i] })
}

// joinRanges joins range i of those that are sorted with the one behind it where join
// says so of i and of the gap between them.
func joinRanges(sorted []format.ClusterRange, join func(i int, gap int64) bool) []format.ClusterRange {
	var joined []format.ClusterRange
	for i, r := range sorted {
		if last := len(joined) - 1; i > 0 && join(i-1, r.At-joined[last].At-joined[last].N) {
			joined[last].N = max(joined[last].N, r.At+r.N-joined[last].At)
			continue
		}
		joined = append(joined, r)
	}
	return joined
}
