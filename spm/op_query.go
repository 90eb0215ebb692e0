package spm

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
)

// volumeInfo says what is known of a volume.
func (o *operations) volumeInfo(ctx context.Context, at VolumeAt) (VolumeInfo, error) {
	m, k, err := o.volume(at)
	if err != nil && CodeOf(err) != CodeDamaged {
		return VolumeInfo{}, err
	}
	if err != nil { // what is known of a damaged one is how large it is
		f := m.family()
		if at.Volume == uuid.Nil {
			at.Volume, _ = f.shown(at.Image)
		}
		k = f.all[at.Volume]
	}
	served := o.servingEach(ctx, m, []uuid.UUID{k.image})[k.image]
	i := m.info(k.id)
	i.Pool = at.Pool
	served.tell(m.family(), &i)
	return i, nil
}

// volumesOf lists the volumes of a domain, or of one of its images.
func (o *operations) volumesOf(ctx context.Context, domain, image uuid.UUID) ([]VolumeInfo, error) {
	m, err := o.domain(domain)
	if err != nil {
		return nil, err
	}
	f := m.family()
	if image != uuid.Nil && len(f.images[image]) == 0 {
		return nil, errorf(CodeUnknownImage, "domain %s has no image %s", domain, image)
	}
	images := []uuid.UUID{image}
	if image == uuid.Nil {
		images = slices.Collect(maps.Keys(f.images))
	}
	out := []VolumeInfo{}
	for of, served := range o.servingEach(ctx, m, images) {
		for _, k := range f.images[of] {
			i := m.info(k.id)
			served.tell(f, &i)
			out = append(out, i)
		}
	}
	slices.SortFunc(out, func(a, b VolumeInfo) int { return slices.Compare(a.Volume[:], b.Volume[:]) })
	return out, nil
}

// images lists the images of a domain.
func (o *operations) images(_ context.Context, domain uuid.UUID) ([]uuid.UUID, error) {
	m, err := o.domain(domain)
	if err != nil {
		return nil, err
	}
	out := []uuid.UUID{}
	for image := range m.family().images {
		out = append(out, image)
	}
	slices.SortFunc(out, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	return out, nil
}

// info is what the manager knows of a volume; the zero value if it has gone.
func (m *Manager) info(id uuid.UUID) VolumeInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.volumes[id]
	if v == nil {
		return VolumeInfo{}
	}
	meta := v.meta()
	i := VolumeInfo{
		VolumeAt: VolumeAt{Pool: m.ident.pool, Domain: m.ident.domain, Image: v.image, Volume: v.id},
		Parent:   meta.Parent, Capacity: meta.Capacity, Granted: v.size, Used: m.usedLocked(v), Bound: v.bound,
		Format: meta.Format, Alloc: meta.Type, Type: meta.VolType, DiskType: meta.DiskType, Legality: meta.Legality,
		Generation: meta.Generation, Sequence: meta.Sequence, Created: time.Unix(meta.Created, 0).UTC(),
		Description: meta.Description, Priority: meta.Priority,
	}
	f := m.familyLocked()
	if leaf, _ := f.leaf(v.image); leaf == v.id {
		i.Name = v.name()
	}
	if p := m.volumes[meta.Parent]; p != nil {
		i.ParentImage = p.image
	}
	for _, c := range f.kids[v.id] {
		i.Children = append(i.Children, c.id)
	}
	if v.damaged != nil {
		i.Damaged = v.damaged.Error()
	}
	var d Volume
	m.store.describe(v, &d)
	i.Path = d.Path
	return i
}

// places are a volume and everything below it, as those open them who read them.
func (m *Manager) places(id uuid.UUID) ([]Place, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	chain, err := m.familyLocked().chain(id)
	if err != nil {
		return nil, err
	}
	out := make([]Place, 0, len(chain))
	for _, k := range chain {
		v := m.volumes[k.id]
		if err := m.store.confined(v); err != nil {
			return nil, err
		}
		p := placed(m.store, v)
		p.Format, p.Granted = k.meta.wireFormat(), v.size
		if k.meta.Format == Raw {
			p.Size = k.meta.Capacity
		}
		out = append(out, p)
	}
	return out, nil
}

// measure says what a copy of a volume would take.
func (o *operations) measure(ctx context.Context, at VolumeAt, format string) (Measure, error) {
	m, k, err := o.volume(at)
	if err != nil {
		return Measure{}, err
	}
	switch format {
	case "":
		format = k.meta.Format
	case Cow, Raw:
	default:
		return Measure{}, errorf(CodeInvalid, "measure volume %s: format is %q, expected %s or %s", k.id, format, Cow, Raw)
	}
	chain, err := m.places(k.id)
	if err != nil {
		return Measure{}, err
	}
	r, err := o.jobs.Measure(ctx, chain, wireFormat(format))
	return r, jobError(err, "measure volume %s", k.id)
}

// wireFormat is how those call a format who read images.
func wireFormat(format string) string { return volumeMeta{Format: format}.wireFormat() }

// setPriority says who waits first in a full pool: the volume of the lower one.
func (o *operations) setPriority(ctx context.Context, at VolumeAt, priority int) error {
	m, k, err := o.volume(at)
	if err != nil {
		return err
	}
	if priority < -priorityMax || priority > priorityMax {
		return errorf(CodeInvalid, "priority is %d, expected %d to %d", priority, -priorityMax, priorityMax)
	}
	return m.setMeta(ctx, k.image, k.id, func(meta *volumeMeta) { meta.Priority = priority })
}
