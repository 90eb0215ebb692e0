package qcow2

import (
	"fmt"
	"math"
	"slices"

	"tidemark/qcow2/format"
)

// fillSliceLocked fills a slice with what came from the file and marks the entries
// that must not be used: only their clusters are out of reach then. The first
// time, host offsets must lie below the image's end at open, so that no entry
// becomes valid because the file grows; later, what this process allocated is
// allowed too (rule 17).
func (im *Image) fillSliceLocked(s *slice, pairs []format.L2Pair) error {
	end := im.referable(s.n)
	plain := im.plainPairs(pairs, end)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range pairs {
		if !plain && !im.validPair(p, end) {
			if s.bad == nil {
				s.bad = map[int]format.L2Pair{}
			}
			s.bad[i] = p
			p = format.L2Pair{Entry: badEntry}
		}
		s.storeLocked(i, p)
	}
	t := &im.tab
	if s.bad != nil {
		if t.bad++; t.bad > maxBadSlices {
			return &format.CorruptError{What: "L2 table", Off: s.off, Want: "entries that name data clusters inside the image", Got: "too many tables with others"}
		}
	}
	t.seen.add(s.n)
	return nil
}

// referable is the cluster behind the last one that an entry of slice n may
// name. The caller holds tab.mu.
func (im *Image) referable(n int64) int64 {
	if im.opts.ReadOnly {
		return im.geo.Clusters(im.file.Size())
	}
	if !im.tab.seen.has(n) {
		return im.alloc.openEnd
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.alloc.end
}

// plainPairs reports whether all pairs are empty or of whole clusters that lie before
// end, with no metadata among them or between them. Almost all tables are so, and then
// no entry is looked at by itself.
func (im *Image) plainPairs(pairs []format.L2Pair, end int64) bool {
	if im.geo.ExtendedL2 {
		return false
	}
	least, most := int64(math.MaxInt64), int64(-1)
	for _, p := range pairs {
		switch p.Entry.Kind(im.geo) {
		case format.Unallocated:
			continue
		case format.Data:
		default:
			return false
		}
		off := p.Entry.Offset()
		least, most = min(least, off), max(most, off)
	}
	if most < 0 {
		return true
	}
	at, meta := slices.BinarySearch(im.refs.metadata, least>>im.geo.ClusterBits)
	meta = meta || at < len(im.refs.metadata) && im.refs.metadata[at] <= most>>im.geo.ClusterBits
	return most>>im.geo.ClusterBits < end && !meta
}

// validPair reports whether an entry may be used: the clusters that it names, of
// which a compressed one may have several, lie before end and hold no metadata. They
// would lose a count, and so their bytes, when the entry is overwritten.
func (im *Image) validPair(p format.L2Pair, end int64) bool {
	if im.geo.SubclusterKind(p.Entry, p.Sub, 0) == format.Invalid {
		return false
	}
	var off, n int64
	switch p.Entry.Kind(im.geo) {
	case format.Compressed:
		off, n = p.Entry.CompressedRange(im.geo)
	case format.Data, format.ZeroAllocated:
		off, n = p.Entry.Offset(), 1
	default:
		return true
	}
	first, last := off>>im.geo.ClusterBits, (off+n-1)>>im.geo.ClusterBits
	at, meta := slices.BinarySearch(im.refs.metadata, first)
	meta = meta || at < len(im.refs.metadata) && im.refs.metadata[at] <= last
	return last < end && !meta
}

// maxBadSlices bounds the memory for slices that cannot leave the cache because
// they have bad entries.
const maxBadSlices = 4096

// badEntryError describes a bad entry, that of guest cluster gc.
func (im *Image) badEntryError(s *slice, gc int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return im.badEntryLocked(s, gc)
}

// badEntryLocked is badEntryError for who holds s.mu.
func (im *Image) badEntryLocked(s *slice, gc int64) error {
	_, i := im.sliceOf(gc)
	return &format.CorruptError{What: fmt.Sprintf("L2 entry of guest cluster %d", gc), Off: s.off + int64(i*im.geo.L2EntryBytes()),
		Want: "a data cluster inside the image that is no metadata", Got: fmt.Sprintf("0x%016x", uint64(s.bad[i].Entry))}
}
