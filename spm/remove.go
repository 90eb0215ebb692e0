package spm

import (
	"context"
	"errors"

	"tidemark/internal/block"
)

// RemoveVolume removes a volume that nobody holds, and its image with it.
func (m *Manager) RemoveVolume(ctx context.Context, r VolumeRemoveRequest) (VolumeRemoveReply, error) {
	v, err := m.find(r.Header, r.VolumeRef)
	if err != nil {
		return VolumeRemoveReply{}, err
	}
	if err := m.take(ctx, v); err != nil {
		return VolumeRemoveReply{}, err
	}
	defer func() { <-v.sem }()
	if err := m.removable(v); err != nil {
		return VolumeRemoveReply{}, err
	}
	release, err := m.store.hold(v)
	if err != nil {
		return VolumeRemoveReply{}, holdError(v, err)
	}
	defer release() //nolint:errcheck // the file is gone, and its lock with it
	freed, err := m.remove(v)
	if err != nil {
		return VolumeRemoveReply{}, err
	}
	return VolumeRemoveReply{Header: m.header(r.Header), VolumeUUID: v.id.String(), Freed: freed}, nil
}

// removable refuses a volume that is gone, or that is not all of its image.
func (m *Manager) removable(v *volume) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v.gone {
		return goneError(v)
	}
	for _, other := range m.volumes {
		if other != v && other.image == v.image {
			return errorf(CodeInvalid, "remove %s: its image %s has other volumes, such as %s, and removing one of a chain is not possible yet",
				v.name, v.image, other.id)
		}
	}
	return nil
}

func holdError(v *volume, err error) error {
	if errors.Is(err, block.ErrInUse) {
		return &Error{
			Code: CodeInUse, err: err,
			Message: "remove " + v.name + ": " + err.Error() + ": stop who has it open, then repeat",
		}
	}
	return internal(err, "remove %s", v.name)
}

// remove takes the volume away. The caller has v.sem and holds the volume.
func (m *Manager) remove(v *volume) (int64, error) {
	gone, err := m.store.remove(m.ctx, v)
	if err != nil && !gone {
		return 0, internal(err, "remove %s", v.name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.volumes, v.id)
	delete(m.names, v.name)
	v.gone = true
	if err != nil { // its bytes may still be there; the next start removes them
		return 0, internal(err, "remove %s: it is gone from the pool, but its space is not free before the manager's next start", v.name)
	}
	freed := v.size
	m.granted -= freed
	m.o.Log.Info("volume removed", "volume", v.name, "uuid", v.id, "freed", freed, "granted", m.granted, "capacity", m.capacity)
	m.wakeLocked()
	return freed, nil
}
