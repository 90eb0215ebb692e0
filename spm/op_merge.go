package spm

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// mergeArgs are the volumes of a merge, from the ancestor to the successor, and what
// the ancestor will be: all that the successor is.
type mergeArgs struct {
	Pool, Domain, Image uuid.UUID
	Run                 []uuid.UUID
	Size                int64  // virtual
	Type                string // LEAF or INTERNAL
	Generation          int    // of the ancestor, before
	Granted             int64  // to the ancestor, before; 0: it is not known
	Illegal             []int  `json:",omitempty"` // which of Run were, before
	Zero                bool
}

func (a mergeArgs) ancestor() uuid.UUID  { return a.Run[0] }
func (a mergeArgs) successor() uuid.UUID { return a.Run[len(a.Run)-1] }

// torn are the volumes that show nothing whole while the merge is half done.
func (a mergeArgs) torn() []uuid.UUID { return a.Run[:len(a.Run)-1] }

// whole are those of them that were legal before.
func (a mergeArgs) whole() (all []uuid.UUID) {
	for i, id := range a.torn() {
		if !slices.Contains(a.Illegal, i) {
			all = append(all, id)
		}
	}
	return all
}

// above are the volumes that are merged and go, the topmost first.
func (a mergeArgs) above() []uuid.UUID {
	all := slices.Clone(a.Run[1:])
	slices.Reverse(all)
	return all
}

// mergeVolumes merges a volume into one below it, which stays.
func (o *operations) mergeVolumes(ctx context.Context, r MergeVolumes) (kind string, args any, err error) {
	m, err := o.at(r.Pool, r.Domain)
	if err != nil {
		return "", nil, err
	}
	run, err := m.family().mayMerge(r.Image, r.Ancestor, r.Successor)
	if err != nil {
		return "", nil, err
	}
	s, served, err := o.serving(ctx, m, r.Image)
	if err != nil {
		return "", nil, err
	}
	top := run[len(run)-1].meta
	a := mergeArgs{
		Pool: r.Pool, Domain: r.Domain, Image: r.Image, Zero: r.PostZero,
		Size: max(top.Capacity, run[0].meta.Capacity), Type: top.VolType, Generation: run[0].meta.Generation,
		Granted: m.info(run[0].id).Granted,
	}
	for i, k := range run {
		a.Run = append(a.Run, k.id)
		if !k.legal() {
			a.Illegal = append(a.Illegal, i)
		}
	}
	if served && servedBy(m.family(), s, a.Run) {
		return kindMergeLive, a, o.checkMergeLive(ctx, a)
	}
	return kindMerge, a, o.checkMerge(ctx, a)
}

// mergeable says whether the volumes of a merge are as they were when it was asked
// for.
func (o *operations) mergeable(a mergeArgs) (*Manager, error) {
	m, err := o.at(a.Pool, a.Domain)
	if err != nil {
		return nil, err
	}
	run, err := m.family().mayMerge(a.Image, a.ancestor(), a.successor())
	if err != nil {
		return nil, err
	}
	top := run[len(run)-1].meta
	stale := len(run) != len(a.Run) || run[0].meta.Generation != a.Generation || top.VolType != a.Type || max(top.Capacity, run[0].meta.Capacity) != a.Size
	for i, k := range run {
		stale = stale || k.legal() == slices.Contains(a.Illegal, i)
	}
	if stale {
		return nil, errorf(CodeStale, "the chain of image %s has changed since the merge of %s into %s was asked for: repeat the request",
			a.Image, a.successor(), a.ancestor())
	}
	return m, nil
}

func (o *operations) checkMerge(ctx context.Context, a mergeArgs) error {
	m, err := o.mergeable(a)
	if err != nil {
		return err
	}
	return o.idle(ctx, m, a.Image, a.Run...)
}

// planMerge merges volumes that nobody has open. Until the step "publish" the chain
// is whole as seen from the successor: what is written to the ancestor is what the
// volumes above have themselves. From then on the ancestor shows the same. What is
// between them is whole neither before nor after that: it is illegal, and goes.
func (o *operations) planMerge(a mergeArgs) task.Plan {
	return task.Plan{
		Locks: locksOf(a.Domain, a.Image),
		Steps: []task.Step{
			step("check", func(ctx context.Context) error { return o.checkMerge(ctx, a) }, nil),
			step("space", func(ctx context.Context) error { return o.mergeSpace(ctx, a) },
				func(ctx context.Context) error { return o.unspend(ctx, a) }),
			o.tear(a),
			{Name: "merge", Do: func(ctx context.Context, r *task.Run) error { return o.commitMerge(ctx, a, r.Progress) }},
			step("publish", func(ctx context.Context) error { return o.publishMerge(ctx, a) }, nil),
			step("rebase", func(ctx context.Context) error { return o.rebaseChildren(ctx, a) }, nil),
			step("remove", func(ctx context.Context) error { return o.removeMerged(ctx, a) }, nil),
		},
		Commit: 4,
	}
}

// tearStep is the number of the step "mark" of both plans.
const tearStep = 2

// tear is the step that makes illegal what the next one changes, or what is based on
// that. It is undone only if the next one has not begun.
func (o *operations) tear(a mergeArgs) task.Step {
	return task.Step{
		Name: "mark",
		Do: func(ctx context.Context, _ *task.Run) error {
			return o.mark(ctx, a.Domain, a.Image, a.torn(), Illegal)
		},
		Undo: func(ctx context.Context, r *task.Run) error {
			if r.Reached != tearStep {
				return nil
			}
			return o.mark(ctx, a.Domain, a.Image, a.whole(), Legal)
		},
	}
}

