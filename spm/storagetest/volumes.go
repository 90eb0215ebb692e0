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

// inUse is active for a domain of the pool that is connected.
func (f *Fake) inUse(id uuid.UUID) (*domain, error) {
	if f.pool == nil {
		return nil, fail(spm.CodeNotConnected, "no pool is connected")
	}
	return f.active(f.pool.id, id)
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
	switch {
	case d.volumes[r.Volume] != nil:
		return uuid.Nil, fail(spm.CodeExists, "volume %s is there", r.Volume)
	case r.Parent == uuid.Nil && len(d.ofImage(r.Image)) > 0:
		return uuid.Nil, fail(spm.CodeExists, "image %s is there", r.Image)
	}
	if err := mayWait(r.Priority); err != nil {
		return uuid.Nil, err
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
		case r.Format == spm.Raw || r.Size != 0 && r.Size < p.Capacity:
			return uuid.Nil, fail(spm.CodeInvalid, "volume %s cannot be based on %s: it is raw, or smaller", r.Volume, p.Volume)
		case p.Image == r.Image && len(p.Children) > 0:
			return uuid.Nil, fail(spm.CodeHasChildren, "volume %s is based on %s", p.Children[0], p.Volume)
		case p.Image != r.Image && p.Type != spm.Shared:
			return uuid.Nil, fail(spm.CodeWrongState, "volume %s is no template", p.Volume)
		}
		v.Capacity = max(v.Capacity, p.Capacity)
	}
	if err := d.room(r.Volume); err != nil {
		return uuid.Nil, err
	}
	return f.begin("createVolume", r.Pool, func() { d.add(v) }), nil
}

// mayWait refuses a priority that no volume may have.
func mayWait(priority int) error {
	if priority < -1000 || priority > 1000 {
		return fail(spm.CodeInvalid, "priority is %d, expected -1000 to 1000", priority)
	}
	return nil
}

// still refuses a volume that is served, or illegal.
func still(v *spm.VolumeInfo) error {
	switch {
	case v.Served:
		return fail(spm.CodeInUse, "volume %s is served", v.Volume)
	case v.Legality == spm.Illegal:
		return fail(spm.CodeIllegal, "volume %s is illegal", v.Volume)
	}
	return nil
}

// room refuses volumes that a domain has not the space for, or has.
func (d *domain) room(all ...uuid.UUID) error {
	for _, id := range all {
		if d.volumes[id] != nil {
			return fail(spm.CodeExists, "volume %s is there", id)
		}
	}
	if d.stats().Free < Granted*int64(len(all)) {
		return fail(spm.CodePoolFull, "domain %s is full", d.ID)
	}
	return nil
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

// MergeVolumes is a task that removes what is above the ancestor, up to the
// ExtendVolumeSize is a task that makes a volume larger.
func (f *Fake) ExtendVolumeSize(_ context.Context, at spm.VolumeAt, size int64) (uuid.UUID, error) {
	defer f.lock()()
	_, v, err := f.volume(at)
	switch {
	case err != nil:
		return uuid.Nil, err
	case v.Legality == spm.Illegal:
		return uuid.Nil, fail(spm.CodeIllegal, "volume %s is illegal", v.Volume)
	case len(v.Children) > 0:
		return uuid.Nil, fail(spm.CodeHasChildren, "volume %s is based on %s", v.Children[0], v.Volume)
	case size < v.Capacity:
		return uuid.Nil, fail(spm.CodeInvalid, "volume %s has %d bytes, found %d", v.Volume, v.Capacity, size)
	}
	return f.begin("extendVolumeSize", at.Pool, func() { v.Capacity = size }), nil
}

// ReduceImageVolume is a task that does nothing.
func (f *Fake) ReduceImageVolume(_ context.Context, at spm.VolumeAt) (uuid.UUID, error) {
	defer f.lock()()
	_, v, err := f.volume(at)
	if err == nil {
		err = still(v)
	}
	if err != nil {
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
	switch {
	case err != nil:
		return spm.Measure{}, err
	case v.Served:
		return spm.Measure{}, fail(spm.CodeInUse, "volume %s is served", v.Volume)
	}
	return spm.Measure{Required: v.Used, FullyAllocated: v.Bound}, nil
}

// VolumesOf are the volumes of a domain, or of an image.
func (f *Fake) VolumesOf(_ context.Context, id, image uuid.UUID) ([]spm.VolumeInfo, error) {
	defer f.lock()()
	d, err := f.inUse(id)
	if err != nil {
		return nil, err
	}
	if image != uuid.Nil && len(d.ofImage(image)) == 0 {
		return nil, fail(spm.CodeUnknownImage, "there is no image %s", image)
	}
	var out []spm.VolumeInfo
	for _, v := range sorted(d.volumes) {
		if image == uuid.Nil || v.Image == image {
			out = append(out, *v)
		}
	}
	return out, nil
}

// SetPriority sets a volume's priority.
func (f *Fake) SetPriority(_ context.Context, at spm.VolumeAt, priority int) error {
	defer f.lock()()
	_, v, err := f.volume(at)
	if err == nil {
		err = mayWait(priority)
	}
	if err == nil {
		v.Priority = priority
	}
	return err
}
