package qcow2

import (
	"sync/atomic"

	"tidemark/internal/lockorder"
	"tidemark/qcow2/format"
)

// A slice is a part of an L2 table in memory: maxSliceBytes of it, or all of it
// where a cluster is smaller. Entries are decoded and were validated when the
// slice was loaded.
//
// Without extended L2, entries are read with no lock; with it, an entry is two
// words that belong together, and reading takes mu too. Changing takes mu.
type slice struct {
	n    int64 // number: the first guest cluster >> Image.sliceBits
	pair bool  // extended L2: two words an entry
	// words are the entries. A bad one is badEntry; its own words are in bad.
	words []atomic.Uint64
	// used is the mark of the replacement clock.
	used atomic.Bool
	// shared: the table belongs to a snapshot too and must be copied before it
	// is changed.
	shared atomic.Bool
	// epoch is the number of commits that had begun when an entry was changed
	// last, or the slice loaded: a later commit makes it durable.
	epoch atomic.Uint64

	mu lockorder.Mutex // guards what follows
	// off is where the slice is in the file, bytes.
	off int64
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

	pins int // who needs it in the cache; Image.tab.mu guards it
}

// badEntry stands in memory for an L2 entry that must not be used. It is itself
// invalid.
const badEntry format.L2Entry = 3 << 62

func newSlice(n int64, entries int, pair bool, off int64) *slice {
	words := entries
	if pair {
		words *= 2
	}
	s := &slice{n: n, pair: pair, words: make([]atomic.Uint64, words), off: off}
	s.mu.SetRank(rankSlice)
	return s
}

// entries is how many entries there are.
func (s *slice) entries() int {
	if s.pair {
		return len(s.words) / 2
	}
	return len(s.words)
}

// load returns entry i.
func (s *slice) load(i int) format.L2Pair {
	if !s.pair {
		return format.L2Pair{Entry: format.L2Entry(s.words[i].Load())}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loadLocked(i)
}

// loadLocked is load for who holds mu.
func (s *slice) loadLocked(i int) format.L2Pair {
	if !s.pair {
		return format.L2Pair{Entry: format.L2Entry(s.words[i].Load())}
	}
	return format.L2Pair{Entry: format.L2Entry(s.words[2*i].Load()), Sub: format.Subclusters(s.words[2*i+1].Load())}
}

// storeLocked changes entry i. Who calls it marks the slice dirty.
func (s *slice) storeLocked(i int, p format.L2Pair) {
	if !s.pair {
		s.words[i].Store(uint64(p.Entry))
		return
	}
	s.words[2*i].Store(uint64(p.Entry))
	s.words[2*i+1].Store(uint64(p.Sub))
}

// encodeLocked is the slice as it is to be in the file.
func (s *slice) encodeLocked(g format.Geometry) []byte {
	b := make([]byte, len(s.words)*8)
	for i := range s.entries() {
		p, bad := s.bad[i]
		if !bad {
			p = s.loadLocked(i)
		}
		g.EncodeL2(b[i*g.L2EntryBytes():], []format.L2Pair{p})
	}
	return b
}

// A directory finds the slices in memory by their numbers, without a lock. It
// grows with the disk; Image.tab.mu guards changes.
type directory struct {
	top atomic.Pointer[[]atomic.Pointer[directoryPage]]
}

const directoryPageBits = 9

type directoryPage [1 << directoryPageBits]atomic.Pointer[slice]

func (d *directory) get(n int64) *slice {
	top := d.top.Load()
	if top == nil || n>>directoryPageBits >= int64(len(*top)) {
		return nil
	}
	page := (*top)[n>>directoryPageBits].Load()
	if page == nil {
		return nil
	}
	return page[n&(1<<directoryPageBits-1)].Load()
}

func (d *directory) set(n int64, s *slice) {
	i := int(n >> directoryPageBits)
	top := d.top.Load()
	if top == nil || i >= len(*top) {
		grown := make([]atomic.Pointer[directoryPage], i+1+i/4)
		if top != nil {
			for k := range *top {
				grown[k].Store((*top)[k].Load())
			}
		}
		top = &grown
		d.top.Store(top)
	}
	page := (*top)[i].Load()
	if page == nil {
		page = new(directoryPage)
		(*top)[i].Store(page)
	}
	page[n&(1<<directoryPageBits-1)].Store(s)
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
