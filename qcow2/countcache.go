package qcow2

import "slices"

// A countSlice is a part of a refcount block in memory: maxSliceBytes of it, or
// all of it where a cluster is smaller.
type countSlice struct {
	data []byte
	off  int64 // in the file, bytes
	// dirty: changed since it was last copied for writing. writing: copied, and
	// not written yet. Only a slice that is neither may leave the cache: reading
	// it again would find the past.
	dirty, writing bool
}

// A countCache holds slices by number. Its owner's lock guards it.
type countCache struct {
	m     map[int64]*countSlice
	dirty map[*countSlice]struct{}
	max   int64 // bytes
}

func newCountCache(maxBytes int64) *countCache {
	return &countCache{m: map[int64]*countSlice{}, dirty: map[*countSlice]struct{}{}, max: maxBytes}
}

func (c *countCache) get(n int64) *countSlice { return c.m[n] }

// put adds a slice and, when the cache is full, drops some that are clean.
func (c *countCache) put(n int64, s *countSlice) {
	c.shrink(int64(len(s.data)))
	c.m[n] = s
}

// shrink drops slices that are clean until there is room for so many bytes. Which ones
// is left to the map's order: random replacement.
func (c *countCache) shrink(room int64) {
	for k, old := range c.m {
		if int64(len(c.m))*int64(len(old.data))+room <= c.max {
			break
		}
		if !old.dirty && !old.writing {
			delete(c.m, k)
		}
	}
}

// minDirtyCounts may be dirty whatever they take.
const minDirtyCounts = 64

// over reports whether more is dirty than there should be in the cache.
func (c *countCache) over() bool {
	for s := range c.dirty {
		return len(c.dirty) > minDirtyCounts && int64(len(c.dirty))*int64(len(s.data)) > c.max
	}
	return false
}

func (c *countCache) markDirty(s *countSlice) {
	s.dirty = true
	c.dirty[s] = struct{}{}
}

// stage copies the dirty slices and makes them clean but not evictable. finish is
// told how writing the copies ended: they are evictable then, or dirty again, so
// that nobody takes them for written.
func (c *countCache) stage() (writes []staged, finish func(error)) {
	taken := make([]*countSlice, 0, len(c.dirty))
	for s := range c.dirty {
		s.dirty, s.writing = false, true
		taken = append(taken, s)
		writes = append(writes, staged{s.off, slices.Clone(s.data)})
	}
	clear(c.dirty)
	return writes, func(err error) {
		for _, s := range taken {
			s.writing = false
			if err != nil {
				c.markDirty(s)
			}
		}
		c.shrink(0)
	}
}
