package spm

import (
	"cmp"
	"context"
	"errors"

	"github.com/google/uuid"

	"tidemark/internal/block"
	"tidemark/spm/task"
)

// copyArgs is a volume that is copied, with what is below it, and the one that it
// is copied to.
type copyArgs struct {
	From, To VolumeAt
	Meta     volumeMeta `json:"metadata"` // of the new one, once it is whole, but for its size: that is what is copied
}

// copyImage copies a volume, with everything below it, to the only volume of a new
// image.
func (o *operations) copyImage(ctx context.Context, r CopyImage) (kind string, args any, err error) {
	from, src, err := o.volume(r.From)
	if err != nil {
		return "", nil, err
	}
	r.From.Domain, r.From.Image, r.From.Volume = from.ident.domain, src.image, src.id
	to, err := o.at(r.To.Pool, r.To.Domain)
	if err != nil {
		return "", nil, err
	}
	meta := src.meta
	meta.Created, meta.Domain, meta.Image, meta.Parent = to.o.Now().Unix(), to.ident.domain, r.To.Image, uuid.Nil
	meta.Description, meta.Sequence, meta.Generation, meta.Legality = fittingDescription(r.Description), 1, 0, Legal
	meta.Format = cmp.Or(r.Format, meta.Format)
	if meta.Type = r.Alloc; meta.Type == "" {
		meta.Type = allocIn(to.store.kind(), src.meta.Type, meta.Format)
	}
	meta.VolType = cmp.Or(r.Type, Leaf)
	a := copyArgs{From: r.From, To: r.To, Meta: meta}
	if err := checkMeta(to.store.kind(), meta, a.To.Volume); err != nil {
		return "", nil, err
	}
	if err := o.checkCopy(ctx, a); err != nil {
		return "", nil, err
	}
	return kindCopyImage, a, o.checkSpace(to, a.To.Volume, meta, 0)
}

// checkCopy says whether the copy can be made now.
func (o *operations) checkCopy(ctx context.Context, a copyArgs) error {
	from, src, err := o.volume(a.From)
	if err != nil {
		return err
	}
	to, err := o.at(a.To.Pool, a.To.Domain)
	if err != nil {
		return err
	}
	if !src.legal() {
		return from.family().illegal(src)
	}
	if _, err := from.family().chain(src.id); err != nil {
		return err
	}
	if err := absent(to, a.To.Image, a.To.Volume); err != nil {
		return err
	}
	if err := o.mayName(a.To.Image, a.Meta.alias()); err != nil {
		return err
	}
	return o.still(ctx, from, src)
}

// absent refuses an image, or a volume, that is there.
func absent(m *Manager, image, volume uuid.UUID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if other := m.volumes[volume]; other != nil {
		return errorf(CodeExists, "domain %s has a volume %s already, in image %s", m.ident.domain, volume, other.image)
	}
	for _, v := range m.volumes {
		if v.image == image {
			return errorf(CodeExists, "domain %s has an image %s already", m.ident.domain, image)
		}
	}
	return nil
}

// still refuses to read a volume that a server writes to.
func (o *operations) still(ctx context.Context, m *Manager, k kin) error {
	s, there, err := o.serving(ctx, m, k.image)
	if err != nil {
		return err
	}
	if there && !s.ReadOnly && (s.Leaf == k.id.String() || s.Merge != "") {
		return errorf(CodeInUse, "image %s is served by process %d (%s), and volume %s is written to: tear it down, or make a snapshot and copy what is below",
			k.image, s.PID, s.URI, k.id)
	}
	return nil
}

// planCopy: the new volume is illegal until it is whole.
func (o *operations) planCopy(a copyArgs) task.Plan {
	locks := append(locksOf(a.To.Domain, a.To.Image), domainLock(a.From.Domain), imageLock(a.From.Domain, a.From.Image, false))
	return task.Plan{
		Locks: append(locks, nameLocks(a.Meta)...),
		Steps: []task.Step{
			step("check", func(ctx context.Context) error { return o.checkCopy(ctx, a) }, nil),
			step("make", func(ctx context.Context) error { return o.makeCopy(ctx, a) },
				func(ctx context.Context) error { return o.drop(ctx, a.To, false) }),
			{Name: "copy", Do: func(ctx context.Context, r *task.Run) error { return o.fillCopy(ctx, a, r.Progress) }},
			orElse(step("legal", func(ctx context.Context) error {
				return unlessMissing(o.mark(ctx, a.To.Domain, a.To.Image, []uuid.UUID{a.To.Volume}, Legal))
			}, nil), func(ctx context.Context) error { return o.drop(ctx, a.To, false) }),
		},
		Commit: 3,
	}
}

// makeCopy makes the volume, with as much space as the copy will take.
func (o *operations) makeCopy(ctx context.Context, a copyArgs) error {
	from, to, err := o.both(a.From.Domain, a.To.Domain)
	if err != nil {
		return err
	}
	chain, err := from.places(a.From.Volume)
	if err != nil {
		return err
	}
	need, err := o.jobs.Measure(ctx, chain, a.Meta.wireFormat())
	if err != nil {
		return jobError(err, "measure volume %s", a.From.Volume)
	}
	src, err := from.family().member(a.From.Image, a.From.Volume) // which is locked, and keeps its size
	if err != nil {
		return err
	}
	meta := a.Meta
	meta.Legality, meta.Capacity = Illegal, src.meta.Capacity
	return to.ensureVolume(ctx, making{id: a.To.Volume, meta: meta, granted: max(need.Required+need.Bitmaps, to.unit())})
}

// both returns the managers of two domains.
func (o *operations) both(one, other uuid.UUID) (a, b *Manager, err error) {
	if a, err = o.domain(one); err != nil {
		return nil, nil, err
	}
	b, err = o.domain(other)
	return a, b, err
}

func (o *operations) fillCopy(ctx context.Context, a copyArgs, p Progress) error {
	from, to, err := o.both(a.From.Domain, a.To.Domain)
	if err != nil {
		return err
	}
	chain, err := from.places(a.From.Volume)
	if err != nil {
		return err
	}
	return o.fill(ctx, to, a.To.Image, a.To.Volume, false, func(dst Place) error {
		return o.jobs.Copy(ctx, chain, dst, nil, p)
	})
}

// growPart is the part of what a volume has that it gets more, when a job finds it
// too small.
const growPart = 4

// fill lets a job fill a volume, which is made larger when that says that there is
// too little space in it: a job may be repeated. With spare, it gets that from the
// reserve.
func (o *operations) fill(ctx context.Context, m *Manager, image, id uuid.UUID, spare bool, job func(Place) error) error {
	for {
		at, err := m.places(id)
		if err != nil {
			return err
		}
		dst := at[len(at)-1]
		err = job(dst)
		if !errors.Is(err, block.ErrNoSpace) {
			return jobError(err, "fill volume %s", id)
		}
		bound := m.info(id).Bound
		if dst.Granted >= bound {
			return jobError(err, "fill volume %s, which has its bound of %d bytes", id, bound)
		}
		if err := m.grantAtLeast(ctx, image, id, min(dst.Granted+dst.Granted/growPart+m.unit(), bound), spare); err != nil {
			return err
		}
	}
}
