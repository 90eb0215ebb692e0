package simdisk

import (
	"math/rand/v2"
)

// Kind says what a pending operation is.
type Kind uint8

// The kinds of operations.
const (
	Write Kind = iota + 1
	Zeroes
	Discard
)

func (k Kind) String() string {
	return [...]string{"nothing", "write", "zeroes", "discard"}[k]
}

// An Op is an operation that is pending: no successful Sync has covered it.
type Op struct {
	ID       int // counts the operations of a disk, from 1
	Kind     Kind
	Off, Len int64
	// FUA: a WriteAtSync that has returned. It is durable, Keep is not asked.
	FUA bool

	after []pageAfter
}

// pageAfter is a page as it read after an operation.
type pageAfter struct {
	index int64
	page  *page
}

// Sectors is the range of sectors [first, end) that the operation touches.
func (o Op) Sectors() (first, end int64) {
	return o.Off / SectorSize, (o.Off + o.Len + SectorSize - 1) / SectorSize
}

// Keep decides whether a sector (its number on the disk) of a pending operation
// is there after a crash.
type Keep func(op Op, sector int64) bool

// KeepAll is the death of the process: the host's cache survives.
func KeepAll(Op, int64) bool { return true }

// DropAll is the power cut that loses everything that may be lost.
func DropAll(Op, int64) bool { return false }

// KeepRandom keeps every sector with probability p.
func KeepRandom(rng *rand.Rand, p float64) Keep {
	return func(Op, int64) bool { return rng.Float64() < p }
}

// KeepOps keeps or drops whole operations.
func KeepOps(keep func(op Op) bool) Keep {
	return func(op Op, _ int64) bool { return keep(op) }
}

// applyTo makes the kept sectors of o part of im.
func (o Op) applyTo(im *image, keep Keep) {
	if o.FUA {
		keep = KeepAll
	}
	first, end := o.Sectors()
	for _, a := range o.after {
		base := a.index * sectorsPerPage
		lo, hi := max(first-base, 0), min(end-base, sectorsPerPage)
		for s := lo; s < hi; { // runs of kept sectors, so that whole pages are shared
			run := s
			for run < hi && keep(o, base+run) {
				run++
			}
			if run > s {
				im.setBytes(a.index, s*SectorSize, run*SectorSize, a.page)
			}
			s = run + 1
		}
	}
}

// truncated is o without what lies from size on; false if nothing is left.
func (o Op) truncated(size int64) (Op, bool) {
	if o.Off >= size {
		return o, false
	}
	o.Len = min(o.Len, size-o.Off)
	var after []pageAfter
	for _, a := range o.after {
		switch keep := size - a.index*pageSize; {
		case keep <= 0:
			continue
		case keep < pageSize:
			cut := *a.page
			clear(cut[keep:])
			a.page = &cut
		}
		after = append(after, a)
	}
	o.after = after
	return o, true
}
