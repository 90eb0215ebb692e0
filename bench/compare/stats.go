package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// median of values, which may be in any order; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// fewRounds is the number of values below which their interval is their range.
const fewRounds = 6

// interval is about where the median of more rounds would be: the bootstrap of the
// median, with a fixed seed. From fewRounds values on that is in 95 of 100 cases; of
// fewer it is their range (meaning).
func interval(values []float64) (low, high float64) {
	if len(values) == 0 {
		return 0, 0
	}
	rng := rand.New(rand.NewPCG(1, 2))
	medians := make([]float64, 2000)
	sample := make([]float64, len(values))
	for i := range medians {
		for j := range sample {
			sample[j] = values[rng.IntN(len(values))]
		}
		medians[i] = median(sample)
	}
	slices.Sort(medians)
	return medians[len(medians)*25/1000], medians[len(medians)*975/1000-1]
}

// meaning says what the interval of n values is. Each of them is as likely above the median
// that it estimates as below it, and the range has it unless all are on one side.
func meaning(n int) string {
	if n >= fewRounds {
		return "the 95 % interval (bootstrap)"
	}
	return fmt.Sprintf("from the smallest to the largest ratio, which with %d rounds have the median between them in %.0f of 100 cases",
		n, 100*(1-math.Pow(2, float64(1-n))))
}
