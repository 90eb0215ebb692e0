package lvm

// What lvm writes for a segment, and for a volume with three tags of a UUID
// each, in bytes of the metadata's text: measured with LVM 2.03.16, rounded up.
const (
	segmentText = 128
	volumeText  = 640
)

// reserveText is what stays free of a metadata area, for what removes volumes
// and for changes by hand: a sixteenth, and not less than 32 KiB.
const reserveText = 32 << 10

// Metadata is how far a group's metadata area is used. An area is a ring that
// holds two copies of the text, so that half of it is the limit. Sizes are in
// bytes.
type Metadata struct {
	Used, Limit int64
	// Segments are those there are, and SegmentsLimit about how many there can
	// be before new ones are refused.
	Segments, SegmentsLimit int64
}

// mdaHeader is the part of an area that holds no text.
const mdaHeader = 512

// Metadata returns the use of the smallest area of the group.
func (v *VG) Metadata() Metadata {
	m := Metadata{Limit: max((v.MDASize-mdaHeader)/2, 0), Segments: int64(v.Segments)}
	m.Used = max(m.Limit-v.MDAFree, 0)
	m.SegmentsLimit = m.Segments + max(m.free(), 0)/segmentText
	return m
}

// free is what may be used by new segments and volumes; negative below the
// reserve.
func (m Metadata) free() int64 { return m.Limit - m.Used - max(m.Limit/16, reserveText) }

// admits reports whether there is room for so many more volumes and segments.
// What adds neither is always admitted.
func (m Metadata) admits(volumes, segments int64) bool {
	more := volumes*volumeText + segments*segmentText
	return more == 0 || more <= m.free()
}
