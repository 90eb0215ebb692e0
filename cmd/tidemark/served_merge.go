package main

import (
	"context"
	"errors"
	"fmt"

	"tidemark/internal/block"
	"tidemark/internal/swap"
	"tidemark/spm"
)

// MergeStart begins to copy the leaf into the volume below it, and to write to both.
// If it does so already, nothing happens; if that has failed, it begins anew.
func (s *served) MergeStart(ctx context.Context, leaf string) error {
	long, end, err := s.work(ctx)
	if err != nil {
		return err
	}
	defer end()
	d, err := s.current()
	if err != nil {
		return err
	}
	m := s.merging()
	switch {
	case m != nil && m.leaf == leaf && m.mirror.Progress().State != swap.Failed:
		return nil
	case d.volume.Info().VolumeUUID != leaf:
		return fmt.Errorf("%w: the leaf is %s, not %s", errConflict, d.volume.Info().VolumeUUID, leaf)
	case len(d.below) == 0:
		return fmt.Errorf("%w: volume %s is based on nothing", errConflict, leaf)
	case m != nil:
		if err := s.cancel(long, d, m); err != nil {
			return err
		}
	}
	if m, err = s.openBase(long, d); err != nil {
		return err
	}
	// From here on there is a merge, which a failure cancels.
	m.leaf, m.done = leaf, make(chan struct{})
	if err = s.mirror(long, d, m); err != nil {
		m.stop()
		close(m.done)
		return errors.Join(err, s.toRead(long, d, m))
	}
	d.spec.Log.Info("merging the leaf into the volume below it", "leaf", leaf, "base", m.base.volume.Info().VolumeUUID)
	return nil
}

// openBase opens the volume below the leaf for writing, in its seat. It stays open
// for reading if that is not possible.
func (s *served) openBase(ctx context.Context, d *disk) (*merge, error) {
	l := d.below[0]
	spec := d.spec
	spec.Image = l.volume.Info().VolumeUUID
	m := &merge{}
	// Its bound may be larger by now.
	handle, err := asked(ctx, func() (*spm.VolumeHandle, error) { return spec.Pool.Volume(ctx, l.volume.Ref()) })
	if err != nil {
		return nil, err
	}
	err = l.seat.Switch(ctx, func(block.Device) (block.Device, error) {
		err := errors.Join(l.device.Close(), l.file.Close())
		l.device, l.file = nil, nil
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), openLimit)
		defer cancel()
		base := &disk{spec: spec, volume: handle}
		if err == nil {
			err = base.openFile(ctx)
		}
		if err == nil {
			if err = base.openDevice(ctx, d.below[1:].device()); err == nil {
				m.base = base
				return base.device, nil
			}
			err = errors.Join(err, base.file.Close())
		}
		return reopenLayer(d, err)
	})
	if err != nil {
		return nil, fmt.Errorf("open volume %s for writing: %w", spec.Image, err)
	}
	return m, nil
}

// reopenLayer opens the volume below the leaf for reading, for the reason why.
func reopenLayer(d *disk, why error) (block.Device, error) {
	l := d.below[0]
	err := persist(func(ctx context.Context) error {
		err := l.openFile(ctx, true)
		if err == nil {
			if err = l.open(ctx, d.below[1:].device(), backingCacheBytes/2, d.spec.Log); err != nil && l.file != nil {
				err = errors.Join(err, l.file.Close())
				l.file = nil
			}
		}
		return err
	})
	if err != nil {
		d.spec.Log.Error("ALARM: the volume below the leaf cannot be opened again, and what is read from it fails", "image", l.path, "error", err)
	}
	return l.device, errors.Join(why, err)
}

