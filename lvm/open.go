package lvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// SegmentOptions say how a volume is opened through its segments.
type SegmentOptions struct {
	// Name is the volume's in errors.
	Name     string
	ReadOnly bool
	// Newest returns the newest map that the pool has told, when the volume is
	// to grow. It may be nil for a volume that does not.
	Newest func(ctx context.Context) (Map, error)
	// Reduce asks the pool to make the volume shorter, from exactly from bytes to
	// the whole extents that hold to, and returns its map then. It may be nil.
	Reduce func(ctx context.Context, from, to int64) (Map, error)
	// Alarm is told why the volume was frozen, once.
	Alarm func(error)
	// Sys is the root of sysfs. Default: /sys.
	Sys fs.FS
}

// OpenSegments opens a volume through its segments on the physical volumes. The
// caller holds the volume ([Locks]).
func OpenSegments(m Map, o SegmentOptions) (*File, error) {
	if o.Sys == nil {
		o.Sys = os.DirFS("/sys")
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Name, err)
	}
	active, err := activeVolumes(o.Sys)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", o.Name, err)
	}
	if dm := active[activeKey(m.VG, m.LV)]; dm != "" {
		return nil, fmt.Errorf("open %s: volume %s is active as /dev/%s: open it there, or deactivate it with lvchange -an: %w",
			o.Name, m.LV, dm, block.ErrInUse)
	}
	f := newFile(o.Name, o.ReadOnly, o.Alarm)
	f.adopt = func(ctx context.Context, _ int64) error {
		if o.Newest == nil {
			return fmt.Errorf("nobody tells how it grows: %w", block.ErrUnsupported)
		}
		m, err := o.Newest(ctx)
		if err != nil {
			return err
		}
		return f.adoptLocked(m, o.Sys)
	}
	if o.Reduce != nil {
		f.reduce = func(ctx context.Context, from, to int64) error {
			m, err := o.Reduce(ctx, from, to)
			if err != nil {
				return err
			}
			return f.cutLocked(m, to)
		}
	}
	f.at.Store(&layout{m: Map{VG: m.VG, LV: m.LV}})
	if err := f.adoptLocked(m, o.Sys); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", o.Name, err), f.Close())
	}
	f.describe(segmentsID(m.LV))
	return f, nil
}

// Adopt takes a newer map of a volume that is open through its segments. A map
// that does not append to the present one freezes the File; one of an older
// state of the group is passed over.
func (f *File) Adopt(m Map) error {
	f.growMu.Lock()
	defer f.growMu.Unlock()
	if _, err := f.usable("adopt a map of"); err != nil {
		return err
	}
	return f.adoptLocked(m, nil)
}

// adoptLocked checks a map against the present one, opens the devices that are
// new, and switches over. sys may be nil when no device is new.
func (f *File) adoptLocked(m Map, sys fs.FS) error {
	old := f.at.Load().m
	if m.Seqno < old.Seqno {
		return nil
	}
	if err := m.check(); err != nil {
		return err
	}
	if err := m.appendsTo(old); err != nil {
		f.Freeze(err)
		return *f.frozen.Load()
	}
	if sys == nil {
		sys = os.DirFS("/sys")
	}
	next := &layout{m: m, size: m.Size()}
	for _, s := range merge(m.Segments) {
		d, err := f.deviceLocked(s, sys)
		if err != nil {
			return err
		}
		if err := fits(s, d); err != nil {
			return err
		}
		next.spans = append(next.spans, span{start: s.Start, size: s.Size, d: d, offset: s.Offset})
	}
	f.at.Store(next)
	return nil
}

// cutLocked takes over the map of a volume that was reduced for us: the present one
// without its end, which must hold to bytes.
func (f *File) cutLocked(m Map, to int64) error {
	old := f.at.Load()
	err := m.check()
	if err == nil {
		err = old.m.appendsTo(m)
	}
	if err == nil && m.Size() < to {
		err = fmt.Errorf("volume %s has shrunk to %d bytes, expected at least %d", m.LV, m.Size(), to)
	}
	if err != nil {
		f.Freeze(err)
		return *f.frozen.Load()
	}
	next := &layout{m: m, size: m.Size()}
	for _, s := range old.spans {
		if s.size = min(s.size, next.size-s.start); s.size > 0 {
			next.spans = append(next.spans, s)
		}
	}
	f.at.Store(next)
	return nil
}

