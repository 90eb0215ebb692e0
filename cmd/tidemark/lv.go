package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"tidemark/internal/block"
	"tidemark/lvm"
	"tidemark/spm"
)

// lvWatch is how often a volume that is open through its segments is compared
// with what the group says of it.
const lvWatch = time.Second

// noDMText is what hosts without device-mapper are told, once for each volume.
const noDMText = "a logical volume is used through its segments, without device-mapper: the kernel does not stop lvremove, lvreduce or pvmove under it; they are noticed within seconds, and freeze it"

// An lvSpec says which logical volume to open and how.
type lvSpec struct {
	lv       string // its name in the group
	tool     *lvm.Tool
	readOnly bool
	noDM     bool // do not use device-mapper, although it is there
	// handle tells where it lies when it has grown; nil for a volume that does
	// not grow, and whose owner is the only one who changes it.
	handle *spm.VolumeHandle
	log    *slog.Logger
}

// An lvFile is an open logical volume, and what ends with it.
type lvFile struct {
	*lvm.File
	after []func() error // in this order, when the file is closed
}

// Close closes the volume and lets it go.
func (f *lvFile) Close() error {
	errs := []error{f.File.Close()}
	for _, end := range f.after {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

// openLV opens a logical volume through device-mapper where there is one, and
// through its segments elsewhere.
func openLV(ctx context.Context, m *spm.Mapping, s lvSpec) (*lvFile, error) {
	alarm := func(err error) {
		s.log.Error("ALARM: a volume was changed under its writer, and is frozen", "group", m.Group, "lv", s.lv, "error", err)
	}
	if !s.noDM && lvm.DeviceMapper() {
		if err := s.tool.Activate(ctx, m.Group, s.lv); err != nil {
			return nil, err
		}
		end := func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			err := s.tool.Deactivate(ctx, m.Group, s.lv)
			if s.readOnly {
				return nil // another reader may have it open
			}
			return err
		}
		f, err := lvm.OpenDevice(lvm.DevicePath(m.Group, s.lv), lvm.DeviceOptions{
			ReadOnly: s.readOnly, Alarm: alarm,
			Refresh: func(ctx context.Context) error { return s.tool.Refresh(ctx, m.Group, s.lv) },
			Reduce:  s.reduce(),
		})
		if err != nil {
			return nil, errors.Join(err, end())
		}
		return &lvFile{f, []func() error{end}}, nil
	}
	o := lvm.SegmentOptions{Name: lvm.DevicePath(m.Group, s.lv), ReadOnly: s.readOnly, Alarm: alarm}
	if s.handle != nil {
		o.Newest = func(context.Context) (lvm.Map, error) { return mapOf(s.handle.Mapping()), nil }
		reduce := s.reduce()
		o.Reduce = func(ctx context.Context, from, to int64) (lvm.Map, error) {
			if _, err := reduce(ctx, from, to); err != nil {
				return lvm.Map{}, err
			}
			return mapOf(s.handle.Mapping()), nil
		}
	}
	f, err := lvm.OpenSegments(mapOf(m), o)
	if err != nil {
		return nil, err
	}
	if s.handle == nil {
		return &lvFile{f, nil}, nil
	}
	s.log.Warn(noDMText, "lv", o.Name)
	return &lvFile{f, []func() error{s.watch(f, m)}}, nil
}

// reduce asks the manager, if the volume has one, to make it shorter.
func (s lvSpec) reduce() func(ctx context.Context, from, to int64) (int64, error) {
	if s.handle == nil {
		return nil
	}
	return func(ctx context.Context, from, to int64) (int64, error) { return reduceVolume(ctx, s.handle, from, to) }
}

// watch compares the volume with what the manager says of it, or without a
// manager with the group itself, until the function that it returns is called.
func (s lvSpec) watch(f *lvm.File, m *spm.Mapping) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(lvWatch)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.compare(ctx, f, m)
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() error {
		cancel()
		<-done
		return nil
	}
}

// compare looks once. That nobody can say where the volume lies is no reason to
// freeze it: it is looked at again.
func (s lvSpec) compare(ctx context.Context, f *lvm.File, m *spm.Mapping) {
	ctx, cancel := context.WithTimeout(ctx, 5*lvWatch)
	defer cancel()
	var now lvm.Map
	told, err := s.handle.Look(ctx)
	switch {
	case err == nil && told != nil:
		now = mapOf(told)
	case err == nil || !errors.Is(err, fs.ErrNotExist):
		now, err = s.tool.Map(ctx, m.Group, s.lv)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.Freeze(fmt.Errorf("logical volume %s/%s is not there any more", m.Group, s.lv))
	case err == nil:
		_ = f.Adopt(now) // it raises the alarm itself
	case ctx.Err() == nil:
		s.log.Warn("cannot look where a volume lies", "lv", s.lv, "error", err)
	}
}

// openVolumeLV opens a volume of a pool on a volume group for a data server,
// which has it alone.
func openVolumeLV(ctx context.Context, h *spm.VolumeHandle, readOnly, noDM bool, log *slog.Logger) (*lvFile, error) {
	m := h.Mapping()
	how := lvm.Writing
	if readOnly {
		how = lvm.Reading
	}
	hold, err := lvm.Locks{Dir: m.LockDir}.Hold(m.LVUUID, how)
	if errors.Is(err, block.ErrInUse) {
		return nil, fmt.Errorf("%w: stop who has it open, then repeat; several may have it only if all of them only read", err)
	}
	if err != nil {
		return nil, err
	}
	f, err := openHeldLV(ctx, h, m, readOnly, noDM, log)
	if err != nil {
		return nil, errors.Join(err, hold.Release())
	}
	f.after = append(f.after, hold.Release)
	return f, nil
}

func openHeldLV(ctx context.Context, h *spm.VolumeHandle, m *spm.Mapping, readOnly, noDM bool, log *slog.Logger) (*lvFile, error) {
	tool, err := lvm.NewTool(lvm.ToolOptions{Devices: m.Devices, Dir: confDir(filepath.Dir(m.LockDir))})
	if err != nil {
		return nil, err
	}
	// It may have been extended or removed before it was held.
	if m, err = h.Look(ctx); err != nil {
		return nil, err
	}
	return openLV(ctx, m, lvSpec{
		lv: h.Info().VolumeUUID, tool: tool, readOnly: readOnly, noDM: noDM, handle: h, log: log,
	})
}
