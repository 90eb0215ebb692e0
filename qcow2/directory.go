package qcow2

import "sync/atomic"

// A directory finds the slices in memory by their numbers, without a lock. The list of
// its pages grows with the disk, at 8 bytes for 64 slices; pages are there where slices
// are. Image.tab.mu guards changes.
type directory struct {
	top   atomic.Pointer[[]atomic.Pointer[directoryPage]]
	pages int64 // that are there
}

// Pages are small enough for the allocator to add nothing to them, and for few slices
// that lie far apart.
const (
	directoryPageBits  = 6
	directoryPageBytes = 8 << directoryPageBits
)

type directoryPage [1 << directoryPageBits]atomic.Pointer[slice]

func (p *directoryPage) empty() bool {
	for i := range p {
		if p[i].Load() != nil {
			return false
		}
	}
	return true
}

// bytes is how much memory it takes, without the slices.
func (d *directory) bytes() int64 {
	n := d.pages * directoryPageBytes
	if top := d.top.Load(); top != nil {
		n += int64(len(*top)) * 8
	}
	return n
}

// get returns slice n, nil if it is not there. n may be any number.
func (d *directory) get(n int64) *slice {
	top := d.top.Load()
	if top == nil || uint64(n>>directoryPageBits) >= uint64(len(*top)) {
		return nil
	}
	page := (*top)[n>>directoryPageBits].Load()
	if page == nil {
		return nil
	}
	return page[n&(1<<directoryPageBits-1)].Load()
}

// set makes s slice n.
func (d *directory) set(n int64, s *slice) {
	i := int(n >> directoryPageBits)
	top := d.top.Load()
	if top == nil || i >= len(*top) {
		top = d.grow(top, i)
	}
	page := (*top)[i].Load()
	if page == nil {
		page = new(directoryPage)
		(*top)[i].Store(page)
		d.pages++
	}
	page[n&(1<<directoryPageBits-1)].Store(s)
}

// remove takes slice n out, and the page that has no other. Who looks into that page
// still finds nothing.
func (d *directory) remove(n int64) {
	place := &(*d.top.Load())[n>>directoryPageBits]
	page := place.Load()
	page[n&(1<<directoryPageBits-1)].Store(nil)
	if page.empty() {
		place.Store(nil)
		d.pages--
	}
}

// grow makes the list of pages longer than i.
func (d *directory) grow(top *[]atomic.Pointer[directoryPage], i int) *[]atomic.Pointer[directoryPage] {
	grown := make([]atomic.Pointer[directoryPage], i+1+i/4)
	if top != nil {
		for k := range *top {
			grown[k].Store((*top)[k].Load())
		}
	}
	d.top.Store(&grown)
	return &grown
}
