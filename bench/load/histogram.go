package load

import (
	"math/bits"
	"time"
)

// subBuckets is how fine a histogram is: 32 steps for each power of two, 3 %.
const subBuckets = 32

// A Histogram counts durations in steps of 3 %.
type Histogram struct {
	counts [64 * subBuckets]int64
	n      int64
}

func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < subBuckets {
		return int(v)
	}
	e := bits.Len64(v) - 6 // v>>e is in 32..63
	return (e+1)*subBuckets + int(v>>e) - subBuckets
}

// lowest is the smallest duration of a bucket.
func lowest(b int) time.Duration {
	if b < 2*subBuckets {
		return time.Duration(b)
	}
	e := b/subBuckets - 1
	return time.Duration(subBuckets+b%subBuckets) << e
}

// Add counts d, n times.
func (h *Histogram) Add(d time.Duration, n int64) {
	h.counts[bucketOf(d)] += n
	h.n += n
}

// Merge adds all of o.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.n += o.n
}

// Count is how many durations were added.
func (h *Histogram) Count() int64 { return h.n }

// Quantile is the duration that a share q of all does not exceed, rounded down by 3 %
// at most; 0 if there are none.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := int64(q*float64(h.n-1)) + 1
	for i, n := range h.counts {
		if rank -= n; rank <= 0 && h.n > 0 {
			return lowest(i)
		}
	}
	return 0
}
