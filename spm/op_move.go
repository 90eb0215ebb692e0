package spm

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// moveArgs is an image that moves to another domain, with its volumes from the base
// up, and the image of the template that it is based on, if it is on one.
type moveArgs struct {
	Pool, From, To, Image uuid.UUID
	Template              uuid.UUID
	Volumes               []uuid.UUID
	Copy, Zero, Force     bool
}

// moveImage moves or copies an image with its chain to another domain, where the
// template must be that it is based on.
func (o *operations) moveImage(ctx context.Context, r MoveImage) (kind string, args any, err error) {
	m, err := o.at(r.Pool, r.From)
	if err != nil {
		return "", nil, err
	}
	f := m.family()
	if len(f.images[r.Image]) == 0 {
		return "", nil, errorf(CodeUnknownImage, "domain %s has no image %s", r.From, r.Image)
	}
	volumes := f.topFirst(slices.Clone(f.images[r.Image]))
	slices.Reverse(volumes)
	a := moveArgs{Pool: r.Pool, From: r.From, To: r.To, Image: r.Image, Volumes: volumes, Copy: r.Copy, Zero: r.PostZero, Force: r.Force}
	if to, err := o.at(r.Pool, r.To); err == nil {
		a.Template = to.family().all[f.all[volumes[0]].meta.Parent].image
	}
	return kindMoveImage, a, o.checkMove(ctx, a)
}

// checkMove says whether the image can be moved now.
func (o *operations) checkMove(ctx context.Context, a moveArgs) error {
	from, err := o.at(a.Pool, a.From)
	if err != nil {
		return err
	}
	to, err := o.at(a.Pool, a.To)
	if err != nil {
		return err
	}
	if a.From == a.To {
		return errorf(CodeInvalid, "image %s is in domain %s already", a.Image, a.To)
	}
	f := from.family()
	if err := mayMove(f, to.family(), a); err != nil {
		return err
	}
	if err := from.there(); err != nil {
		return err
	}
	var need int64
	for _, id := range a.Volumes {
		if err := absent(to, a.Image, id); err != nil {
			return err
		}
		need += movedSize(to, from.info(id))
	}
	if err := to.room(a.Volumes[len(a.Volumes)-1], a.Image, need); err != nil {
		return err
	}
	if a.Copy {
		return o.still(ctx, from, f.all[a.Volumes[len(a.Volumes)-1]])
	}
	return o.idle(ctx, from, a.Image, a.Volumes...)
}

// mayMove decides whether an image may be moved between domains of which that is
// known.
func mayMove(from, to *family, a moveArgs) error {
	all := from.images[a.Image]
	if len(all) == 0 {
		return errorf(CodeUnknownImage, "domain %s has no image %s", a.From, a.Image)
	}
	if len(all) != len(a.Volumes) {
		return errorf(CodeWrongState, "image %s has %d volumes, and had %d when it was to be moved: repeat the request", a.Image, len(all), len(a.Volumes))
	}
	if !a.Copy {
		if err := from.mayGo(a.Image); err != nil {
			return err
		}
	}
	if err := from.mayChange(a.Image); err != nil {
		return err
	}
	for _, k := range all {
		switch {
		case !slices.Contains(a.Volumes, k.id):
			return errorf(CodeWrongState, "volume %s of image %s is new: repeat the request", k.id, a.Image)
		case !k.legal():
			return from.illegal(k)
		}
		for _, c := range from.kids[k.id] {
			if c.image != a.Image && !a.Copy {
				return errorf(CodeHasChildren, "volume %s of image %s is based on image %s: it can be copied, and not moved", c.id, c.image, a.Image)
			}
		}
		if below, there := from.all[k.meta.Parent]; k.meta.Parent != uuid.Nil && (!there || below.image != a.Image) {
			if t, there := to.all[k.meta.Parent]; !there || !t.shared() || !t.legal() {
				return errorf(CodeWrongState, "image %s is based on the template %s, which domain %s does not have: copy that first", a.Image, k.meta.Parent, a.To)
			}
		}
	}
	return nil
}

