package lvm

import "fmt"

// A Map says where the bytes of a logical volume lie, and of which state of the
// group that is true. It is what a change of a volume is answered with.
type Map struct {
	VG, LV   string // UUIDs
	Seqno    int64  // of the group
	Segments []MapSegment
}

// A MapSegment is a run of bytes on a physical volume. Device is where that was
// seen last; the UUID decides.
type MapSegment struct {
	Start, Size int64 // bytes of the volume
	PV          string
	Device      string
	Offset      int64 // byte of the physical volume
}

func (s MapSegment) end() int64 { return s.Start + s.Size }

// followedBy reports whether t begins where s ends, in the volume and on the
// same physical volume.
func (s MapSegment) followedBy(t MapSegment) bool {
	return s.end() == t.Start && s.PV == t.PV && s.Offset+s.Size == t.Offset
}

// Size is the length of the volume in bytes.
func (m Map) Size() int64 {
	if len(m.Segments) == 0 {
		return 0
	}
	return m.Segments[len(m.Segments)-1].end()
}

// merge makes segments that continue each other one.
func merge(segments []MapSegment) []MapSegment {
	var out []MapSegment
	for _, s := range segments {
		if n := len(out); n > 0 && out[n-1].followedBy(s) {
			out[n-1].Size += s.Size
			continue
		}
		out = append(out, s)
	}
	return out
}

// check refuses a map with holes, overlaps or impossible numbers. It may come
// from another process.
func (m Map) check() error {
	if m.LV == "" {
		return fmt.Errorf("map of a volume without a UUID: %w", ErrUnusable)
	}
	at := int64(0)
	for i, s := range m.Segments {
		if s.Start != at || s.Size <= 0 || s.end() <= s.Start || s.Offset < 0 || s.Offset > 1<<62 || s.PV == "" {
			return fmt.Errorf("map of volume %s: segment %d is %d bytes at %d (byte %d of physical volume %q), expected one that begins at %d: %w",
				m.LV, i, s.Size, s.Start, s.Offset, s.PV, at, ErrUnusable)
		}
		at = s.end()
	}
	return nil
}

// appendsTo returns an error unless m is old with bytes added at its end: every
// byte of old has to be where it was.
func (m Map) appendsTo(old Map) error {
	if m.LV != old.LV || m.VG != old.VG {
		return fmt.Errorf("volume %s of group %s has become volume %s of group %s", old.LV, old.VG, m.LV, m.VG)
	}
	if m.Size() < old.Size() {
		return fmt.Errorf("volume %s has shrunk from %d to %d bytes", m.LV, old.Size(), m.Size())
	}
	now, before := merge(m.Segments), merge(old.Segments)
	for i, b := range before {
		n := now[i] // both begin at 0 and have no holes, and m is as long
		same := n.Start == b.Start && n.PV == b.PV && n.Offset == b.Offset
		if last := i == len(before)-1; !same || n.Size < b.Size || !last && n.Size != b.Size {
			return fmt.Errorf("volume %s has moved: %d bytes at %d were at byte %d of physical volume %s, and are %d bytes at byte %d of %s",
				m.LV, b.Size, b.Start, b.Offset, b.PV, n.Size, n.Offset, n.PV)
		}
	}
	return nil
}
