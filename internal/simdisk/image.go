package simdisk

import (
	"bytes"
	"maps"
	"slices"
)

const (
	// SectorSize is the unit that a power cut leaves whole.
	SectorSize = 512

	pageSize       = 4096
	sectorsPerPage = pageSize / SectorSize
)

// ForeignTag is what another tenant's space is filled with, over and over, from
// every multiple of its length.
const ForeignTag = "another tenant's"

// HasForeign reports whether p holds bytes of another tenant.
func HasForeign(p []byte) bool { return bytes.Contains(p, []byte(ForeignTag)) }

type page [pageSize]byte

var (
	zeroPage    = new(page)
	foreignPage = func() *page {
		var p page
		copy(p[:], bytes.Repeat([]byte(ForeignTag), pageSize/len(ForeignTag)))
		return &p
	}()
)

// A span is the bytes [off, end).
type span struct{ off, end int64 }

// An image is sparse content. A page that is not in the map reads foreign where
// a span says so, and zero elsewhere. Pages in the map never change.
type image struct {
	pages   map[int64]*page
	foreign []span
}

func newImage() image { return image{pages: map[int64]*page{}} }

func (im *image) clone() image {
	return image{pages: maps.Clone(im.pages), foreign: slices.Clone(im.foreign)}
}

// page returns the content of page i; the caller does not change it.
func (im *image) page(i int64) *page {
	if p, ok := im.pages[i]; ok {
		return p
	}
	p := zeroPage
	for _, s := range im.foreign {
		from, to := max(s.off-i*pageSize, 0), min(s.end-i*pageSize, pageSize)
		switch {
		case from >= to:
		case to-from == pageSize:
			return foreignPage
		default:
			mixed := *p
			copy(mixed[from:to], foreignPage[from:to])
			p = &mixed
		}
	}
	return p
}

// set replaces page i. A page of zeroes where nothing else would be read needs
// no place in the map.
func (im *image) set(i int64, p *page) {
	if p == zeroPage && len(im.foreign) == 0 {
		delete(im.pages, i)
		return
	}
	im.pages[i] = p
}

// setBytes replaces bytes [from, to) of page i by those of p.
func (im *image) setBytes(i, from, to int64, p *page) {
	if from == 0 && to == pageSize {
		im.set(i, p)
		return
	}
	mixed := *im.page(i)
	copy(mixed[from:to], p[from:to])
	im.set(i, &mixed)
}

func (im *image) read(p []byte, off int64) {
	for len(p) > 0 {
		n := copy(p, im.page(off / pageSize)[off%pageSize:])
		p, off = p[n:], off+int64(n)
	}
}

// addForeign makes [off, end), which nothing was written to, another tenant's.
func (im *image) addForeign(off, end int64) {
	if i := off / pageSize; off%pageSize != 0 && im.pages[i] != nil {
		to := min(end-i*pageSize, pageSize)
		im.setBytes(i, off%pageSize, to, foreignPage)
		off = i*pageSize + to
	}
	if off < end {
		im.foreign = append(im.foreign, span{off, end})
	}
}

// dropForeign makes the rest of another tenant's space in [off, end) read zero.
// Pages in the map keep what they hold.
func (im *image) dropForeign(off, end int64) {
	var rest []span
	for _, s := range im.foreign {
		if before := (span{s.off, min(s.end, off)}); before.off < before.end {
			rest = append(rest, before)
		}
		if behind := (span{max(s.off, end), s.end}); behind.off < behind.end {
			rest = append(rest, behind)
		}
	}
	im.foreign = rest
}

// truncate forgets everything from size on.
func (im *image) truncate(size int64) {
	for i := range im.pages {
		if i*pageSize >= size {
			delete(im.pages, i)
		}
	}
	if i := size / pageSize; size%pageSize != 0 && im.pages[i] != nil {
		im.setBytes(i, size%pageSize, pageSize, zeroPage)
	}
	im.dropForeign(size, 1<<63-1)
}
