package spm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// familyLocked is what the volumes of the domain say of each other. Those that are
// being made are not among them.
func (m *Manager) familyLocked() *family {
	if m.kinship == nil {
		all := make([]kin, 0, len(m.volumes))
		for _, v := range m.volumes {
			if v.ready {
				all = append(all, kin{id: v.id, image: v.image, meta: v.meta(), damaged: v.damaged != nil, lost: v.lost})
			}
		}
		m.kinship = newFamily(all)
	}
	return m.kinship
}

// family is familyLocked for one look: what it says may have changed since.
func (m *Manager) family() *family {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.familyLocked()
}

// renameLocked gives the volumes of an image the names that they should have, after
// one of them has come, gone or changed.
func (m *Manager) renameLocked(image uuid.UUID) {
	m.kinship = nil
	f := m.familyLocked()
	for _, k := range f.images[image] {
		v := m.volumes[k.id]
		name := f.name(k)
		if other := m.names[name]; k.damaged || other != nil && other.image != image {
			name = k.id.String()
		}
		m.callLocked(v, name)
	}
}

// callLocked gives a volume a name.
func (m *Manager) callLocked(v *volume, name string) {
	if m.names[v.name()] == v {
		delete(m.names, v.name())
	}
	v.said.Store(&said{name: name, meta: v.meta()})
	m.names[name] = v
}

// forgetLocked takes a volume out of the books, but for its space.
func (m *Manager) forgetLocked(v *volume) {
	delete(m.volumes, v.id)
	if m.names[v.name()] == v {
		delete(m.names, v.name())
	}
	v.gone = true
	m.renameLocked(v.image)
}

// scan takes over the volumes that there are.
func (m *Manager) scan() error {
	all, err := m.store.scan(m.ctx)
	if err != nil {
		return err
	}
	for i := range all {
		m.trace(&all[i])
	}
	m.mu.Lock()
	for _, found := range all {
		v := m.newVolume(found.image, found.id, found.meta)
		v.size, v.ready, v.unsynced = found.size, true, true
		v.bound = max(v.bound, v.size)
		if v.damaged, v.lost = found.damaged, found.lost; v.damaged != nil {
			v.bound = v.size
		}
		m.volumes[v.id] = v
		m.granted += v.size
	}
	images := m.nameAllLocked()
	m.mu.Unlock()
	for _, image := range images {
		if err := m.settle(m.ctx, image); err != nil {
			return err
		}
	}
	return nil
}

// trace finds out by the header of a damaged volume what it is based on, if its metadata
// do not say so. That protects what is below it, and is used for nothing else.
func (m *Manager) trace(found *stored) {
	if !found.lost {
		return
	}
	name, err := m.backingOf(m.ctx, &volume{image: found.image, id: found.id})
	if err != nil {
		return
	}
	if name == "" {
		found.lost = false
		return
	}
	if parent, err := uuid.Parse(filepath.Base(name)); err == nil {
		found.meta.Parent, found.lost = parent, false
	}
}

// backingOf is what the header of a volume says that it is based on.
func (m *Manager) backingOf(ctx context.Context, v *volume) (string, error) {
	return lookAt(ctx, m, v, Images.Backing)
}

// writerDied says by the header of a volume whether there is something to settle in it.
func (m *Manager) writerDied(ctx context.Context, v *volume) (bool, error) {
	return lookAt(ctx, m, v, Images.WriterDied)
}

// lookAt reads the header of a volume.
func lookAt[T any](ctx context.Context, m *Manager, v *volume, read func(Images, block.File) (T, error)) (answer T, err error) {
	if m.o.Images == nil {
		return answer, fmt.Errorf("this manager reads no %s images", FormatQCOW2)
	}
	f, err := m.store.look(ctx, v)
	if err != nil {
		return answer, err
	}
	answer, err = read(m.o.Images, f)
	return answer, errors.Join(err, f.Close())
}

// headless refuses a qcow2 volume of which not even the header can be read: that is why a
// job on it has failed.
func (m *Manager) headless(ctx context.Context, image, id uuid.UUID) error {
	_, err := m.backingOf(ctx, &volume{image: image, id: id})
	if err == nil || errors.Is(err, block.ErrInUse) || ctx.Err() != nil {
		return nil
	}
	return &Error{Code: CodeDamaged, err: err, Message: "volume " + id.String() + " of image " + image.String() + " is damaged: " + err.Error() +
		": bring back what it was, or delete it by force"}
}

// nameAllLocked names what a scan has found, and returns the images. A leaf whose
// name another one has is damaged: nobody knows which of them is meant.
func (m *Manager) nameAllLocked() (images []uuid.UUID) {
	m.kinship = nil
	f := m.familyLocked()
	images = slices.SortedFunc(maps.Keys(f.images), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	for _, image := range images {
		for _, k := range f.images[image] {
			v, name := m.volumes[k.id], f.name(k)
			if other := m.names[name]; other != nil && !k.damaged {
				v.damaged = fmt.Errorf("volume %s has the same name %q, which is unique in a pool: change DiskAlias in the %s of one of them",
					other.id, name, extMeta)
				v.bound = v.size
			}
			if v.damaged != nil {
				name = k.id.String()
				m.o.Log.Error("volume is damaged, and is not served; it keeps its space", "volume", v.id, "image", v.image, "size", v.size, "error", v.damaged)
			}
			m.callLocked(v, name)
		}
	}
	m.kinship = nil
	return images
}

func (m *Manager) newVolume(image, id uuid.UUID, meta volumeMeta) *volume {
	v := &volume{
		id: id, image: image,
		sem:   make(chan struct{}, 1),
		bound: m.boundOf(meta),
	}
	v.said.Store(&said{name: id.String(), meta: meta})
	return v
}

// boundOf is the size in bytes that a volume never needs to exceed.
func (m *Manager) boundOf(meta volumeMeta) int64 {
	return m.bound(CreateImage{Size: meta.Capacity, Format: meta.wireFormat()})
}
