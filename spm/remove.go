package spm

import "context"

// RemoveVolume removes the image of a volume that nobody holds, with all its
// volumes.
func (m *Manager) RemoveVolume(ctx context.Context, r VolumeRemoveRequest) (VolumeRemoveReply, error) {
	v, err := m.find(r.Header, r.VolumeRef)
	if err != nil {
		return VolumeRemoveReply{}, err
	}
	if _, err := m.family().mayDeleteImage(v.image, true); err != nil {
		return VolumeRemoveReply{}, err
	}
	if err := m.family().mayGo(v.image); err != nil {
		return VolumeRemoveReply{}, err
	}
	freed, err := m.dropImage(ctx, v.image, false)
	if err != nil {
		return VolumeRemoveReply{}, err
	}
	if freed == 0 {
		return VolumeRemoveReply{}, goneError(v) // by another request, meanwhile
	}
	return VolumeRemoveReply{Header: m.header(r.Header), VolumeUUID: v.id.String(), Freed: freed}, nil
}
