package spm

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/google/uuid"
)

// dropVolume removes a volume, with zero after its content has been wiped. One that
// is not there has been removed.
func (m *Manager) dropVolume(ctx context.Context, image, id uuid.UUID, zero bool) error {
	m.mu.Lock()
	v := m.volumes[id]
	m.mu.Unlock()
	if v == nil || v.image != image {
		return nil
	}
	_, err := m.drop(ctx, []*volume{v}, zero)
	return err
}

// dropImage removes an image with all its volumes, and returns the bytes that are
// free again. One that is not there has been removed.
func (m *Manager) dropImage(ctx context.Context, image uuid.UUID, zero bool) (freed int64, err error) {
	for {
		all := m.imageOf(image)
		if len(all) == 0 {
			return freed, nil
		}
		n, err := m.drop(ctx, all, zero)
		if freed += n; err != nil {
			return freed, err
		}
	}
}

// imageOf returns the volumes of an image, also those that are being made, the
// topmost first.
func (m *Manager) imageOf(image uuid.UUID) []*volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.familyLocked()
	var all []*volume
	for _, v := range m.volumes {
		if v.image == image && !v.ready {
			all = append(all, v)
		}
	}
	for _, id := range f.topFirst(slices.Clone(f.images[image])) {
		all = append(all, m.volumes[id])
	}
	return all
}

// drop removes one volume, or all volumes of an image, the topmost first. If they
// are not all of it any more when they are taken, nothing is done.
func (m *Manager) drop(ctx context.Context, all []*volume, zero bool) (freed int64, err error) {
	release, err := m.takeAll(ctx, all)
	if err != nil {
		return 0, err
	}
	defer release()
	all = slices.DeleteFunc(slices.Clone(all), m.isGone)
	if len(all) == 0 || len(all) > 1 && len(m.imageOf(all[0].image)) != len(all) {
		return 0, nil
	}
	for _, v := range all {
		if err := m.store.confined(v); err != nil {
			return 0, err
		}
		release, err := m.store.hold(v)
		if errors.Is(err, fs.ErrNotExist) { // so nobody has it
			continue
		}
		if err != nil {
			return 0, holdError("remove", v, err)
		}
		defer release() //nolint:errcheck // the volume is gone, and its lock with it
	}
	for _, v := range all {
		if !zero {
			break
		}
		if err := m.store.wipe(ctx, v); err != nil {
			return 0, internal(err, "wipe %s", v.name())
		}
	}
	return m.remove(all)
}

// takeAll takes the sem of each volume, in the order of their UUIDs.
func (m *Manager) takeAll(ctx context.Context, all []*volume) (release func(), err error) {
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(a, b *volume) int { return bytes.Compare(a.id[:], b.id[:]) })
	for i, v := range sorted {
		if err := m.take(ctx, v); err != nil {
			for _, v := range sorted[:i] {
				<-v.sem
			}
			return nil, err
		}
	}
	return func() {
		for _, v := range sorted {
			<-v.sem
		}
	}, nil
}

// remove takes the volumes away. The caller has their sem and holds them.
func (m *Manager) remove(all []*volume) (freed int64, err error) {
	var gone []*volume
	ctx := context.WithoutCancel(m.ctx)
	remove := remainsOf(m.o.Remains, m.ident.domain, m.store, all)
	defer func() {
		remove(gone)
		if len(m.imageOf(all[0].image)) == 0 {
			m.o.Remains.OfImage(all[0].image.String())
		}
	}()
	if len(all) > 1 {
		gone, err = m.store.removeImage(ctx, all)
	} else {
		var away bool
		if away, err = m.store.remove(ctx, all[0]); away {
			gone = all
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range gone {
		m.forgetLocked(v)
		if err != nil && !m.store.free() { // its bytes may still be there; the next start removes them
			continue
		}
		freed += v.size
		m.granted -= v.size
		m.o.Log.Info("volume removed", "volume", v.name(), "uuid", v.id, "freed", v.size, "granted", m.granted, "capacity", m.capacity)
	}
	if err != nil && len(gone) > 0 {
		m.doomLocked(all)
	}
	m.wakeLocked()
	switch {
	case err == nil:
		return freed, nil
	case len(gone) == 0:
		return 0, internal(err, "remove %s", all[0].name())
	case len(gone) < len(all):
		return freed, internal(err, "remove image %s: %d of its %d volumes are left: remove it again", all[0].image, len(all)-len(gone), len(all))
	case m.store.free():
		return freed, internal(err, "remove %s", all[0].name())
	}
	return 0, internal(err, "remove %s: it is gone from the pool, but its space is not free before the manager's next start", all[0].name())
}

// doomLocked makes nothing of what is left of an image whose removal has begun: the next
// start ends that, with whatever would be written to it until then.
func (m *Manager) doomLocked(all []*volume) {
	for _, v := range all {
		if !v.gone {
			v.damaged = errDoomed
			m.renameLocked(v.image)
		}
	}
}

var errDoomed = errors.New("the removal of its image has begun, and failed: remove the image again")
