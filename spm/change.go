package spm

import (
	"context"
	"errors"
	"io/fs"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// The methods of this file are what the steps of tasks are made of, besides
// ensureVolume. Each may be repeated, and finds then that nothing is left to do.

// volumeOf returns a volume that is there and whole.
func (m *Manager) volumeOf(image, id uuid.UUID) (*volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.volumes[id]
	if v == nil || !v.ready || v.image != image {
		return nil, errorf(CodeNotFound, "image %s has no volume %s", image, id)
	}
	return v, v.whole()
}

// toChange takes a volume that is there for one change of it.
func (m *Manager) toChange(ctx context.Context, image, id uuid.UUID) (v *volume, release func(), err error) {
	if v, err = m.volumeOf(image, id); err != nil {
		return nil, nil, err
	}
	if err := m.take(ctx, v); err != nil {
		return nil, nil, err
	}
	release = func() { <-v.sem }
	if m.isGone(v) {
		err = goneError(v)
	} else {
		err = m.store.confined(v)
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return v, release, nil
}

// setMeta changes the metadata of a volume, in one atomic write. After one that has
// failed nobody knows which of the two is on disk, so the next is made in any case.
func (m *Manager) setMeta(ctx context.Context, image, id uuid.UUID, change func(*volumeMeta)) error {
	v, done, err := m.toChange(ctx, image, id)
	if err != nil {
		return err
	}
	defer done()
	old := v.meta()
	meta := old
	change(&meta)
	if meta == old && !v.unwritten {
		return nil
	}
	err = m.store.write(context.WithoutCancel(ctx), v, meta)
	v.unwritten = err != nil
	if err != nil {
		return internal(err, "write the metadata of volume %s", v.name())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v.said.Store(&said{name: v.name(), meta: meta})
	v.bound = max(m.boundOf(meta), v.size)
	m.renameLocked(v.image)
	if meta.Priority != old.Priority {
		m.sortQueueLocked()
		m.wakeLocked()
	}
	m.o.Log.Info("volume changed", "volume", v.name(), "uuid", v.id, "type", meta.VolType, "legality", meta.Legality,
		"generation", meta.Generation, "parent", meta.Parent, "size", meta.Capacity)
	return nil
}

func (m *Manager) isGone(v *volume) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return v.gone
}

// settle corrects the VOLTYPE of an image's volumes, after one of them has come,
// gone, or become legal.
func (m *Manager) settle(ctx context.Context, image uuid.UUID) error {
	f := m.family()
	for _, k := range f.images[image] {
		want := f.reconcile(k)
		if want == k.meta.VolType {
			continue
		}
		if err := m.setMeta(ctx, image, k.id, func(meta *volumeMeta) { meta.VolType = want }); err != nil {
			return err
		}
	}
	return nil
}

// grantAtLeast makes a volume at least need bytes long, at once or not at all: who
// waits in a full pool holds a guest up, and a task does not. With spare, it may
// use the reserve, and passes those who wait.
func (m *Manager) grantAtLeast(ctx context.Context, image, id uuid.UUID, need int64, spare bool) error {
	v, done, err := m.toChange(ctx, image, id)
	if err != nil {
		return err
	}
	defer done()
	before, target, err := m.admitTask(v, need, spare)
	if err != nil {
		return err
	}
	if target > before || v.unsynced {
		_, err = m.grow(v, before, target, target)
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, block.ErrNoSpace) {
		return errorf(CodePoolFull, "extend %s to %d bytes: %v", v.name(), target, err)
	}
	if meta := v.meta(); err == nil && meta.Format == Raw && target > meta.Capacity {
		// Its size is how far it is known to be its own: the rest may show what was
		// there before, also after a crash.
		err = m.store.zero(ctx, v, meta.Capacity, target)
	}
	return err
}

// admitTask reserves what grantAtLeast needs.
func (m *Manager) admitTask(v *volume, need int64, spare bool) (before, target int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before, target = v.size, v.size
	if v.gone {
		return before, target, goneError(v)
	}
	if need > v.bound {
		return before, target, errorf(CodeBound, "extend %s to %d bytes: its bound is %d bytes", v.name(), need, v.bound)
	}
	if target = min(roundUp(need, m.unit()), v.bound); target <= before {
		return before, before, nil
	}
	free, waiting := m.freeLocked(), len(m.queue)
	if spare {
		waiting = 0
	} else {
		free -= m.reserveOfLocked()
	}
	if waiting > 0 || target-before > free {
		return before, before, m.refuseLocked(v.id, v.name(), target-before,
			"extend %s from %d to %d bytes: of the pool's %d bytes %d can be granted (%d volumes wait)",
			v.name(), before, target, m.capacity, max(free, 0), waiting)
	}
	m.reserveLocked(v, target)
	return before, target, nil
}

// shrinkTo makes a volume of exactly from bytes about to bytes long, and never less, if
// nobody has it open.
func (m *Manager) shrinkTo(ctx context.Context, image, id uuid.UUID, from, to int64) error {
	v, done, err := m.toChange(ctx, image, id)
	if err != nil {
		return err
	}
	defer done()
	m.mu.Lock()
	size := v.size
	m.mu.Unlock()
	to = min(roundUp(max(to, 1), m.unit()), max(to, m.boundOf(v.meta())))
	switch {
	case size <= to:
		return nil
	case size != from:
		return errorf(CodeInUse, "reduce %s: it has %d bytes, and had %d a moment ago: somebody uses it", v.name(), size, from)
	}
	release, err := m.store.hold(v)
	if err != nil {
		return holdError("reduce", v, err)
	}
	return errors.Join(m.reduce(v, from, to), release())
}

// unused fails with CodeInUse if somebody has one of the volumes open. If nobody has, and
// the file of one is not there, the error is CodeDamaged and wraps fs.ErrNotExist.
func (m *Manager) unused(image uuid.UUID, ids ...uuid.UUID) (lost error) {
	for _, id := range ids {
		m.mu.Lock()
		v := m.volumes[id]
		m.mu.Unlock()
		if v == nil || v.image != image {
			continue
		}
		if err := m.store.confined(v); err != nil {
			return err
		}
		release, err := m.store.hold(v)
		if errors.Is(err, fs.ErrNotExist) {
			lost = &Error{Code: CodeDamaged, err: err, Message: "volume " + v.id.String() + " of image " + image.String() +
				" is damaged (" + err.Error() + "): bring its file back, or delete it by force"}
			continue
		}
		if err != nil {
			return holdError("use", v, err)
		}
		if err := release(); err != nil {
			return internal(err, "release volume %s", v.name())
		}
	}
	return lost
}

func holdError(what string, v *volume, err error) error {
	if errors.Is(err, block.ErrInUse) {
		return &Error{
			Code: CodeInUse, err: err,
			Message: what + " " + v.name() + ": " + err.Error() + ": stop who has it open, then repeat",
		}
	}
	return internal(err, "%s %s", what, v.name())
}

// raiseBound lets a volume grow as one of that virtual size may, which it is about
// to get. What its metadata says is the bound again when that is written, or by resetBound.
func (m *Manager) raiseBound(image, id uuid.UUID, virtual int64) error {
	v, err := m.volumeOf(image, id)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	meta := v.meta()
	meta.Capacity = max(meta.Capacity, virtual)
	v.bound = max(v.bound, m.boundOf(meta))
	return nil
}

// resetBound takes back what raiseBound has done, for a volume that does not get that size.
func (m *Manager) resetBound(id uuid.UUID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.volumes[id]; v != nil {
		v.bound = max(m.boundOf(v.meta()), v.size)
	}
}
