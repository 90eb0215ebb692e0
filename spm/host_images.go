package spm

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// lockPatience is how long a request that is no task waits for one that changes the
// same image. What takes longer is waited for by whoever asks.
const lockPatience = 5 * time.Second

var errLockPatience = errors.New("a task has the image")

// lock takes resources as a task does, and waits for them no longer than a request that
// is none should: then the error is errLockPatience.
func (h *Host) lock(ctx context.Context, locks ...task.Lock) (release func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, h.o.LockPatience, errLockPatience)
	defer cancel()
	for {
		e, err := h.engine()
		if err != nil {
			return nil, err
		}
		release, err := e.Locks().Acquire(ctx, locks)
		if err != nil {
			return nil, err
		}
		if now, _ := h.engine(); now == e {
			return release, nil
		}
		release() // the tasks have moved to another domain, with new locks
	}
}

// lockImage takes an image as a task does that only looks at it, or that changes it: so
// nothing is served, torn down or removed in the middle of a task that changes the image,
// and no domain goes out of use meanwhile.
func (h *Host) lockImage(ctx context.Context, domain, image uuid.UUID, exclusive bool) (release func(), err error) {
	release, err = h.lock(ctx, domainLock(domain), imageLock(domain, image, exclusive))
	if errors.Is(err, errLockPatience) {
		err = taken(image)
	}
	return release, err
}

func taken(image uuid.UUID) error {
	return errorf(CodeUnfinished, "a task that has not ended has image %s: wait for it, or stop it", image)
}

// PrepareImage serves a volume.
func (h *Host) PrepareImage(ctx context.Context, at VolumeAt, o PrepareOptions) (Prepared, error) {
	m, k, err := h.ops.volume(at)
	if err != nil {
		return Prepared{}, err
	}
	if p, there, err := h.ops.served(ctx, at, o); there || err != nil {
		return p, err
	}
	release, err := h.lockImage(ctx, m.ident.domain, k.image, false)
	if err != nil {
		return Prepared{}, err
	}
	defer release()
	return h.ops.prepare(ctx, at, o)
}

// TeardownImage ends who serves an image.
func (h *Host) TeardownImage(ctx context.Context, at VolumeAt) error {
	if there, err := h.ops.mayTeardown(ctx, at); err != nil || !there {
		return err
	}
	release, err := h.lockImage(ctx, at.Domain, at.Image, false)
	if err != nil {
		return err
	}
	defer release()
	return h.ops.teardown(ctx, at)
}

// RemoveVolume removes the image of a volume that nobody holds.
func (h *Host) RemoveVolume(ctx context.Context, r VolumeRemoveRequest) (VolumeRemoveReply, error) {
	m, err := h.managerOf(r.VolumeRef)
	if err != nil {
		return VolumeRemoveReply{}, err
	}
	v, err := m.find(r.Header, r.VolumeRef)
	if err != nil {
		return VolumeRemoveReply{}, err
	}
	release, err := h.lockImage(ctx, m.ident.domain, v.image, true)
	if err != nil {
		return VolumeRemoveReply{}, err
	}
	defer release()
	r.Volume = v.image.String() // what had the name is meant, whatever has it now
	return m.RemoveVolume(ctx, r)
}
