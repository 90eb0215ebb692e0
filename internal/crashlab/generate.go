package crashlab

import (
	"math/rand/v2"
	"slices"
)

// A Shape is what a script has to know of an image, to reach every place of its
// tables. All are numbers of sectors.
type Shape struct {
	Size    int64 // of the disk
	Cluster int64
	Table   int64 // what one L2 table maps
	Amend   bool  // its reference counts may get another width
}

// A place is a range of the disk.
type place struct{ first, n int64 }

// places are ranges that differ in what they touch: a part of a cluster, all of
// it, the edge of two, several, the edge of two tables, the end of the disk.
func (s Shape) places() []place {
	c, t := s.Cluster, s.Table
	list := []place{
		{0, c},              // a cluster
		{2*c + c/2, 1},      // a sector in the middle of one
		{c, max(c/2, 1)},    // the beginning of one
		{4*c - 1, 2},        // the end of one and the beginning of the next
		{5*c + c/2, 3 * c},  // whole ones between two parts
		{8 * c, 8 * c},      // several whole ones
		{t - 1, 2},          // the end of what one table maps, and the next
		{t - 2*c, 4 * c},    // whole clusters of two tables
		{t + c, c},          // the second table
		{s.Size - 1, 1},     // the end of the disk
		{s.Size - c - 1, c}, // and what is before it
		{0, s.Size},         // all of it
	}
	var fit []place
	for _, p := range list {
		if p.n > 0 && p.first >= 0 && p.first+p.n <= s.Size && !slices.Contains(fit, p) {
			fit = append(fit, p)
		}
	}
	return fit
}

// Requests are the single requests that exhaustive sequences are made of: every
// kind at every place, and those that have none.
func (s Shape) Requests() []Request {
	var list []Request
	for k := Write; k <= Discard; k++ {
		for _, p := range s.places() {
			list = append(list, Request{Kind: k, First: p.first, N: p.n})
		}
	}
	if s.Amend {
		list = append(list, Request{Kind: Amend, N: 8}, Request{Kind: Amend, N: 64})
	}
	return append(list,
		Request{Kind: Flush}, Request{Kind: Reopen}, Request{Kind: Kill}, Request{Kind: GiveBack, N: 4 * s.Cluster},
		Request{Kind: Resize, N: s.Size + s.Cluster}, Request{Kind: Resize, N: s.Size + min(2*s.Table, s.Size)},
	)
}

// Sequences are all sequences of n requests, each followed by a flush that covers
// it. There are len(Requests())^n; every one is found by its number.
func (s Shape) Sequences(n int) (count int, sequence func(i int) []Request) {
	single := s.Requests()
	count = 1
	for range n {
		count *= len(single)
	}
	return count, func(i int) (script []Request) {
		size := s.Size
		for range n {
			r := single[i%len(single)]
			i /= len(single)
			if r.Kind == Resize {
				size = max(size, r.N)
				r.N = size
			}
			script = append(script, r)
		}
		return append(script, Request{Kind: Flush})
	}
}

// Random returns a script of n requests of up to clients clients.
func (s Shape) Random(rng *rand.Rand, n, clients int) []Request {
	var script []Request
	size := s.Size
	failed, begins := false, rng.IntN(2) == 0
	for len(script) < n {
		r := s.randomRequest(rng, size)
		if begins && r.Kind == Write && rng.IntN(2) == 0 {
			r.Kind = WriteLater
		}
		switch {
		case failed: // what is asked for fails, until it is opened past the cache
			if failed = !r.Kind.alone() && rng.IntN(3) > 0; !failed {
				r = Request{Kind: EvictReopen}
			}
		case r.Kind.fails():
			failed = true
		case r.Kind == Resize:
			size = r.N
		}
		if !r.Kind.alone() {
			r.Client = rng.IntN(clients)
			r.Slow = clients > 1 && r.Kind != Zero && rng.IntN(12) == 0
		}
		script = append(script, r)
	}
	if failed {
		script = append(script, Request{Kind: EvictReopen})
	}
	return script
}

// randomRequest returns a request for a disk of size sectors.
func (s Shape) randomRequest(rng *rand.Rand, size int64) Request {
	r := Request{}
	switch k := rng.IntN(100); {
	case k < 40:
		r.Kind = Write
	case k < 47:
		r.Kind = WriteFUA
	case k < 54:
		r.Kind = Zero
	case k < 63:
		r.Kind = ZeroUnmap
	case k < 75:
		r.Kind = Discard
	case k < 91:
		return Request{Kind: Flush}
	case k < 92:
		return Request{Kind: Wait}
	case k < 94:
		return Request{Kind: Reopen}
	case k < 97:
		return Request{Kind: Kill}
	case k < 98:
		if rng.IntN(2) == 0 {
			return Request{Kind: FailWrite, N: 1 + rng.Int64N(6)}
		}
		return Request{Kind: FailSync}
	case k == 98 && rng.IntN(2) == 0:
		return Request{Kind: GiveBack, N: 1 + rng.Int64N(8*s.Cluster)}
	case k < 99 && s.Amend:
		return Request{Kind: Amend, N: 1 << (3 + rng.IntN(4))}
	default:
		if size >= s.Size+2*s.Table || size >= 2*s.Size {
			return Request{Kind: Flush}
		}
		return Request{Kind: Resize, N: size + 1 + rng.Int64N(s.Size)}
	}
	if rng.IntN(3) == 0 { // where something has been before, probably
		all := s.places()
		p := all[rng.IntN(len(all)-1)] // not all of it
		r.First, r.N = p.first, p.n
		return r
	}
	r.First = rng.Int64N(size)
	r.N = min(1+rng.Int64N(1+rng.Int64N(6*s.Cluster)), size-r.First)
	return r
}
