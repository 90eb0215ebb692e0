package spm

// chunkSize is the granted size of a new thin volume, and sizeUnit what every
// granted size that the manager chooses is a multiple of, in bytes.
const (
	chunkSize = 128 << 20
	sizeUnit  = 4096
)

// A demand is a request for space and what its admission depends on. Sizes are
// in bytes; need and want are absolute, free is what the pool can still grant.
type demand struct {
	size, bound int64
	unit        int64 // of granted sizes; 0: sizeUnit
	need, want  int64
	free        int64
	behind      bool // others wait before this one
	waiting     bool // somebody else waits, before or behind
}

// verdict is what becomes of a demand.
type verdict uint8

const (
	enough verdict = iota // the volume is as large as it should be: answer its size
	grant                 // extend it to target
	hold                  // wait
	refuse                // the bound forbids need
)

// admit decides on a demand.
//
//	need <= size: nothing is owed; headroom is granted if nobody waits
//	need > bound: refused, whatever the pool has
//	otherwise:    at least need, towards want only if nobody waits; or hold
func admit(d demand) (v verdict, target int64) {
	unit := max(d.unit, sizeUnit)
	need := roundUp(d.need, unit)
	want := min(max(roundUp(d.want, unit), need), d.bound)
	most := d.size + max(d.free, 0)/unit*unit
	if d.need <= d.size {
		target = min(want, most)
		if d.waiting || target <= d.size {
			return enough, d.size
		}
		return grant, target
	}
	need = min(need, d.bound)
	switch {
	case d.need > d.bound:
		return refuse, d.size
	case d.behind || need-d.size > max(d.free, 0):
		return hold, d.size
	case d.waiting:
		return grant, need
	}
	return grant, max(need, min(want, most))
}

// jumpPart is the part of a pool's free space that a volume may take beyond what
// it asked for, where that spares the store a segment.
const jumpPart = 4

// most is up to where a grant of target may go if that suits the store. Nobody
// takes more than it asked for while somebody waits.
func (d demand) most(target int64) int64 {
	if d.waiting {
		return target
	}
	return max(target, min(d.bound, d.size+d.free/jumpPart))
}

func roundUp(n, unit int64) int64 {
	if over := n % unit; over > 0 && n <= 1<<63-1-unit {
		return n + unit - over
	}
	return n
}
