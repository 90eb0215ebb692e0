package nbd

import "tidemark/internal/block"

// describer turns extents of a Device into descriptors of base:allocation:
// neighbours with the same state are joined, and every descriptor is a multiple
// of the minimum block. A block of several states gets what they share, which is
// always true: a clear bit promises nothing.
type describer struct {
	pos, end int64 // what is covered, and where the request ends
	min      int64 // minimum block, bytes
	limit    int   // descriptors
	ds       []descriptor

	partial bool       // the block at pos has begun with an extent that ends in it
	carry   stateFlags // the bits that are set in all of its extents so far
}

// add covers the next extent, and reports whether more are wanted.
func (d *describer) add(e block.Extent) bool {
	end := min(e.End(), d.end)
	s := stateOf(e.State)
	if d.partial {
		d.carry &= s
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
	n := uint32(end - d.pos) // a request is shorter than 4 GiB
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
