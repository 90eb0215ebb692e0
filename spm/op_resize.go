package spm

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// resizeArgs is a volume that gets another virtual size, in bytes.
type resizeArgs struct {
	VolumeAt
	Was, Size int64
	Granted   int64 `json:",omitempty"` // before; 0: it is not known
}

// extendVolumeSize makes the virtual disk of an image larger.
func (o *operations) extendVolumeSize(ctx context.Context, at VolumeAt, size int64) (kind string, args any, err error) {
	m, k, err := o.volume(at)
	if err != nil {
		return "", nil, err
	}
	at.Image, at.Volume = k.image, k.id
	a := resizeArgs{VolumeAt: at, Was: k.meta.Capacity, Size: size, Granted: m.info(k.id).Granted}
	s, served, err := o.serving(ctx, m, k.image)
	if err != nil {
		return "", nil, err
	}
	kind = kindResize
	if served && !s.ReadOnly && s.Leaf == k.id.String() {
		kind = kindResizeLive
	}
	return kind, a, o.checkResize(ctx, a, kind == kindResizeLive)
}

// mayResize decides whether a volume may get a larger virtual size.
func mayResize(f *family, a resizeArgs) error {
	k, err := f.member(a.Image, a.Volume)
	switch {
	case err != nil:
		return err
	case !k.legal():
		return f.illegal(k)
	case k.shared():
		return errorf(CodeWrongState, "volume %s is a template, which never changes", k.id)
	case len(f.kids[k.id]) > 0:
		return errorf(CodeHasChildren, "volume %s has %d volumes that are based on it: extend the leaf", k.id, len(f.kids[k.id]))
	case !validSize(a.Size) || a.Size < k.meta.Capacity:
		return errorf(CodeInvalid, "extend volume %s to %d bytes: expected a multiple of 512 from %d, which it has, to %d", k.id, a.Size, k.meta.Capacity, int64(sizeMax))
	case k.meta.Capacity != a.Was:
		return errorf(CodeStale, "volume %s has %d bytes now, and had %d when more was asked for: repeat the request", k.id, k.meta.Capacity, a.Was)
	}
	if err := f.mayChange(a.Image); err != nil {
		return err
	}
	chain, err := f.chain(k.id)
	if n := len(chain) - 2; err == nil && n >= 0 {
		err = mayShow(k.id, a.Size, k.meta.Capacity, chain[n].meta.Capacity)
	}
	return err
}

// mayShow refuses to make a volume larger that has less than what it is based on: the
// content of that behind the end of the disk would show.
func mayShow(id uuid.UUID, size, have, below int64) error {
	if size <= have || below <= have {
		return nil
	}
	return errorf(CodeUnsupported, "volume %s has %d bytes, and what it is based on has %d: what lies behind its end there would show if it became larger: "+
		"copy it (copyImage), and extend the copy, or merge it into what it is based on", id, have, below)
}

func (o *operations) checkResize(ctx context.Context, a resizeArgs, live bool) error {
	m, err := o.at(a.Pool, a.Domain)
	if err != nil {
		return err
	}
	if err := mayResize(m.family(), a); err != nil {
		return err
	}
	s, served, err := o.serving(ctx, m, a.Image)
	switch {
	case err != nil:
		return err
	case live && (!served || s.Leaf != a.Volume.String()):
		return errorf(CodeStale, "image %s is not served as it was any more: repeat the request", a.Image)
	case live && s.Merge != "":
		return errorf(CodeUnfinished, "image %s is being merged (%s): wait for its task, or stop it, and repeat the request", a.Image, s.Merge)
	case live:
		return nil
	}
	return o.idle(ctx, m, a.Image, a.Volume)
}

// planResize: what an image has become is not taken back, so everything that may be
// refused comes before. What fails for good all the same is given up.
func (o *operations) planResize(a resizeArgs) task.Plan {
	settle := func(ctx context.Context) error { return o.settleSize(ctx, a) }
	return task.Plan{
		Locks: locksOf(a.Domain, a.Image),
		Steps: []task.Step{
			step("check", func(ctx context.Context) error { return o.checkResize(ctx, a, false) }, nil),
			step("space", func(ctx context.Context) error { return o.resizeSpace(ctx, a) },
				func(ctx context.Context) error { return o.shorten(ctx, a) }),
			orElse(step("resize", func(ctx context.Context) error { return unlessMissing(o.resizeImage(ctx, a)) }, nil), settle),
			orElse(step("metadata", func(ctx context.Context) error { return o.setCapacity(ctx, a, a.Size) }, nil), settle),
		},
		Commit: 2,
	}
}

