package simdisk

import (
	"math/rand/v2"
	"slices"
)

// Kind says what a pending operation is.
type Kind uint8

// The kinds of operations.
const (
	Write Kind = iota + 1
	Zeroes
	Discard
	// Grow and Shrink are pending while they are in flight: the size is the
	// old one or the new one.
	Grow
	Shrink
)

func (k Kind) String() string {
	return [...]string{"nothing", "write", "zeroes", "discard", "grow", "shrink"}[k]
}

// An Op is an operation that may be there or not after a crash.
type Op struct {
	ID       int // counts the operations of a disk, from 1
	Kind     Kind
	Off, Len int64 // bytes; of Grow and Shrink, the old size and the new one

	// Moments of the Model's clock; returned is 0 while it is in flight.
	submitted, returned int
	// doomed: a failed sync has dropped it. Any part of it may be there, and no
	// later sync changes that.
	doomed bool

	// The sectors that it touches, as they read after it: of a write, all of
	// them in after; otherwise the first and the last one, where they are
	// touched in part only, and fill for all others.
	after      []*sector
	head, tail *sector
	inHead     bool
	inTail     bool
	fill       *sector
	// dead are the sectors that something durable has replaced, under those that
	// something durable was in flight with and was submitted behind; nil for none.
	dead, under []bool
}

// Sectors is the range of sectors [first, end) that the operation touches; none
// for Grow and Shrink.
func (o *Op) Sectors() (first, end int64) {
	if o.Kind == Grow || o.Kind == Shrink {
		return 0, 0
	}
	return o.Off / SectorSize, (o.Off + o.Len + SectorSize - 1) / SectorSize
}

// InFlight reports whether the operation had not returned.
func (o *Op) InFlight() bool { return o.returned == 0 }

// Before reports whether o had returned before p was submitted. If neither is
// before the other and they touch the same sector, either may be the last.
func (o *Op) Before(p *Op) bool { return o.returned != 0 && o.returned < p.submitted }

// Overlaps reports whether o and p touch a sector in common.
func (o *Op) Overlaps(p *Op) bool {
	first, end := o.Sectors()
	pfirst, pend := p.Sectors()
	return first < pend && pfirst < end
}

// Keep decides whether a sector (its number on the disk) of a pending operation
// is there after a crash.
type Keep func(op *Op, sector int64) bool

// KeepAll is the death of the process: the host's cache survives.
func KeepAll(*Op, int64) bool { return true }

// DropAll is the power cut that loses everything that may be lost.
func DropAll(*Op, int64) bool { return false }

// KeepRandom keeps every sector with probability p.
func KeepRandom(rng *rand.Rand, p float64) Keep {
	return func(*Op, int64) bool { return rng.Float64() < p }
}

// KeepOps keeps or drops whole operations.
func KeepOps(keep func(op *Op) bool) Keep {
	return func(op *Op, _ int64) bool { return keep(op) }
}

// content is sector s, which the operation touches, as it reads after it.
func (o *Op) content(s int64) *sector {
	first, end := o.Sectors()
	switch {
	case o.after != nil:
		return o.after[s-first]
	case s == first && o.inHead:
		return o.head
	case s == end-1 && o.inTail:
		return o.tail
	}
	return o.fill
}

// Zeroing returns o, a discard, as one that leaves zeroes: to be given to Crash in
// its place.
func (o *Op) Zeroing() *Op {
	c := *o
	c.fill = nil
	first, end := o.Sectors()
	if o.inHead {
		from := o.Off - first*SectorSize
		to := min(from+o.Len, SectorSize)
		c.head = o.head.with(zeroes[from:to], from)
	}
	if o.inTail {
		c.tail = o.tail.with(zeroes[:o.Off+o.Len-(end-1)*SectorSize], 0)
	}
	return &c
}

// isDead reports whether something durable has replaced sector s.
func (o *Op) isDead(s int64) bool {
	return o.dead != nil && o.dead[s-o.Off/SectorSize]
}

// mark sets the marks of those of the sectors [lo, hi) that o touches, and reports
// whether one of its sectors is left without.
func mark(o *Op, marks *[]bool, lo, hi int64) bool {
	first, end := o.Sectors()
	lo, hi = max(lo, first), min(hi, end)
	if lo >= hi {
		return true
	}
	if *marks == nil {
		*marks = make([]bool, end-first)
	}
	for s := lo; s < hi; s++ {
		(*marks)[s-first] = true
	}
	return slices.Contains(*marks, false)
}

// applyTo makes the kept sectors of o part of im and size.
func (o *Op) applyTo(im *image, size *int64, keep Keep) {
	first, end := o.Sectors()
	switch o.Kind {
	case Grow:
		if keep(o, o.Off/SectorSize) {
			im.addForeign(o.Off, o.Len)
			*size = o.Len
		}
		return
	case Shrink:
		if keep(o, o.Len/SectorSize) {
			im.truncate(o.Len)
			*size = o.Len
		}
		return
	}
	for s := first; s < end; s++ {
		if !o.isDead(s) && keep(o, s) {
			im.set(s, o.content(s))
		}
	}
}

// apply makes all of o part of im and size, fast.
func (o *Op) apply(im *image, size *int64) {
	first, end := o.Sectors()
	if o.after != nil || o.dead != nil || first == end {
		o.applyTo(im, size, KeepAll)
		return
	}
	if o.inHead {
		im.set(first, o.head)
		first++
	}
	if o.inTail && end > first {
		end--
		im.set(end, o.tail)
	}
	im.fill(first, end, o.fill)
}

// truncated cuts off what lies from size on; false if nothing is left.
func (o *Op) truncated(size int64) bool {
	first, end := o.Sectors()
	switch {
	case first == end:
		return true
	case o.Off >= size:
		return false
	case o.Off+o.Len <= size:
		return true
	}
	o.Len = size - o.Off
	_, last := o.Sectors()
	if from := size % SectorSize; from != 0 {
		cut := o.content(last-1).with(zeroes[from:], from)
		if o.after != nil {
			o.after[last-1-first] = cut
		} else {
			o.tail, o.inTail, o.inHead = cut, true, o.inHead && last-1 > first
		}
	} else if o.after == nil {
		o.inTail = false
	}
	if o.after != nil {
		o.after = o.after[:last-first]
	}
	if o.dead != nil {
		o.dead = o.dead[:last-first]
	}
	if o.under != nil {
		o.under = o.under[:last-first]
	}
	return true
}
