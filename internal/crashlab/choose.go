package crashlab

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"

	"tidemark/internal/simdisk"
)

// Limits bound how many choices are made at one moment.
type Limits struct {
	// All is up to how many pending operations every subset is built.
	All int
	// Random is how many seeded random choices are made where there are more, and
	// a tenth of it, torn at random, where there are not.
	Random int
	// Pairs: beyond All, every pair too.
	Pairs bool
}

// Exhaustive is what a release is judged with.
func Exhaustive() Limits { return Limits{All: 12, Random: 1000, Pairs: true} }

// A Part is how much of a pending operation is there.
type Part uint8

// The parts of an operation. Grow and Shrink are there or not.
const (
	None Part = iota
	Whole
	Head   // the first Cut sectors
	Tail   // from sector Cut on
	Even   // every other one, from the first on
	Odd    // every other one, from the second on
	Zeroed // of a discard: it left zeroes, not another tenant's bytes
)

// A Pick is what a state has of a pending operation.
type Pick struct {
	Part Part
	Cut  int64
}

// keeps reports whether the i-th sector of an operation is there.
func (p Pick) keeps(i int64) bool {
	switch p.Part {
	case Whole, Zeroed:
		return true
	case Head:
		return i < p.Cut
	case Tail:
		return i >= p.Cut
	case Even:
		return i%2 == 0
	case Odd:
		return i%2 == 1
	}
	return false
}

// A choice is a pick for every pending operation. swap, if positive, is the index
// of an operation that lands behind all others.
type choice struct {
	picks []Pick
	swap  int
}

// state builds what c leaves.
func (c choice) state(m *simdisk.Model) simdisk.State {
	pending := m.Pending()
	order := make([]*simdisk.Op, 0, len(pending))
	picks := make(map[*simdisk.Op]Pick, len(pending))
	add := func(i int) {
		o := pending[i]
		switch c.picks[i].Part {
		case None:
			return
		case Zeroed:
			o = o.Zeroing()
		}
		picks[o] = c.picks[i]
		order = append(order, o)
	}
	for i := range pending {
		if c.swap <= 0 || i != c.swap-1 {
			add(i)
		}
	}
	if c.swap > 0 {
		add(c.swap - 1)
	}
	return m.Crash(order, func(o *simdisk.Op, s int64) bool {
		return picks[o].keeps(s - o.Off/sector)
	})
}

// describe says what c is, for people.
func (c choice) describe(pending []*simdisk.Op) string {
	var parts []string
	for i, p := range c.picks {
		if p.Part == None {
			continue
		}
		o := pending[i]
		what := fmt.Sprintf("%v of %d bytes at %d", o.Kind, o.Len, o.Off)
		switch p.Part {
		case Head:
			what += fmt.Sprintf(" (its first %d sectors)", p.Cut)
		case Tail:
			what += fmt.Sprintf(" (from sector %d on)", p.Cut)
		case Even, Odd:
			what += " (every other sector)"
		case Zeroed:
			what += " (left zeroes)"
		}
		if c.swap == i+1 {
			what += " (last)"
		}
		parts = append(parts, what)
	}
	if len(parts) == 0 {
		return fmt.Sprintf("none of %d pending operations", len(c.picks))
	}
	return fmt.Sprintf("of %d pending operations: %s", len(c.picks), strings.Join(parts, "; "))
}

// sectorsOf is the number of sectors that can be kept one by one.
func sectorsOf(o *simdisk.Op) int64 {
	first, end := o.Sectors()
	return max(end-first, 1)
}

// choices are the choices for the pending operations. with, if not negative, is
// the index of the one that must be there, because choices without it have been
// made. The slice that is yielded is used again.
func choices(pending []*simdisk.Op, with int, l Limits, rng *rand.Rand) iter.Seq[choice] {
	return func(yield func(choice) bool) {
		c := choice{picks: make([]Pick, len(pending))}
		for mask := range masks(len(pending), with, l, rng) {
			for i := range pending {
				c.picks[i] = Pick{}
				if mask.has(i) {
					c.picks[i] = Pick{Part: Whole}
				}
			}
			if !yieldVariants(pending, with, c, rng, yield) {
				return
			}
		}
		for range randoms(len(pending), l) {
			for i, o := range pending {
				c.picks[i] = randomPick(o, i == with, rng)
			}
			if c.swap = 0; !yield(c) {
				return
			}
		}
	}
}