// mergeSpace gives the ancestor the space that it will need, from the reserve if
// need be: what goes afterwards gives back more.
func (o *operations) mergeSpace(ctx context.Context, a mergeArgs) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	k, err := m.family().member(a.Image, a.ancestor())
	if err != nil {
		return err
	}
	if err := m.raiseBound(a.Image, a.ancestor(), a.Size); err != nil {
		return err
	}
	need := a.Size
	if k.meta.Format != Raw {
		if need, err = o.mergedSize(ctx, m, a); err != nil {
			return err
		}
		need = min(need, m.info(a.ancestor()).Bound)
	}
	return m.grantAtLeast(ctx, a.Image, a.ancestor(), need, true)
}

// unspend takes back what the ancestor of a merge that is rolled back was granted for
// it, but for what has been written there: its data are part of what the volumes above
// show. Who serves the image may have it open, and of an image that cannot be read nobody
// knows where its data end: then the space stays, and reduceVolume gives it back, or the
// merge, which is tried again, takes it.
func (o *operations) unspend(ctx context.Context, a mergeArgs) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	i := m.info(a.ancestor())
	if a.Granted == 0 || i.Granted <= a.Granted {
		return nil
	}
	to := a.Granted
	if i.Format != Raw {
		chain, err := m.places(a.ancestor())
		if err == nil {
			var use ImageUse
			use, err = o.jobs.Use(ctx, chain)
			to = max(to, use.End)
		}
		if err != nil {
			m.o.Log.Warn("a merge is rolled back, and its ancestor keeps the space that it was granted", "volume", a.ancestor(),
				"granted", i.Granted, "before", a.Granted, "error", err)
			return nil
		}
	}
	err = m.shrinkTo(ctx, a.Image, a.ancestor(), i.Granted, to)
	if err != nil && CodeOf(err) == CodeInUse {
		m.o.Log.Warn("a merge is rolled back, and its ancestor keeps the space that it was granted: it is in use", "volume", a.ancestor(),
			"granted", i.Granted, "before", a.Granted)
		return nil
	}
	return unlessMissing(err)
}

// mergedSize is what the ancestor will take at most: what a copy of the chain does,
// if it is the base of that, and otherwise what all of them take now.
func (o *operations) mergedSize(ctx context.Context, m *Manager, a mergeArgs) (need int64, err error) {
	chain, err := m.places(a.successor())
	if err != nil {
		return 0, err
	}
	if len(chain) == len(a.Run) {
		r, err := o.jobs.Measure(ctx, chain, FormatQCOW2)
		return r.Required + r.Bitmaps, jobError(err, "measure volume %s", a.successor())
	}
	for n := len(chain) - len(a.Run); n < len(chain); n++ {
		use, err := o.jobs.Use(ctx, chain[:n+1])
		if err != nil {
			return 0, jobError(err, "look at volume %s", chain[n].VolumeUUID)
		}
		need += use.End
	}
	return need, nil
}

// commitMerge copies down. While the ancestor is illegal nobody needs what it shows
// itself, so that this may be begun as often as it takes.
func (o *operations) commitMerge(ctx context.Context, a mergeArgs, p Progress) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	if err := m.raiseBound(a.Image, a.ancestor(), a.Size); err != nil { // again: marking it has set it
		return err
	}
	return o.fill(ctx, m, a.Image, a.ancestor(), true, func(Place) error {
		chain, err := m.places(a.successor())
		if err != nil {
			return err
		}
		base := len(chain) - len(a.Run)
		if chain[base].Format == FormatRaw {
			chain[base].Size = a.Size
		}
		return o.jobs.Commit(ctx, chain, base, p)
	})
}

// publishMerge makes the ancestor what the successor was, and that illegal with what
// is between.
func (o *operations) publishMerge(ctx context.Context, a mergeArgs) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	err = m.setMeta(ctx, a.Image, a.ancestor(), func(meta *volumeMeta) {
		meta.Legality, meta.Generation, meta.VolType, meta.Capacity = Legal, nextGeneration(a.Generation), a.Type, a.Size
	})
	if err != nil {
		return unlessMissing(err)
	}
	return o.mark(ctx, a.Domain, a.Image, a.above(), Illegal)
}

// rebaseChildren lets what was based on the successor be based on the ancestor: each
// one's image first, for both have the same content.
func (o *operations) rebaseChildren(ctx context.Context, a mergeArgs) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	f := m.family()
	for _, child := range f.kids[a.successor()] {
		at, err := m.places(child.id)
		if err != nil {
			return err
		}
		meta := child.meta
		meta.Parent = a.ancestor()
		if err := o.jobs.Rebase(ctx, at[len(at)-1], m.backing(meta)); err != nil {
			return m.hopeless(jobError(err, "base volume %s on %s", child.id, a.ancestor()))
		}
		err = m.setMeta(ctx, child.image, child.id, func(meta *volumeMeta) { meta.Parent = a.ancestor() })
		if err != nil {
			return unlessMissing(err)
		}
	}
	return nil
}

func (o *operations) removeMerged(ctx context.Context, a mergeArgs) error {
	return o.removeVolumes(ctx, deleteArgs{Domain: a.Domain, Image: a.Image, Volumes: a.above(), Zero: a.Zero})
}
