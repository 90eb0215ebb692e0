package lvm

import (
	"cmp"
	"context"
	"slices"
)

// changeKnownLocked runs a command that, if it succeeds, has made the group what after
// is, and that nothing is asked of afterwards: so it is not read again. What others have
// changed meanwhile is found by the next look. A command that fails, or a group of which
// it is not known what it would be (nil), is read as with changeLocked.
func (g *Group) changeKnownLocked(ctx context.Context, ours string, after *VG, verb string, args ...string) (refused, err error) {
	if g.failed != nil || after == nil {
		return g.changeLocked(ctx, ours, verb, args...)
	}
	if _, err := g.tool.metadata(ctx, verb, args...); err != nil {
		return err, g.settleLocked(context.WithoutCancel(ctx), ours)
	}
	g.vg, g.durable = after, -1 // the command has raised the seqno, to what only a look would say
	g.showLocked()
	return nil, g.flushLocked()
}

// retagged is the group after the tags of a volume have changed.
func (v *VG) retagged(uuid string, remove, add []string) *VG {
	after := *v
	after.LVs = slices.Clone(v.LVs)
	for i, l := range after.LVs {
		if l.UUID != uuid {
			continue
		}
		tags := slices.DeleteFunc(slices.Clone(l.Tags), func(t string) bool { return slices.Contains(remove, t) })
		for _, t := range add {
			if !slices.Contains(tags, t) {
				tags = append(tags, t)
			}
		}
		after.LVs[i].Tags = tags
	}
	return &after
}

// without is the group after a volume has been removed, or nil if it is not known where
// all of it lies. How full the metadata is, is said as it was: it is no more.
func (v *VG) without(uuid string) *VG {
	after := *v
	after.LVs, after.PVs = nil, slices.Clone(v.PVs)
	for _, l := range v.LVs {
		if l.UUID != uuid {
			after.LVs = append(after.LVs, l)
			continue
		}
		for _, s := range l.Segments {
			i := slices.IndexFunc(after.PVs, func(p PV) bool { return p.UUID == s.PV })
			if i < 0 {
				return nil
			}
			after.PVs[i].Free = joined(append(slices.Clone(after.PVs[i].Free), Range{s.First, s.Count}))
			after.Free += s.Count
		}
	}
	return &after
}

// joined sorts runs, and makes one of those that are neighbours.
func joined(runs []Range) []Range {
	slices.SortFunc(runs, func(a, b Range) int { return cmp.Compare(a.First, b.First) })
	var out []Range
	for _, r := range runs {
		if n := len(out); n > 0 && out[n-1].End() == r.First {
			out[n-1].Count += r.Count
			continue
		}
		out = append(out, r)
	}
	return out
}