// randoms is how many choices are torn at random.
func randoms(pending int, l Limits) int {
	switch {
	case pending == 0:
		return 0
	case pending <= l.All:
		return min(l.Random/10, 1<<pending)
	}
	return l.Random / 2
}

// yieldVariants yields c, with the operation that must be there torn in the ways
// there are, and last or not among those it was in flight with.
func yieldVariants(pending []*simdisk.Op, with int, c choice, rng *rand.Rand, yield func(choice) bool) bool {
	if c.swap = 0; !yield(c) {
		return false
	}
	if with < 0 {
		return true
	}
	o := pending[with]
	for i, p := range pending[:with] {
		if c.picks[i].Part != None && p.Overlaps(o) && !p.Before(o) {
			if c.swap = i + 1; !yield(c) {
				return false
			}
		}
	}
	c.swap = 0
	for _, p := range tears(o, rng) {
		if c.picks[with] = p; !yield(c) {
			return false
		}
	}
	return true
}

// tears are the ways in which a part of an operation may be there.
func tears(o *simdisk.Op, rng *rand.Rand) (list []Pick) {
	if o.Kind == simdisk.Discard {
		list = append(list, Pick{Part: Zeroed})
	}
	switch n := sectorsOf(o); {
	case n == 1:
	case n == 2:
		list = append(list, Pick{Head, 1}, Pick{Tail, 1})
	default:
		list = append(list, Pick{Head, 1 + rng.Int64N(n-1)}, Pick{Tail, 1 + rng.Int64N(n-1)}, Pick{Part: Even}, Pick{Part: Odd})
	}
	return list
}

// randomPick is any pick, something of the operation if it must be there.
func randomPick(o *simdisk.Op, must bool, rng *rand.Rand) Pick {
	if !must && rng.IntN(2) == 0 {
		return Pick{}
	}
	if t := tears(o, rng); len(t) > 0 && rng.IntN(2) == 0 {
		return t[rng.IntN(len(t))]
	}
	return Pick{Part: Whole}
}

// A mask is a set of pending operations.
type mask []uint64

func newMask(n int) mask { return make(mask, n/64+1) }

func (m mask) has(i int) bool { return m[i/64]>>(i%64)&1 == 1 }
func (m mask) set(i int)      { m[i/64] |= 1 << (i % 64) }
func (m mask) unset(i int)    { m[i/64] &^= 1 << (i % 64) }

// masks are the subsets of n operations that are built, those with one of them if
// with is not negative.
func masks(n, with int, l Limits, rng *rand.Rand) iter.Seq[mask] {
	if n > l.All {
		return someMasks(n, with, l, rng)
	}
	return func(yield func(mask) bool) {
		for low := range uint64(1) << n {
			if with >= 0 && low>>with&1 == 0 {
				continue
			}
			if !yield(mask{low}) {
				return
			}
		}
	}
}

// someMasks: all, none, the prefixes, all but one, one, pairs, and random ones.
func someMasks(n, with int, l Limits, rng *rand.Rand) iter.Seq[mask] {
	return func(yield func(mask) bool) {
		emit := func(m mask) bool {
			if with >= 0 {
				m = slices.Clone(m)
				m.set(with)
			}
			return yield(m)
		}
		prefix, all := newMask(n), newMask(n)
		for i := range n {
			all.set(i)
		}
		for i := range n + 1 {
			if !emit(prefix) {
				return
			}
			if i < n {
				prefix.set(i)
			}
		}
		for i := range n {
			but, one := slices.Clone(all), newMask(n)
			but.unset(i)
			one.set(i)
			if !emit(but) || !emit(one) {
				return
			}
			for j := i + 1; l.Pairs && with < 0 && j < n; j++ {
				pair := slices.Clone(one)
				pair.set(j)
				if !emit(pair) {
					return
				}
			}
		}
		for range l.Random / 2 {
			m := newMask(n)
			for i := range m {
				m[i] = rng.Uint64()
			}
			if !emit(m) {
				return
			}
		}
	}
}
