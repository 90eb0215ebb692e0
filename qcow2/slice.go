package qcow2

import (
	"sync/atomic"
	"unsafe"

	"tidemark/internal/lockorder"
	"tidemark/qcow2/format"
)

// A slice is a part of an L2 table in memory: maxSliceBytes of it, or all of it
// where a cluster is smaller. Entries were validated when the slice was loaded.
type slice struct {
	// What a lookup reads comes first, and so lies in one cache line.
	entryWords
	// used is the mark of the replacement clock.
	used atomic.Bool
	// shared: the table belongs to a snapshot too and must be copied before it
	// is changed.
	shared atomic.Bool
	// epoch is the number of commits that had begun when an entry was changed
	// last, or the slice loaded: a later commit makes it durable.
	epoch atomic.Uint64

	n int64 // number: the first guest cluster >> Image.sliceBits

	mu lockorder.Mutex // guards what follows, and changes of the entries
	// off is where the slice is in the file, bytes.
	off int64
	// bad has what the file says where badEntry stands in memory.
	bad map[int]format.L2Pair
	// dirty: changed since it was last copied for writing. writing: copied, and
	// not written yet. Only a slice that is neither may leave the cache: reading
	// it again would find the past.
	dirty, writing bool
	// whole: its table is a copy that nothing on disk names yet; it is written
	// before the L1 table (C2).
	whole bool
	// dead: it has left the cache. Who finds that looks it up again.
	dead bool

	// Image.tab.mu guards these: who needs it in the cache, and what it counts for there.
	pins    int
	counted int64
}

// badEntry stands in memory for an L2 entry that must not be used. It is itself
// invalid.
const badEntry format.L2Entry = 3 << 62

// sliceHeadBytes is about what a slice takes besides its entries.
const sliceHeadBytes = 256

// A narrowSlice is a slice with the most narrow words that there can be right behind it:
// the place of an entry is known before the slice is in the processor's caches.
type narrowSlice struct {
	slice
	words narrowWords
}

// newSlice makes slice n, which is at off in the file. It has no entries yet, but those of
// a run.
func (im *Image) newSlice(n, off int64, f form) *slice {
	var s *slice
	entries := 1 << im.sliceBits()
	f.wide = f.wide || im.geo.ExtendedL2
	switch {
	case f.wide || f.n > 0:
		s = &slice{}
		s.use(nil, f, entries, im.geo)
	case entries < len(narrowWords{}):
		s = &slice{}
		s.use(make([]atomic.Uint32, entries), f, entries, im.geo)
	default:
		with := &narrowSlice{}
		s = &with.slice
		s.use(with.words[:], f, entries, im.geo)
	}
	s.n, s.off = n, off
	s.mu.SetRank(rankSlice)
	return s
}

// prefetch has the processor load what a lookup of entry i reads into its caches, and
// does not wait for that. For words that are elsewhere it is of no use and does no harm.
func (s *slice) prefetch(i int) {
	at := uintptr(unsafe.Pointer(s))
	prefetch(at, at+unsafe.Offsetof(narrowSlice{}.words)+uintptr(i)*4)
}

// bytes is about how much memory s takes.
func (s *slice) bytes() int64 { return sliceHeadBytes + s.entryWords.bytes() }

// load returns entry i.
func (s *slice) load(i int) format.L2Pair {
	if s.wide.Load() == nil {
		return format.L2Pair{Entry: s.narrowEntry(i)}
	}
	return s.loadWide(i)
}

func (s *slice) loadWide(i int) format.L2Pair {
	if s.pair {
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	return s.loadLocked(i)
}

// encodeLocked is the slice as it is to be in the file.
func (s *slice) encodeLocked(g format.Geometry) []byte {
	b := make([]byte, s.entries()*g.L2EntryBytes())
	for i := range s.entries() {
		p, bad := s.bad[i]
		if !bad {
			p = s.loadLocked(i)
		}
		g.EncodeL2(b[i*g.L2EntryBytes():], []format.L2Pair{p})
	}
	return b
}

// A dirtyList is the slices that are to be written.
type dirtyList struct {
	mu     lockorder.Mutex // guards slices and, for who changes it, commits
	slices []*slice
	// commits counts the commits that have begun.
	commits atomic.Uint64
	count   atomic.Int64 // of slices, and of those being written
}

// markDirtyLocked notes that s was changed. Its caller holds s.mu.
func (im *Image) markDirtyLocked(s *slice) {
	d := &im.dirty
	if s.dirty {
		s.epoch.Store(d.commits.Load())
		return
	}
	s.dirty = true
	d.mu.Lock()
	d.slices = append(d.slices, s)
	d.count.Add(1)
	s.epoch.Store(d.commits.Load())
	d.mu.Unlock()
}
