package lvm

import (
	"fmt"
	"slices"
)

// A VG is a volume group at one moment. Sizes are in bytes.
type VG struct {
	Name, UUID string
	Seqno      int64 // raised by every change
	ExtentSize int64
	Extents    int64 // of all physical volumes
	Free       int64 // extents that no volume has
	Tags       []string
	Partial    bool // a physical volume is missing
	Exported   bool
	MDASize    int64 // the smallest metadata area
	MDAFree    int64 // of it
	PVs        []PV
	LVs        []LV // those that are visible
	// Segments is the number of runs of extents that volumes have, those of
	// hidden volumes included.
	Segments int
}

// A PV is a physical volume of a group.
type PV struct {
	UUID   string
	Device string // its path, or [unknown] if it is missing
	// Start is the byte at which extent 0 begins.
	Start   int64
	Extents int64
	// Free are the runs of extents that no volume has, in order.
	Free          []Range
	HoldsMetadata bool
	Allocatable   bool
	Missing       bool
	Duplicate     bool // seen on more than one device
}

// A Range is a run of extents of a physical volume.
type Range struct{ First, Count int64 }

// End is the extent behind the last one.
func (r Range) End() int64 { return r.First + r.Count }

// An LV is a logical volume.
type LV struct {
	Name, UUID string
	Size       int64 // bytes
	Tags       []string
	Segments   []Segment // in order
	Partial    bool      // a part of it is missing
	// Active says that device-mapper has it on this host.
	Active bool
}

// A Segment is a run of a logical volume. Only a linear one on a single physical
// volume has the last three fields.
type Segment struct {
	Type        string // "linear"
	Start, Size int64  // bytes of the logical volume
	PV          string // UUID
	First       int64  // extent
	Count       int64
}

const linear = "linear"

// HasTag reports whether the volume has a tag.
func (l LV) HasTag(tag string) bool { return slices.Contains(l.Tags, tag) }

// LV returns the volume of that name.
func (v *VG) LV(name string) (LV, bool) {
	i := slices.IndexFunc(v.LVs, func(l LV) bool { return l.Name == name })
	if i < 0 {
		return LV{}, false
	}
	return v.LVs[i], true
}

// PV returns the physical volume with that UUID.
func (v *VG) PV(uuid string) (PV, bool) {
	i := slices.IndexFunc(v.PVs, func(p PV) bool { return p.UUID == uuid })
	if i < 0 {
		return PV{}, false
	}
	return v.PVs[i], true
}

// extents is how many extents hold n bytes.
func (v *VG) extents(n int64) int64 { return (n + v.ExtentSize - 1) / v.ExtentSize }

// Map returns where the bytes of a volume lie, or why they cannot be used from
// user space.
func (v *VG) Map(name string) (Map, error) {
	l, ok := v.LV(name)
	if !ok {
		return Map{}, fmt.Errorf("logical volume %s/%s: %w", v.Name, name, ErrNotFound)
	}
	m := Map{VG: v.UUID, LV: l.UUID, Seqno: v.Seqno}
	if l.Partial {
		return m, fmt.Errorf("logical volume %s/%s: a part of it is missing: %w", v.Name, name, ErrUnusable)
	}
	for _, s := range l.Segments {
		p, found := v.PV(s.PV)
		switch {
		case s.Type != linear || !found:
			return m, fmt.Errorf("logical volume %s/%s: segment at %d is of type %s, expected linear on one physical volume: %w",
				v.Name, name, s.Start, s.Type, ErrUnusable)
		case p.Missing || p.Duplicate:
			return m, fmt.Errorf("logical volume %s/%s: physical volume %s (%s) is missing, or there more than once: %w",
				v.Name, name, p.UUID, p.Device, ErrUnusable)
		}
		m.Segments = append(m.Segments, MapSegment{
			Start: s.Start, Size: s.Size, PV: p.UUID, Device: p.Device, Offset: p.Start + s.First*v.ExtentSize,
		})
	}
	m.Segments = merge(m.Segments)
	return m, m.check()
}
