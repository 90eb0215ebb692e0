package spm

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"slices"

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
