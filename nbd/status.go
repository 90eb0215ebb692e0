package nbd

import (
	"math/bits"
	"strings"

	"tidemark/internal/block"
)

// A contextSet is a set of metadata contexts. The id of a context on the wire is
// the number of its bit, and one more.
type contextSet uint8

const (
	inAllocation contextSet = 1 << iota // base:allocation
	inDepth                             // qemu:allocation-depth

	contextsMax = iota
)

var contextNames = [contextsMax]string{contextAllocation, contextDepth}

// first returns the context with the lowest id, and the others.
func (s contextSet) first() (one, rest contextSet) {
	one = s & -s
	return one, s &^ one
}

// id is that of the first.
func (s contextSet) id() uint32 { return uint32(bits.TrailingZeros8(uint8(s))) + 1 }

func (s contextSet) count() int { return bits.OnesCount8(uint8(s)) }

// only returns those of s that have these ids: at least one, and none twice.
func (s contextSet) only(ids []uint32) (chosen contextSet, ok bool) {
	for _, id := range ids {
		if id < 1 || id > contextsMax {
			return 0, false
		}
		one := contextSet(1) << (id - 1)
		if s&one == 0 || chosen&one != 0 {
			return 0, false
		}
		chosen |= one
	}
	return chosen, chosen != 0
}

// matching returns those of s that queries name. A list may name a namespace, and
// wants everything if it has no query. What is unknown is ignored.
func (s contextSet) matching(queries []string, list bool) (found contextSet) {
	if list && len(queries) == 0 {
		return s
	}
	for i, name := range contextNames {
		namespace, _, _ := strings.Cut(name, ":")
		for _, q := range queries {
			if q == name || list && q == namespace+":" {
				found |= s & (1 << i)
			}
		}
	}
	return found
}

// meaning is how a context describes an extent, and a block of which it knows two
// descriptions.
type meaning struct {
	of   func(block.Extent) stateFlags
	both func(a, b stateFlags) stateFlags
}

// meaningOf is that of the first context.
func (s contextSet) meaningOf() meaning {
	if s&inAllocation != 0 {
		return meaning{func(e block.Extent) stateFlags { return stateOf(e.State) }, commonState}
	}
	return meaning{depthOf, nearest}
}

// commonState is always true: a clear bit promises nothing.
func commonState(a, b stateFlags) stateFlags { return a & b }

// depthOf: 0 is nowhere, 1 the image itself, 2 what it is based on, and so on.
func depthOf(e block.Extent) stateFlags {
	if !e.State.Has(block.Allocated) {
		return 0
	}
	return stateFlags(e.Depth) + 1
}

// nearest takes what the image itself has before what is below, and anything
// before nothing: a copy of what is here must not lose any of it.
func nearest(a, b stateFlags) stateFlags {
	if a == 0 || b == 0 {
		return a | b
	}
	return min(a, b)
}

// describer turns extents of a Device into descriptors of one context: neighbours
// with the same state are joined, and every descriptor is a multiple of the minimum
// block.
type describer struct {
	meaning
	pos, end int64 // what is covered, and where the request ends
	min      int64 // minimum block, bytes
	limit    int   // descriptors
	ds       []descriptor

	partial bool       // the block at pos has begun with an extent that ends in it
	carry   stateFlags // what its extents so far are together
}

// add covers the next extent, and reports whether more are wanted.
func (d *describer) add(e block.Extent) bool {
	end := min(e.End(), d.end)
	s := d.of(e)
	if d.partial {
		d.carry = d.both(d.carry, s)
		blockEnd := min(d.pos+d.min, d.end)
		if end < blockEnd {
			return true
		}
		d.partial = false
		if !d.cover(blockEnd, d.carry) {
			return false
		}
	}
	whole := end
	if end != d.end {
		whole = end &^ (d.min - 1)
	}
	if whole > d.pos && !d.cover(whole, s) {
		return false
	}
	if end > d.pos {
		d.partial, d.carry = true, s
	}
	return d.pos < d.end
}

// cover appends [pos, end), and reports false if there is no room for it.
func (d *describer) cover(end int64, s stateFlags) bool {
	n := uint64(end - d.pos)
	if last := len(d.ds) - 1; last >= 0 && d.ds[last].state == s {
		d.ds[last].length += n
	} else if len(d.ds) < d.limit {
		d.ds = append(d.ds, descriptor{n, s})
	} else {
		return false
	}
	d.pos = end
	return true
}

// stateOf: a hole is what no storage is set aside for; writing there may need
// space.
func stateOf(s block.ExtentState) stateFlags {
	var f stateFlags
	if !s.Has(block.Data) {
		f |= stateHole
	}
	if s.Has(block.Zero) {
		f |= stateZero
	}
	return f
}

// extentState is the reverse, for the client.
func (f stateFlags) extentState() block.ExtentState {
	var s block.ExtentState
	if f&stateHole == 0 {
		s |= block.Allocated | block.Data
	}
	if f&stateZero != 0 {
		s |= block.Zero
	}
	return s
}
