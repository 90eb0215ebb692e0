package qcow2

// addSliceLocked puts s into the cache; when that is full, slices leave it that
// were not used since the clock's hand passed them. If all are needed, the cache
// grows.
func (im *Image) addSliceLocked(s *slice) {
	t := &im.tab
	for tries := 2 * len(t.cache); t.fullLocked(s) && tries > 0; tries-- {
		t.hand = (t.hand + 1) % len(t.cache)
		old := t.cache[t.hand]
		t.countLocked(old) // it may have become wide
		if old.used.Swap(false) || old.pins > 0 || !im.evict(old) {
			continue
		}
		t.bytes -= old.counted
		last := len(t.cache) - 1
		t.cache[t.hand], t.cache[last] = t.cache[last], nil
		t.cache = t.cache[:last]
		if last > 0 {
			t.hand %= last
		}
	}
	s.epoch.Store(im.dirty.commits.Load())
	t.cache = append(t.cache, s)
	t.dir.set(s.n, s)
	t.countLocked(s)
}

// minSlices are in the cache whatever they take.
const minSlices = 16

// fullLocked reports whether one has to leave the cache for s.
func (t *tables) fullLocked(s *slice) bool {
	return len(t.cache) >= minSlices && t.bytes+t.dir.bytes()+s.bytes() > t.max
}

// countLocked counts what s takes now instead of what it took when that was done last.
func (t *tables) countLocked(s *slice) {
	now := s.bytes()
	t.bytes += now - s.counted
	s.counted = now
}

func (im *Image) boundCache() {
	im.tab.mu.Lock()
	defer im.tab.mu.Unlock()
	im.boundCacheLocked()
}

// otherShare: of the memory for metadata one part in so many is for what is in use for
// a while: counts that are dirty, lists of clusters, buffers.
const otherShare = 8

// boundCacheLocked sets what slices and directory may take: what the other metadata
// leaves of Options.CacheBytes, and half of it at least.
func (im *Image) boundCacheLocked() {
	slices := int64(len(im.tab.l1)) << (im.geo.ClusterBits - min(im.geo.ClusterBits, 12))
	im.refs.mu.Lock()
	words := len(im.tab.l1) + len(im.refs.metadata) + len(im.refs.table)
	im.refs.mu.Unlock()
	rest := im.opts.CacheBytes/countShare + int64(words)*8 + slices/8 // one bit each in seen
	rest += im.opts.CacheBytes / otherShare
	im.tab.max = max(im.opts.CacheBytes-rest, im.opts.CacheBytes/2)
}

// evict takes s out of the directory unless it is needed.
func (im *Image) evict(s *slice) bool {
	if !s.mu.TryLock() {
		return false
	}
	defer s.mu.Unlock()
	// One with bad entries stays: loaded again, they might look good.
	if s.dirty || s.writing || s.bad != nil {
		return false
	}
	s.dead = true
	im.tab.dir.remove(s.n)
	return true
}