// planResizeLive: the metadata goes first, for the bound of the volume depends on
// it; then the server follows, or whoever opens the image when that has gone.
func (o *operations) planResizeLive(a resizeArgs) task.Plan {
	settle := func(ctx context.Context) error { return o.settleSize(ctx, a) }
	return task.Plan{
		Locks: locksOf(a.Domain, a.Image),
		Steps: []task.Step{
			step("check", func(ctx context.Context) error { return o.checkResize(ctx, a, true) }, nil),
			step("space", func(ctx context.Context) error { return o.resizeSpaceLive(ctx, a) },
				func(ctx context.Context) error { return o.shorten(ctx, a) }),
			orElse(step("metadata", func(ctx context.Context) error { return o.setCapacity(ctx, a, a.Size) }, nil), settle),
			orElse(step("resize", func(ctx context.Context) error { return o.resizeServed(ctx, a) }, nil), settle),
		},
		Commit: 2,
	}
}

// rawSpace gives a raw volume the length of its new size.
func (o *operations) rawSpace(ctx context.Context, a resizeArgs) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	k, err := m.family().member(a.Image, a.Volume)
	if err != nil || k.meta.Format != Raw {
		return err
	}
	if err := m.raiseBound(a.Image, a.Volume, a.Size); err != nil {
		return err
	}
	return m.grantAtLeast(ctx, a.Image, a.Volume, a.Size, false)
}

// resizeSpace is rawSpace, or a look at the image: whether it is whole, may become that
// large, and has the room for it.
func (o *operations) resizeSpace(ctx context.Context, a resizeArgs) error {
	if err := o.rawSpace(ctx, a); err != nil {
		return err
	}
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	chain, err := m.places(a.Volume)
	if err != nil || chain[len(chain)-1].Format == FormatRaw {
		return err
	}
	use, err := o.jobs.Use(ctx, chain)
	if err != nil {
		return jobError(err, "look at volume %s", a.Volume)
	}
	if err := mayShow(a.Volume, a.Size, use.VirtualSize, use.BackingSize); err != nil {
		return err
	}
	if use.VirtualSize > a.Size {
		return errorf(CodeInvalid, "extend volume %s to %d bytes: its image has %d, more than its metadata say: extend it to that at least", a.Volume, a.Size, use.VirtualSize)
	}
	if err := o.jobs.Check(ctx, chain); err != nil {
		return jobError(err, "check volume %s", a.Volume)
	}
	return o.resizeRoom(ctx, m, a, use.End)
}

// resizeSpaceLive is resizeSpace for an image that is served. Its server puts what the
// larger disk needs behind the end of the image, to which belongs what it has reserved.
func (o *operations) resizeSpaceLive(ctx context.Context, a resizeArgs) error {
	if err := o.rawSpace(ctx, a); err != nil {
		return err
	}
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	if m.info(a.Volume).Format == Raw {
		return nil
	}
	s, served, err := o.serving(ctx, m, a.Image)
	if err != nil {
		return err
	}
	if !served || s.Leaf != a.Volume.String() {
		return errorf(CodeStale, "image %s is not served as it was any more: repeat the request", a.Image)
	}
	return o.resizeRoom(ctx, m, a, s.End)
}

// resizeRoom grants an image whose data ends there the room to become larger, or all that
// it can ever need then if it is preallocated.
func (o *operations) resizeRoom(ctx context.Context, m *Manager, a resizeArgs, end int64) error {
	if err := m.raiseBound(a.Image, a.Volume, a.Size); err != nil {
		return err
	}
	i := m.info(a.Volume)
	need := i.Bound
	if i.Alloc != Preallocated {
		need = min(end+tableRoom(a.Size), i.Bound)
	}
	return m.grantAtLeast(ctx, a.Image, a.Volume, need, false)
}