// deviceLocked returns the physical volume of a segment: the one that is open,
// if it still is that, or a new one.
func (f *File) deviceLocked(s MapSegment, sys fs.FS) (*device, error) {
	i := slices.IndexFunc(f.devices, func(d *device) bool { return d.pv == s.PV })
	if i >= 0 {
		if err := f.devices[i].verify(); err != nil {
			f.Freeze(fmt.Errorf("%s: %w", f.devices[i].path, err))
			return nil, *f.frozen.Load()
		}
		return f.devices[i], nil
	}
	d, err := openDevice(s.Device, s.PV, f.readOnly, sys)
	if err != nil {
		return nil, err
	}
	f.devices = append(f.devices, d)
	if d.block != f.devices[0].block {
		return nil, fmt.Errorf("%s has logical blocks of %d bytes and %s of %d, expected the same: %w",
			d.path, d.block, f.devices[0].path, f.devices[0].block, ErrUnusable)
	}
	return d, nil
}

// fits refuses a segment that does not lie on whole blocks inside its device.
func fits(s MapSegment, d *device) error {
	size, err := d.size()
	if err != nil {
		return err
	}
	if unit := int64(d.block); (s.Start|s.Size|s.Offset)%unit != 0 || s.Offset+s.Size > size {
		return fmt.Errorf("%d bytes at byte %d of %s: expected whole blocks of %d bytes inside its %d: %w",
			s.Size, s.Offset, d.path, unit, size, ErrUnusable)
	}
	return nil
}

// DeviceOptions say how a volume is opened through device-mapper.
type DeviceOptions struct {
	// Name is the volume's in errors. Default: the path.
	Name     string
	ReadOnly bool
	// Refresh makes device-mapper take over the size that the pool has granted
	// ([Tool.Refresh]). It may be nil for a volume that does not grow.
	Refresh func(ctx context.Context) error
	// Reduce asks the pool to make the volume shorter, from exactly from bytes to
	// the whole extents that hold to, and returns its size then. It may be nil.
	Reduce func(ctx context.Context, from, to int64) (int64, error)
	// Alarm is told why the volume was frozen, once.
	Alarm func(error)
}

// OpenDevice opens a volume that is active in device-mapper, at /dev/VG/LV.
// Without device-mapper it opens any block device.
func OpenDevice(path string, o DeviceOptions) (*File, error) {
	if o.Name == "" {
		o.Name = path
	}
	d, err := openDevice(path, "", o.ReadOnly, os.DirFS("/sys"))
	if err != nil {
		return nil, err
	}
	f := newFile(o.Name, o.ReadOnly, o.Alarm)
	f.devices = []*device{d}
	f.adopt = func(ctx context.Context, _ int64) error {
		if o.Refresh == nil {
			return fmt.Errorf("nobody makes it larger: %w", block.ErrUnsupported)
		}
		if err := o.Refresh(ctx); err != nil {
			return err
		}
		return f.measureLocked()
	}
	if o.Reduce != nil && o.Refresh != nil {
		f.reduce = func(ctx context.Context, from, to int64) error {
			size, err := o.Reduce(ctx, from, to)
			if err != nil {
				return err
			}
			if size < to {
				f.Freeze(fmt.Errorf("it has shrunk to %d bytes, expected at least %d", size, to))
				return *f.frozen.Load()
			}
			f.at.Store(&layout{size: size, spans: []span{{size: size, d: d}}})
			return o.Refresh(ctx) // the kernel no longer maps what is somebody else's now
		}
	}
	f.at.Store(&layout{})
	if err := f.measureLocked(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	f.describe(deviceID(d.number))
	return f, nil
}

// measureLocked takes over the size of the device. A smaller one freezes.
func (f *File) measureLocked() error {
	d, old := f.devices[0], f.at.Load().size
	size, err := d.size()
	if err != nil {
		return fmt.Errorf("size of %s: %w", d.path, err)
	}
	if size < old {
		f.Freeze(fmt.Errorf("%s has shrunk from %d to %d bytes", d.path, old, size))
		return *f.frozen.Load()
	}
	f.at.Store(&layout{size: size, spans: []span{{size: size, d: d}}})
	return nil
}

func newFile(name string, readOnly bool, alarm func(error)) *File {
	return &File{name: name, readOnly: readOnly, alarm: alarm, blocks: newBlockLocks()}
}

// describe fixes what Info says, once the devices are open. A device that comes
// later and does not zero by itself makes zeroing slower, and nothing wrong.
func (f *File) describe(id string) {
	f.unit = tearUnit
	cheap := true
	for _, d := range f.devices {
		f.unit = d.block
		cheap = cheap && d.zeroing
	}
	f.info = block.FileInfo{ID: id, Align: 1, TearUnit: tearUnit, ZeroCheap: cheap, Direct: true, ReadOnly: f.readOnly}
}

// IDs are what Info may call a volume of that UUID: opened through its segments, and, if
// it is active, as the device at path.
func IDs(lv, path string) []string {
	ids := []string{segmentsID(lv)}
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		ids = append(ids, deviceID(st.Rdev))
	}
	return ids
}

func segmentsID(lv string) string { return "volume " + lv }

func deviceID(number uint64) string {
	return fmt.Sprintf("device %d:%d", unix.Major(number), unix.Minor(number))
}