// room refuses an image, with that leaf, that needs more bytes than can be granted.
func (m *Manager) room(leaf, image uuid.UUID, need int64) error {
	if err := m.there(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if free := m.freeLocked() - m.reserveOfLocked(); need > free {
		return m.refuseLocked(leaf, "", need, "image %s needs %d bytes in domain %s, of which %d can be granted",
			image, need, m.ident.domain, max(free, 0))
	}
	return nil
}

// allocIn is the allocation that a volume has in a domain of that kind: a block domain holds
// a raw one with all of its space only.
func allocIn(kind, alloc, format string) string {
	if format == Raw && kind == typeGroup {
		return Preallocated
	}
	return alloc
}

// movedSize is what a volume is granted in another domain.
func movedSize(to *Manager, i VolumeInfo) int64 {
	meta := volumeMeta{Capacity: i.Capacity, Format: i.Format}
	if i.Format == Raw || i.Alloc == Preallocated {
		return to.boundOf(meta)
	}
	return min(roundUp(i.Granted, to.unit()), to.boundOf(meta))
}

// planMove: the volumes are illegal in the new domain until they are all there,
// and from then on in the old one. The template there does not go meanwhile. Of an
// image that stays, others may read what is not written to: a template is copied while
// images that are based on it are served.
func (o *operations) planMove(a moveArgs) task.Plan {
	p := task.Plan{
		Locks: append(locksOf(a.To, a.Image, a.Template), domainLock(a.From), imageLock(a.From, a.Image, !a.Copy)),
		Steps: []task.Step{
			step("check", func(ctx context.Context) error { return o.checkMove(ctx, a) }, nil),
			step("make", func(ctx context.Context) error { return o.makeMoved(ctx, a) },
				func(ctx context.Context) error { return o.dropImage(ctx, a.To, a.Image, false) }),
		},
	}
	for i, id := range a.Volumes {
		p.Steps = append(p.Steps, task.Step{
			Name: fmt.Sprintf("copy %d", i+1),
			Do:   func(ctx context.Context, r *task.Run) error { return o.fillMoved(ctx, a, id, r.Progress) },
		})
	}
	p.Commit = len(p.Steps)
	p.Steps = append(p.Steps, orElse(step("legal", func(ctx context.Context) error { return o.legalMoved(ctx, a) }, nil),
		func(ctx context.Context) error { return o.dropImage(ctx, a.To, a.Image, false) }))
	if !a.Copy {
		p.Steps = append(p.Steps, step("remove", func(ctx context.Context) error { return o.removeMoved(ctx, a) }, nil))
	}
	return p
}

func (o *operations) makeMoved(ctx context.Context, a moveArgs) error {
	from, to, err := o.both(a.From, a.To)
	if err != nil {
		return err
	}
	f := from.family()
	for _, id := range a.Volumes {
		k, err := f.member(a.Image, id)
		if err != nil {
			return err
		}
		meta := k.meta
		meta.Domain, meta.Legality, meta.Generation = a.To, Illegal, nextGeneration(meta.Generation)
		meta.Type = allocIn(to.store.kind(), meta.Type, meta.Format)
		if err := to.ensureVolume(ctx, making{id: id, meta: meta, granted: movedSize(to, from.info(id))}); err != nil {
			return err
		}
	}
	return nil
}

// fillMoved copies what a volume has above those below it.
func (o *operations) fillMoved(ctx context.Context, a moveArgs, id uuid.UUID, p Progress) error {
	from, to, err := o.both(a.From, a.To)
	if err != nil {
		return err
	}
	chain, err := from.places(id)
	if err != nil {
		return err
	}
	backing := to.backing(to.family().all[id].meta)
	return o.fill(ctx, to, a.Image, id, false, func(dst Place) error { return o.jobs.Copy(ctx, chain, dst, backing, p) })
}

// legalMoved makes the moved image legal, the leaf first: a base that is legal alone
// would be taken for the leaf.
func (o *operations) legalMoved(ctx context.Context, a moveArgs) error {
	down := slices.Clone(a.Volumes)
	slices.Reverse(down)
	return unlessMissing(o.mark(ctx, a.To, a.Image, down, Legal))
}

// removeMoved removes the original, the leaf of which becomes illegal at last: until
// then no other volume is taken for it.
func (o *operations) removeMoved(ctx context.Context, a moveArgs) error {
	if err := o.mark(ctx, a.From, a.Image, a.Volumes, Illegal); err != nil {
		return err
	}
	return o.dropImage(ctx, a.From, a.Image, a.Zero)
}
