package spm

import (
	"context"

	"github.com/google/uuid"
)

// What [Storage] says of volumes: operations decide, and what takes long is a task.

// CreateImageVolume makes a volume.
func (h *Host) CreateImageVolume(ctx context.Context, r NewVolume) (uuid.UUID, error) {
	return start(ctx, h, r, h.ops.createVolume)
}

// DeleteVolumes removes volumes of an image.
func (h *Host) DeleteVolumes(ctx context.Context, r DeleteVolumes) (uuid.UUID, error) {
	return start(ctx, h, r, h.ops.deleteVolumes)
}

// DeleteImage removes an image. With force, a task that has it and is blocked, which it
// may be for ever, is given up.
func (h *Host) DeleteImage(ctx context.Context, r DeleteImage) (uuid.UUID, error) {
	return start(ctx, h, r, func(ctx context.Context, r DeleteImage) (string, any, error) {
		kind, args, err := h.ops.deleteImage(ctx, r)
		if err == nil && r.Force {
			err = h.giveUp(ctx, imageLock(r.Domain, r.Image, true).Name)
		}
		return kind, args, err
	})
}

// giveUp stops the tasks that are blocked with a resource, of those that can be.
func (h *Host) giveUp(ctx context.Context, resource string) error {
	e, err := h.engine()
	if err != nil {
		return err
	}
	for _, i := range e.Users(resource) {
		if i.Blocked == nil || !i.Stoppable {
			continue
		}
		if err := e.Stop(ctx, i.ID); err != nil {
			return h.taskError(err)
		}
	}
	return nil
}

// CopyImage copies a volume.
func (h *Host) CopyImage(ctx context.Context, r CopyImage) (uuid.UUID, error) {
	return start(ctx, h, r, h.ops.copyImage)
}

// MoveImage moves an image to another domain.
func (h *Host) MoveImage(ctx context.Context, r MoveImage) (uuid.UUID, error) {
	return start(ctx, h, r, h.ops.moveImage)
}

// MergeVolumes merges a volume into one below it.
func (h *Host) MergeVolumes(ctx context.Context, r MergeVolumes) (uuid.UUID, error) {
	return start(ctx, h, r, h.ops.mergeVolumes)
}

// ReduceImageVolume gives back what a volume has beyond its data.
func (h *Host) ReduceImageVolume(ctx context.Context, at VolumeAt) (uuid.UUID, error) {
	return start(ctx, h, at, h.ops.reduceVolume)
}

// ExtendVolumeSize makes the virtual size of a volume larger.
func (h *Host) ExtendVolumeSize(ctx context.Context, at VolumeAt, size int64) (uuid.UUID, error) {
	return start(ctx, h, at, func(ctx context.Context, at VolumeAt) (string, any, error) {
		return h.ops.extendVolumeSize(ctx, at, size)
	})
}

// start checks a request, and persists the task that does it.
func start[R any](ctx context.Context, h *Host, r R, check func(context.Context, R) (kind string, args any, err error)) (uuid.UUID, error) {
	if _, err := h.engine(); err != nil {
		return uuid.Nil, err
	}
	kind, args, err := check(ctx, r)
	if err != nil {
		return uuid.Nil, err
	}
	return h.startTask(ctx, kind, args)
}

// VolumeInfo is what is known of a volume.
func (h *Host) VolumeInfo(ctx context.Context, at VolumeAt) (VolumeInfo, error) {
	return h.ops.volumeInfo(ctx, at)
}

// MeasureVolume says what a copy of a volume would take.
func (h *Host) MeasureVolume(ctx context.Context, at VolumeAt, format string) (Measure, error) {
	return h.ops.measure(ctx, at, format)
}

// VolumesOf lists the volumes of a domain or an image.
func (h *Host) VolumesOf(ctx context.Context, domain, image uuid.UUID) ([]VolumeInfo, error) {
	return h.ops.volumesOf(ctx, domain, image)
}

// Images lists the images of a domain.
func (h *Host) Images(ctx context.Context, domain uuid.UUID) ([]uuid.UUID, error) {
	return h.ops.images(ctx, domain)
}

// SetPriority says who waits first.
func (h *Host) SetPriority(ctx context.Context, at VolumeAt, priority int) error {
	return h.ops.setPriority(ctx, at, priority)
}
