package spm

import (
	"cmp"
	"context"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// reduceVolume gives back what a volume has been granted beyond its data.
func (o *operations) reduceVolume(ctx context.Context, at VolumeAt) (kind string, args any, err error) {
	_, k, err := o.volume(at)
	if err != nil {
		return "", nil, err
	}
	at.Image, at.Volume = k.image, k.id
	a := reduceArgs{VolumeAt: at, Generation: k.meta.Generation, Legality: k.meta.Legality}
	return kindReduce, a, o.checkReduce(ctx, a)
}

// reduceArgs is a volume that gives space back, and had that generation. It has the same
// legality afterwards; "" is legal.
type reduceArgs struct {
	VolumeAt
	Generation int
	Legality   string
}

func (a reduceArgs) legality() string { return cmp.Or(a.Legality, Legal) }

// mayReduce decides whether a volume may be made shorter. One that is illegal below a
// volume that is whole was left so by a merge that failed, and may have been granted space
// for that, also a raw one.
func mayReduce(f *family, a reduceArgs) error {
	k, err := f.member(a.Image, a.Volume)
	unmerged := err == nil && !k.legal() && f.covered(k)
	switch {
	case err != nil:
		return err
	case k.meta.Format == Raw && !unmerged:
		return errorf(CodeUnsupported, "volume %s is raw, and all of it is data", k.id)
	case k.meta.Type == Preallocated && k.meta.Format != Raw:
		return errorf(CodeWrongState, "volume %s is %s: its space is its own", k.id, Preallocated)
	case !k.legal() && !unmerged:
		return f.illegal(k)
	case k.meta.Generation != a.Generation:
		return errorf(CodeStale, "volume %s has generation %d, expected %d: repeat the request", k.id, k.meta.Generation, a.Generation)
	}
	_, err = f.chain(k.id)
	return err
}

func (o *operations) checkReduce(ctx context.Context, a reduceArgs) error {
	m, err := o.at(a.Pool, a.Domain)
	if err != nil {
		return err
	}
	if err := mayReduce(m.family(), a); err != nil {
		return err
	}
	return o.idle(ctx, m, a.Image, a.Volume)
}

// planReduce: while the volume is illegal nobody opens it, so that nothing is
// written between the look at its data and the cut.
func (o *operations) planReduce(a reduceArgs) task.Plan {
	legal := func(ctx context.Context) error {
		return unlessMissing(o.mark(ctx, a.Domain, a.Image, []uuid.UUID{a.Volume}, a.legality()))
	}
	done := func(ctx context.Context) error {
		m, err := o.domain(a.Domain)
		if err != nil {
			return err
		}
		return unlessMissing(m.setMeta(ctx, a.Image, a.Volume, func(meta *volumeMeta) {
			meta.Legality, meta.Generation = a.legality(), nextGeneration(a.Generation)
		}))
	}
	return task.Plan{
		Locks: locksOf(a.Domain, a.Image),
		Steps: []task.Step{
			step("check", func(ctx context.Context) error { return o.checkReduce(ctx, a) }, nil),
			step("mark", func(ctx context.Context) error {
				return o.mark(ctx, a.Domain, a.Image, []uuid.UUID{a.Volume}, Illegal)
			}, legal),
			step("reduce", func(ctx context.Context) error { return o.cut(ctx, a) }, nil),
			orElse(step("legal", done, nil), done),
		},
		Commit: 3,
	}
}

// cut makes the volume as long as its data.
func (o *operations) cut(ctx context.Context, a reduceArgs) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	if err := o.idle(ctx, m, a.Image, a.Volume); err != nil {
		return err
	}
	chain, err := m.places(a.Volume)
	if err != nil {
		return err
	}
	use, err := o.jobs.Use(ctx, chain)
	if err != nil {
		return jobError(err, "look at volume %s", a.Volume)
	}
	return m.shrinkTo(ctx, a.Image, a.Volume, chain[len(chain)-1].Granted, use.End)
}
