package lvm

import (
	"cmp"
	"fmt"
	"slices"
)

// jumpBytes is the least that a volume takes when it has to begin a new segment;
// the other limit is a sixteenth of its size. So a volume of s bytes has at most
// about 16*ln(s/16 GiB) + 16 segments, however crowded the group is, unless no
// gap is as large.
const (
	jumpBytes = 1 << 30
	jumpPart  = 16
)

// A Demand is for extents. Need, Want and Most count what is added: at least
// Need, Want if there is as much, and up to Most where more saves segments.
type Demand struct {
	Need, Want, Most int64
	// Size is the volume's now, in extents; 0 for a new one.
	Size int64
	// TailPV and TailEnd are the physical volume of its last extent, and the
	// extent behind it.
	TailPV  string
	TailEnd int64
	// Jump is the least that a volume which has extents takes elsewhere.
	Jump int64
	// Still says of a new volume that it will never grow.
	Still bool
}

// jumpExtents is the Jump of a volume of size extents.
func jumpExtents(size, extentSize int64) int64 {
	return max((jumpBytes+extentSize-1)/extentSize, size/jumpPart)
}

// A Space is the free extents of a physical volume.
type Space struct {
	PV   string
	Free []Range
}

// A Piece is a run of extents that was chosen.
type Piece struct {
	PV string
	Range
}

// Place chooses extents, in the order in which the volume is to get them:
//
//	1 those behind its end, as far as they are free: the segment grows
//	2 a piece of the largest gap, from its middle, so that whoever lies before
//	  the gap and the piece itself can both grow; nearer to the gap's begin if
//	  the second half is too small. A volume that exists takes at least Jump.
//	3 whole gaps, the largest first, while one is too small
//
// A volume that is Still takes the end of the smallest gap that has room for it.
//
// The error wraps ErrNoSpace if Need is not to be had. It changes nothing of
// what it is given.
func Place(space []Space, d Demand) ([]Piece, error) {
	gaps := gapsOf(space)
	var out []Piece
	taken := int64(0)
	take := func(p Piece) {
		out = append(out, p)
		taken += p.Count
	}
	most := max(d.Most, d.Want)
	if i := slices.IndexFunc(gaps, func(g Piece) bool { return d.Size > 0 && g.PV == d.TailPV && g.First == d.TailEnd }); i >= 0 && d.Want > 0 {
		n := min(gaps[i].Count, d.Want)
		take(Piece{gaps[i].PV, Range{gaps[i].First, n}})
		gaps[i].First, gaps[i].Count = gaps[i].First+n, gaps[i].Count-n
	}
	for taken < d.Want {
		n := d.Want - taken
		if i := tightest(gaps, n); d.Still && i >= 0 {
			take(Piece{gaps[i].PV, Range{gaps[i].End() - n, n}})
			break
		}
		i := largest(gaps)
		if i < 0 {
			break
		}
		if d.Size > 0 {
			n = min(max(n, d.Jump), most-taken)
		}
		p := middle(gaps[i], n)
		take(p)
		gaps[i].Count = 0 // the rest of it is for others
	}
	if taken < d.Need {
		return nil, fmt.Errorf("%d extents are needed and %d are free: %w", d.Need, freeExtents(space), ErrNoSpace)
	}
	return out, nil
}

// middle takes n extents of a gap, or all of it.
func middle(gap Piece, n int64) Piece {
	n = min(n, gap.Count)
	first := min(gap.First+gap.Count/2, gap.End()-n)
	return Piece{gap.PV, Range{first, n}}
}

// gapsOf lists the gaps, those that touch as one.
func gapsOf(space []Space) []Piece {
	var gaps []Piece
	for _, s := range space {
		for _, r := range s.Free {
			if n := len(gaps); n > 0 && gaps[n-1].PV == s.PV && gaps[n-1].End() == r.First {
				gaps[n-1].Count += r.Count
				continue
			}
			gaps = append(gaps, Piece{s.PV, r})
		}
	}
	return gaps
}

// largest is the index of the largest gap, the first of equals; -1 if nothing is
// free.
func largest(gaps []Piece) int {
	best := -1
	for i, g := range gaps {
		if g.Count > 0 && (best < 0 || g.Count > gaps[best].Count) {
			best = i
		}
	}
	return best
}

// tightest is the index of the smallest gap of at least n extents, the first of
// equals; -1 if there is none.
func tightest(gaps []Piece, n int64) int {
	best := -1
	for i, g := range gaps {
		if g.Count >= n && (best < 0 || g.Count < gaps[best].Count) {
			best = i
		}
	}
	return best
}

func freeExtents(space []Space) (n int64) {
	for _, s := range space {
		for _, r := range s.Free {
			n += r.Count
		}
	}
	return n
}

// without returns space less the pieces.
func without(space []Space, pieces []Piece) []Space {
	out := make([]Space, len(space))
	for i, s := range space {
		out[i] = Space{PV: s.PV, Free: slices.Clone(s.Free)}
		for _, p := range pieces {
			if p.PV == s.PV {
				out[i].Free = cut(out[i].Free, p.Range)
			}
		}
	}
	return out
}

// cut takes a run out of runs.
func cut(runs []Range, c Range) []Range {
	var out []Range
	for _, r := range runs {
		before := Range{r.First, min(c.First, r.End()) - r.First}
		after := Range{max(c.End(), r.First), 0}
		after.Count = r.End() - after.First
		if c.Count <= 0 || c.First >= r.End() || c.End() <= r.First {
			out = append(out, r)
			continue
		}
		if before.Count > 0 {
			out = append(out, before)
		}
		if after.Count > 0 {
			out = append(out, after)
		}
	}
	slices.SortFunc(out, func(a, b Range) int { return cmp.Compare(a.First, b.First) })
	return out
}
