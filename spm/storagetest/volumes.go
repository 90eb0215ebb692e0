package storagetest

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"tidemark/spm"
)

// active returns a domain in use of a pool that this host manages. The caller has
// the lock.
func (f *Fake) active(pool, id uuid.UUID) (*domain, error) {
	if _, err := f.managed(pool); err != nil {
		return nil, err
	}
	d, err := f.find(pool, id)
	if err == nil && d.State != spm.DomainActive {
		err = fail(spm.CodeNotActive, "domain %s is %s", id, d.State)
	}
	return d, err
}

// volume returns the volume at a place of an active domain.
func (f *Fake) volume(at spm.VolumeAt) (*domain, *spm.VolumeInfo, error) {
	d, err := f.active(at.Pool, at.Domain)
	if err != nil {
		return nil, nil, err
	}
	v, err := d.volume(at)
	return d, v, err
}

// volume returns a volume, the leaf where none is named.
func (d *domain) volume(at spm.VolumeAt) (*spm.VolumeInfo, error) {
	known := false
	for _, v := range sorted(d.volumes) {
		if v.Image != at.Image {
			continue
		}
		known = true
		if v.Volume == at.Volume || at.Volume == uuid.Nil && len(v.Children) == 0 {
			return v, nil
		}
	}
	if !known {
		return nil, fail(spm.CodeUnknownImage, "there is no image %s", at.Image)
	}
	return nil, fail(spm.CodeNotFound, "there is no volume %s in image %s", at.Volume, at.Image)
}

// CreateImageVolume is a task that makes a volume.
func (f *Fake) CreateImageVolume(_ context.Context, r spm.NewVolume) (uuid.UUID, error) {
	defer f.lock()()
	d, err := f.active(r.Pool, r.Domain)
	if err != nil {
		return uuid.Nil, err
	}
	if d.volumes[r.Volume] != nil {
		return uuid.Nil, fail(spm.CodeExists, "volume %s is there", r.Volume)
	}
	v := &spm.VolumeInfo{
		VolumeAt: r.VolumeAt, ParentImage: r.ParentImage, Parent: r.Parent, Capacity: r.Size, Granted: Granted, Used: 1 << 18, Bound: r.Size + r.Size/10,
		Format: r.Format, Alloc: r.Alloc, Type: r.Type, DiskType: r.DiskType, Legality: spm.Legal, Sequence: 1, Created: f.now(),
		Description: r.Description, Priority: r.Priority, Path: d.Where + "/" + r.Volume.String(),
	}
	if r.Parent != uuid.Nil {
		p, err := d.volume(spm.VolumeAt{Image: r.ParentImage, Volume: r.Parent})
		switch {
		case err != nil:
			return uuid.Nil, err
		case p.Legality == spm.Illegal:
			return uuid.Nil, fail(spm.CodeIllegal, "volume %s is illegal", p.Volume)
		}
		v.Capacity = max(v.Capacity, p.Capacity)
	}
	if d.stats().Free < Granted {
		return uuid.Nil, fail(spm.CodePoolFull, "domain %s is full", d.ID)
	}
	return f.begin("createVolume", r.Pool, func() { d.add(v) }), nil
}

// add adds a volume, and tells its parent.
func (d *domain) add(v *spm.VolumeInfo) {
	d.volumes[v.Volume] = v
	if p := d.volumes[v.Parent]; p != nil {
		p.Children = append(p.Children, v.Volume)
		if p.Type == spm.Leaf {
			p.Type = spm.Internal
		}
	}
}

// remove removes a volume, and what is based on it gets its parent.
func (d *domain) remove(v *spm.VolumeInfo) {
	delete(d.volumes, v.Volume)
	p := d.volumes[v.Parent]
	if p != nil {
		p.Children = slices.DeleteFunc(p.Children, func(id uuid.UUID) bool { return id == v.Volume })
	}
	for _, id := range v.Children {
		if c := d.volumes[id]; c != nil {
			c.Parent, c.ParentImage = v.Parent, v.ParentImage
			if p != nil {
				p.Children = append(p.Children, id)
			}
		}
	}
	if p != nil && p.Type == spm.Internal && len(p.Children) == 0 {
		p.Type = spm.Leaf
	}
}

// DeleteVolumes is a task that removes volumes without children.
func (f *Fake) DeleteVolumes(_ context.Context, r spm.DeleteVolumes) (uuid.UUID, error) {
	defer f.lock()()
	var gone []*spm.VolumeInfo
	for _, id := range r.Volumes {
		_, v, err := f.volume(spm.VolumeAt{Pool: r.Pool, Domain: r.Domain, Image: r.Image, Volume: id})
		if err != nil {
			return uuid.Nil, err
		}
		gone = append(gone, v)
	}
	return f.removal("deleteVolume", r.Pool, r.Domain, gone)
}