// tableRoom is what an image takes behind its data, at most, when its disk becomes
// size bytes large: a first table with 8 bytes for each 512 MiB, which is written
// anew, and what counts it. Its clusters have 64 KiB, as those of all that are made
// here have; one with others is given more when it needs it.
func tableRoom(size int64) int64 {
	const cluster = 64 << 10
	return 2*roundUp(8*(size>>29+1), cluster) + 16*cluster
}

// resizeImage changes the image of a volume that nobody serves. A raw one is as
// large as its volume is long.
func (o *operations) resizeImage(ctx context.Context, a resizeArgs) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	chain, err := m.places(a.Volume)
	if err != nil || chain[len(chain)-1].Format == FormatRaw {
		return err
	}
	err = o.fill(ctx, m, a.Image, a.Volume, true, func(Place) error {
		chain, err := m.places(a.Volume)
		if err != nil {
			return err
		}
		return o.jobs.Resize(ctx, chain, a.Size)
	})
	return m.hopeless(err)
}

// settleSize is the end of an extension that is given up: the metadata say what the image
// has, and what it does not need is given back.
func (o *operations) settleSize(ctx context.Context, a resizeArgs) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	if err := m.there(); err != nil {
		return err
	}
	size, err := o.sizeOf(ctx, m, a)
	if err != nil {
		return err
	}
	if err := o.setCapacity(ctx, a, size); err != nil {
		return err
	}
	return o.shorten(ctx, a)
}

// sizeOf is the virtual size that an image has. A raw one has what its metadata say: a server
// that has gone may have shown all of that. One that cannot be opened has what it had, as far
// as anybody knows.
func (o *operations) sizeOf(ctx context.Context, m *Manager, a resizeArgs) (int64, error) {
	s, served, err := o.serving(ctx, m, a.Image)
	switch {
	case err != nil:
		return 0, err
	case served && s.Leaf == a.Volume.String() && s.Size > 0:
		return s.Size, nil
	}
	chain, err := m.places(a.Volume)
	if err == nil && chain[len(chain)-1].Format == FormatRaw {
		return m.info(a.Volume).Capacity, nil
	}
	if err == nil {
		var use ImageUse
		if use, err = o.jobs.Use(ctx, chain); err == nil {
			return use.VirtualSize, nil
		}
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err != nil {
		m.o.Log.Warn("an extension is given up, and nobody knows the size of the image", "volume", a.Volume, "error", err)
	}
	return a.Was, nil
}

// shorten takes back what a volume was granted that cannot be what its image needs. A raw
// one is made as short as it was, unless somebody has it open: then it is as large as it is
// long. One that is preallocated has what an image of its size can need, and what it had.
func (o *operations) shorten(ctx context.Context, a resizeArgs) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	defer m.resetBound(a.Volume)
	i := m.info(a.Volume)
	if i.Format != Raw {
		if i.Alloc != Preallocated || a.Granted == 0 {
			return nil
		}
		to := max(a.Granted, m.boundOf(volumeMeta{Capacity: i.Capacity, Format: i.Format}))
		if err = m.shrinkTo(ctx, a.Image, a.Volume, i.Granted, to); err != nil && CodeOf(err) == CodeInUse {
			return nil
		}
		return unlessMissing(err)
	}
	if i.Granted <= i.Capacity {
		return nil
	}
	err = m.shrinkTo(ctx, a.Image, a.Volume, i.Granted, i.Capacity)
	if err != nil && CodeOf(err) == CodeInUse {
		return o.setCapacity(ctx, a, min(a.Size, i.Granted))
	}
	return unlessMissing(err)
}

func (o *operations) setCapacity(ctx context.Context, a resizeArgs, size int64) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	return unlessMissing(m.setMeta(ctx, a.Image, a.Volume, func(meta *volumeMeta) { meta.Capacity = size }))
}

func (o *operations) resizeServed(ctx context.Context, a resizeArgs) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	s, served, err := o.serving(ctx, m, a.Image)
	if err != nil {
		return err
	}
	if served && s.Leaf == a.Volume.String() && !s.ReadOnly {
		err := jobError(o.servers.Resize(ctx, a.Image.String(), a.Size), "extend the served image %s to %d bytes", a.Image, a.Size)
		if errors.Is(err, ErrUnfit) {
			err = task.Hopeless(err)
		}
		return err
	}
	return unlessMissing(o.resizeImage(ctx, a))
}