// mirror makes the base as large as the leaf, and shows a mirror of both.
func (s *served) mirror(ctx context.Context, d *disk, m *merge) error {
	copying, stop := context.WithCancel(context.Background())
	m.stop = stop
	if err := growDevice(ctx, m.base.device, d.device.Info().Size); err != nil {
		return fmt.Errorf("volume %s: %w", m.base.spec.Image, err)
	}
	d.image.BackingGrew()
	m.mirror = swap.NewMirror(d.device, m.base.device, max(clusterOf(d), clusterOf(m.base)))
	err := s.front.Switch(ctx, func(block.Device) (block.Device, error) { return m.mirror, nil })
	if err != nil {
		return err
	}
	s.setMerge(m)
	go func() {
		defer close(m.done)
		if err := m.mirror.Copy(copying); err != nil && copying.Err() == nil {
			d.spec.Log.Error("the merge has failed, and the disk goes on without it", "leaf", m.leaf, "error", err)
		} else if err == nil {
			d.spec.Log.Info("the merge is ready: every write goes to both volumes", "leaf", m.leaf)
		}
	}()
	return nil
}

// MergeCancel ends a merge: the leaf is what is written to. Without one nothing
// happens.
func (s *served) MergeCancel(ctx context.Context, leaf string) error {
	ctx, end, err := s.work(ctx)
	if err != nil {
		return err
	}
	defer end()
	m := s.merging()
	switch {
	case m == nil:
		return nil
	case leaf != "" && m.leaf != leaf:
		return fmt.Errorf("%w: volume %s is being merged, not %s", errConflict, m.leaf, leaf)
	}
	return s.cancel(ctx, s.disk.Load(), m)
}

func (s *served) cancel(ctx context.Context, d *disk, m *merge) error {
	m.stop()
	<-m.done
	if err := s.front.Switch(ctx, func(block.Device) (block.Device, error) { return d.device, nil }); err != nil {
		return err
	}
	s.setMerge(nil)
	d.spec.Log.Info("the merge is cancelled", "leaf", m.leaf)
	return s.toRead(ctx, d, m)
}

// toRead closes the base and opens it for reading again.
func (s *served) toRead(ctx context.Context, d *disk, m *merge) error {
	return d.below[0].seat.Switch(ctx, func(block.Device) (block.Device, error) {
		if err := m.base.closeTop(); err != nil {
			d.spec.Log.Error("the volume below the leaf was not closed well", "volume", m.base.spec.Image, "error", err)
		}
		return reopenLayer(d, nil)
	})
}

// inTheWay refuses what is not done during a merge, and says what there is to do.
func (m *merge) inTheWay() error {
	do := "repeat the request when that is over, or stop its task first; without a task, end it with pivot or cancel"
	if m.mirror.Progress().State == swap.Failed {
		do = "it goes no further: stop or revert its task; without a task, end it with cancel; then repeat the request"
	}
	return fmt.Errorf("%w: volume %s is being merged (%s): %s", errConflict, m.leaf, m.mirror.Progress().State, do)
}

// MergePivot drops the leaf of a merge that is ready: what is below it is written to
// alone. The leaf is not written to any more when it returns, and is not open. If it
// was dropped before, nothing happens.
func (s *served) MergePivot(ctx context.Context, leaf string) error {
	ctx, end, err := s.work(ctx)
	if err != nil {
		return err
	}
	defer end()
	d, err := s.current()
	if err != nil {
		return err
	}
	m := s.merging()
	switch {
	case m == nil && leaf != "" && d.volume.Info().VolumeUUID != leaf:
		return nil
	case m == nil || leaf != "" && m.leaf != leaf:
		return fmt.Errorf("%w: volume %s is not being merged", errConflict, leaf)
	}
	if p := m.mirror.Progress(); p.State != swap.Ready {
		return errors.Join(fmt.Errorf("%w: the merge of volume %s is %s", errConflict, m.leaf, p.State), p.Err)
	}
	<-m.done
	err = s.front.Switch(ctx, func(block.Device) (block.Device, error) {
		m.base.below = d.below[1:]
		s.disk.Store(m.base)
		return m.base.device, nil
	})
	if err != nil {
		return err
	}
	s.setMerge(nil)
	if err := d.closeTop(); err != nil {
		d.spec.Log.Error("the leaf that was dropped was not closed well", "volume", m.leaf, "error", err)
	}
	d.spec.Log.Info("the leaf is dropped, and the volume below it written to alone", "leaf", m.leaf, "base", m.base.volume.Info().VolumeUUID)
	return nil
}