// removal is a task that removes volumes.
func (f *Fake) removal(kind string, pool, id uuid.UUID, gone []*spm.VolumeInfo) (uuid.UUID, error) {
	d, err := f.active(pool, id)
	if err != nil {
		return uuid.Nil, err
	}
	for _, v := range gone {
		for _, c := range v.Children {
			if !slices.ContainsFunc(gone, func(v *spm.VolumeInfo) bool { return v.Volume == c }) {
				return uuid.Nil, fail(spm.CodeHasChildren, "volume %s is based on %s", c, v.Volume)
			}
		}
		if v.Served {
			return uuid.Nil, fail(spm.CodeInUse, "volume %s is served", v.Volume)
		}
	}
	return f.begin(kind, pool, func() {
		for _, v := range gone {
			d.remove(v)
		}
	}), nil
}

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
	if err != nil {
		return uuid.Nil, err
	}
	to, err := f.active(r.To.Pool, r.To.Domain)
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
	to, err := f.active(r.Pool, r.To)
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

// MergeVolumes is a task that removes what is above the ancestor, up to the
// successor.
func (f *Fake) MergeVolumes(_ context.Context, r spm.MergeVolumes) (uuid.UUID, error) {
	defer f.lock()()
	d, v, err := f.volume(spm.VolumeAt{Pool: r.Pool, Domain: r.Domain, Image: r.Image, Volume: r.Successor})
	if err != nil {
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

// ExtendVolumeSize is a task that makes a volume larger.
func (f *Fake) ExtendVolumeSize(_ context.Context, at spm.VolumeAt, size int64) (uuid.UUID, error) {
	defer f.lock()()
	_, v, err := f.volume(at)
	switch {
	case err != nil:
		return uuid.Nil, err
	case size < v.Capacity:
		return uuid.Nil, fail(spm.CodeInvalid, "volume %s has %d bytes, found %d", v.Volume, v.Capacity, size)
	}
	return f.begin("extendVolumeSize", at.Pool, func() { v.Capacity = size }), nil
}

// ReduceImageVolume is a task that does nothing.
func (f *Fake) ReduceImageVolume(_ context.Context, at spm.VolumeAt) (uuid.UUID, error) {
	defer f.lock()()
	if _, _, err := f.volume(at); err != nil {
		return uuid.Nil, err
	}
	return f.begin("reduceVolume", at.Pool, func() {}), nil
}

// VolumeInfo is a volume.
func (f *Fake) VolumeInfo(_ context.Context, at spm.VolumeAt) (spm.VolumeInfo, error) {
	defer f.lock()()
	_, v, err := f.volume(at)
	if err != nil {
		return spm.VolumeInfo{}, err
	}
	return *v, nil
}

// MeasureVolume says that a copy takes what the volume has.
func (f *Fake) MeasureVolume(_ context.Context, at spm.VolumeAt, _ string) (spm.Measure, error) {
	defer f.lock()()
	_, v, err := f.volume(at)
	if err != nil {
		return spm.Measure{}, err
	}
	return spm.Measure{Required: v.Used, FullyAllocated: v.Bound}, nil
}

// VolumesOf are the volumes of a domain, or of an image.
func (f *Fake) VolumesOf(_ context.Context, id, image uuid.UUID) ([]spm.VolumeInfo, error) {
	defer f.lock()()
	d, err := f.find(uuid.Nil, id)
	if err != nil {
		return nil, err
	}
	var out []spm.VolumeInfo
	for _, v := range sorted(d.volumes) {
		if image == uuid.Nil || v.Image == image {
			out = append(out, *v)
		}
	}
	return out, nil
}

// Images are the images of a domain.
func (f *Fake) Images(_ context.Context, id uuid.UUID) ([]uuid.UUID, error) {
	defer f.lock()()
	d, err := f.find(uuid.Nil, id)
	if err != nil {
		return nil, err
	}
	images := map[uuid.UUID]uuid.UUID{}
	for _, v := range d.volumes {
		images[v.Image] = v.Image
	}
	return sorted(images), nil
}

// SetPriority sets a volume's priority.
func (f *Fake) SetPriority(_ context.Context, at spm.VolumeAt, priority int) error {
	defer f.lock()()
	_, v, err := f.volume(at)
	if err == nil {
		v.Priority = priority
	}
	return err
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
	if p, ok := d.prepared[at.Image]; ok {
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
