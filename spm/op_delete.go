package spm

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// deleteArgs are volumes of an image that go, in the order in which they do.
type deleteArgs struct {
	Pool, Domain, Image uuid.UUID
	Volumes             []uuid.UUID
	Zero                bool
	Force               bool
}

// deleteVolumes removes volumes that nothing else is based on.
func (o *operations) deleteVolumes(ctx context.Context, r DeleteVolumes) (kind string, args any, err error) {
	m, err := o.at(r.Pool, r.Domain)
	if err != nil {
		return "", nil, err
	}
	order, err := m.family().mayDelete(r.Image, r.Volumes, r.Force)
	if err != nil {
		return "", nil, err
	}
	a := deleteArgs{Pool: r.Pool, Domain: r.Domain, Image: r.Image, Volumes: order, Zero: r.PostZero, Force: r.Force}
	return kindDeleteVolume, a, o.checkDelete(ctx, a)
}

func (o *operations) checkDelete(ctx context.Context, a deleteArgs) error {
	m, err := o.at(a.Pool, a.Domain)
	if err != nil {
		return err
	}
	if _, err := m.family().mayDelete(a.Image, a.Volumes, a.Force); err != nil {
		return err
	}
	return o.mayRemove(ctx, m, a.Image, a.Volumes)
}

// mayRemove refuses to remove what somebody uses. A volume whose file is not there may go.
func (o *operations) mayRemove(ctx context.Context, m *Manager, image uuid.UUID, volumes []uuid.UUID) error {
	err := o.idle(ctx, m, image, volumes...)
	if CodeOf(err) == CodeDamaged && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// planDelete: a volume that has become illegal is opened by nobody any more, and
// only goes.
func (o *operations) planDelete(a deleteArgs) task.Plan {
	return task.Plan{
		Locks: locksOf(a.Domain, a.Image),
		Steps: []task.Step{
			step("check", func(ctx context.Context) error { return o.checkDelete(ctx, a) }, nil),
			step("mark", func(ctx context.Context) error { return o.mark(ctx, a.Domain, a.Image, a.Volumes, Illegal) }, nil),
			step("remove", func(ctx context.Context) error { return o.removeVolumes(ctx, a) }, nil),
		},
		Commit: 1,
	}
}

// mark says of volumes that they are legal or illegal. Those that are damaged or
// not there are left out.
func (o *operations) mark(ctx context.Context, domain, image uuid.UUID, volumes []uuid.UUID, legality string) error {
	m, err := o.domain(domain)
	if err != nil {
		return err
	}
	for _, id := range volumes {
		err := m.setMeta(ctx, image, id, func(meta *volumeMeta) { meta.Legality = legality })
		if err != nil && !missing(err) && CodeOf(err) != CodeDamaged {
			return err
		}
	}
	return nil
}

// removeVolumes removes volumes of an image, and lets the one below them be its leaf.
func (o *operations) removeVolumes(ctx context.Context, a deleteArgs) error {
	for _, id := range a.Volumes {
		if err := o.drop(ctx, VolumeAt{Domain: a.Domain, Image: a.Image, Volume: id}, a.Zero); err != nil {
			return err
		}
	}
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	return m.settle(ctx, a.Image)
}

// deleteImage removes an image with all its volumes.
func (o *operations) deleteImage(ctx context.Context, r DeleteImage) (kind string, args any, err error) {
	a := deleteArgs{Pool: r.Pool, Domain: r.Domain, Image: r.Image, Zero: r.PostZero, Force: r.Force}
	return kindDeleteImage, a, o.checkDeleteImage(ctx, a)
}

func (o *operations) checkDeleteImage(ctx context.Context, a deleteArgs) error {
	m, err := o.at(a.Pool, a.Domain)
	if err != nil {
		return err
	}
	all, err := m.family().mayDeleteImage(a.Image, a.Force)
	if err != nil {
		return err
	}
	return o.mayRemove(ctx, m, a.Image, all)
}

// planDeleteImage: as planDelete.
func (o *operations) planDeleteImage(a deleteArgs) task.Plan {
	return task.Plan{
		Locks: locksOf(a.Domain, a.Image),
		Steps: []task.Step{
			step("check", func(ctx context.Context) error { return o.checkDeleteImage(ctx, a) }, nil),
			step("mark", func(ctx context.Context) error { return o.markImage(ctx, a.Domain, a.Image) }, nil),
			step("remove", func(ctx context.Context) error { return o.dropImage(ctx, a.Domain, a.Image, a.Zero) }, nil),
		},
		Commit: 1,
	}
}

// markImage makes an image illegal, the leaf at last: until then no other volume is taken
// for it. What cannot be marked goes all the same.
func (o *operations) markImage(ctx context.Context, domain, image uuid.UUID) error {
	m, err := o.domain(domain)
	if err != nil {
		return err
	}
	f := m.family()
	up := f.topFirst(slices.Clone(f.images[image]))
	slices.Reverse(up)
	if err := o.mark(ctx, domain, image, up, Illegal); err != nil {
		if ctx.Err() != nil {
			return err
		}
		m.o.Log.Warn("an image that is removed could not be marked", "image", image, "error", err)
	}
	return nil
}

func (o *operations) dropImage(ctx context.Context, domain, image uuid.UUID, zero bool) error {
	m, err := o.domain(domain)
	if err != nil {
		return err
	}
	_, err = m.dropImage(ctx, image, zero)
	return err
}
