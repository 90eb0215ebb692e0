package storagetest

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"tidemark/spm"
)

// ofImage are the volumes of an image.
func (d *domain) ofImage(image uuid.UUID) (out []*spm.VolumeInfo) {
	for _, v := range sorted(d.volumes) {
		if v.Image == image {
			out = append(out, v)
		}
	}
	return out
}

// DeleteImage is a task that removes an image.
func (f *Fake) DeleteImage(_ context.Context, r spm.DeleteImage) (uuid.UUID, error) {
	defer f.lock()()
	d, _, err := f.volume(spm.VolumeAt{Pool: r.Pool, Domain: r.Domain, Image: r.Image})
	if err != nil {
		return uuid.Nil, err
	}
	return f.removal("deleteImage", r.Pool, r.Domain, d.ofImage(r.Image))
}

// CopyImage is a task that makes a volume like another.
func (f *Fake) CopyImage(_ context.Context, r spm.CopyImage) (uuid.UUID, error) {
	defer f.lock()()
	_, from, err := f.volume(r.From)
	if err == nil {
		err = still(from)
	}
	if err != nil {
		return uuid.Nil, err
	}
	to, err := f.active(r.To.Pool, r.To.Domain)
	if err == nil {
		err = to.room(r.To.Volume)
	}
	if err != nil {
		return uuid.Nil, err
	}
	v := *from
	v.VolumeAt, v.Parent, v.ParentImage, v.Children, v.Description, v.Type = r.To, uuid.Nil, uuid.Nil, nil, r.Description, r.Type
	return f.begin("copyImage", r.From.Pool, func() { to.add(&v) }), nil
}

// MoveImage is a task that moves the volumes of an image.
func (f *Fake) MoveImage(_ context.Context, r spm.MoveImage) (uuid.UUID, error) {
	defer f.lock()()
	from, _, err := f.volume(spm.VolumeAt{Pool: r.Pool, Domain: r.From, Image: r.Image})
	if err != nil {
		return uuid.Nil, err
	}
	var volumes []uuid.UUID
	for _, v := range from.ofImage(r.Image) {
		if err := still(v); err != nil {
			return uuid.Nil, err
		}
		volumes = append(volumes, v.Volume)
	}
	to, err := f.active(r.Pool, r.To)
	if err == nil {
		err = to.room(volumes...)
	}
	if err != nil {
		return uuid.Nil, err
	}
	return f.begin("moveImage", r.Pool, func() {
		for _, v := range from.ofImage(r.Image) {
			moved := *v
			moved.Domain = r.To
			to.volumes[v.Volume] = &moved
			if !r.Copy {
				delete(from.volumes, v.Volume)
			}
		}
	}), nil
}

// successor.
func (f *Fake) MergeVolumes(_ context.Context, r spm.MergeVolumes) (uuid.UUID, error) {
	defer f.lock()()
	d, v, err := f.volume(spm.VolumeAt{Pool: r.Pool, Domain: r.Domain, Image: r.Image, Volume: r.Successor})
	if err != nil {
		return uuid.Nil, err
	}
	if _, err := d.volume(spm.VolumeAt{Image: r.Image, Volume: r.Ancestor}); err != nil {
		return uuid.Nil, err
	}
	var gone []*spm.VolumeInfo
	for ; v != nil && v.Volume != r.Ancestor; v = d.volumes[v.Parent] {
		gone = append(gone, v)
	}
	if v == nil {
		return uuid.Nil, fail(spm.CodeWrongState, "volume %s is not based on %s", r.Successor, r.Ancestor)
	}
	return f.begin("mergeSnapshots", r.Pool, func() {
		for _, v := range gone {
			d.remove(v)
		}
	}), nil
}

// Images are the images of a domain.
func (f *Fake) Images(_ context.Context, id uuid.UUID) ([]uuid.UUID, error) {
	defer f.lock()()
	d, err := f.inUse(id)
	if err != nil {
		return nil, err
	}
	images := map[uuid.UUID]uuid.UUID{}
	for _, v := range d.volumes {
		images[v.Image] = v.Image
	}
	return sorted(images), nil
}

// PrepareImage says that a volume is served.
func (f *Fake) PrepareImage(_ context.Context, at spm.VolumeAt, o spm.PrepareOptions) (spm.Prepared, error) {
	defer f.lock()()
	d, v, err := f.volume(at)
	if err != nil {
		return spm.Prepared{}, err
	}
	if v.Legality == spm.Illegal && !o.AllowIllegal {
		return spm.Prepared{}, fail(spm.CodeIllegal, "volume %s is illegal", v.Volume)
	}
	if len(v.Children) > 0 && !o.ReadOnly && v.Type != spm.Shared {
		return spm.Prepared{}, fail(spm.CodeHasChildren, "volume %s is based on %s", v.Children[0], v.Volume)
	}
	if p, ok := d.prepared[at.Image]; ok {
		if p.Volume != v.Volume {
			return spm.Prepared{}, fail(spm.CodeInUse, "volume %s of image %s is served", p.Volume, at.Image)
		}
		return p, nil
	}
	socket := "/run/tidemark/images/" + at.Image.String() + "/nbd.sock"
	p := spm.Prepared{VolumeAt: v.VolumeAt, URI: "nbd+unix:///?socket=" + socket, Socket: socket, Control: socket + ".control", PID: 4711}
	for c := v; c != nil; c = d.volumes[c.Parent] {
		p.Chain = slices.Insert(p.Chain, 0, *c)
	}
	d.prepared[at.Image], v.Served = p, true
	return p, nil
}

// TeardownImage says that it is served no more.
func (f *Fake) TeardownImage(_ context.Context, at spm.VolumeAt) error {
	defer f.lock()()
	d, err := f.active(at.Pool, at.Domain)
	if err == nil && len(d.ofImage(at.Image)) == 0 {
		err = fail(spm.CodeUnknownImage, "there is no image %s", at.Image)
	}
	if err != nil {
		return err
	}
	p := d.prepared[at.Image]
	delete(d.prepared, at.Image)
	if v := d.volumes[p.Volume]; v != nil {
		v.Served = false
	}
	return nil
}
