package qcow2

import (
	"sync/atomic"

	"tidemark/qcow2/format"
)

// entryWords are the entries of a slice in memory: narrow, or wide.
//
// Narrow, an entry takes 4 bytes, half of what it has in the file, so that the
// cache holds twice as much of the disk and the processor's caches too:
//
//	31    COPIED
//	30    the cluster reads zero
//	29-0  host cluster, 0: none
//
// An entry that does not survive this (compressed, of a host cluster beyond, bad)
// makes its slice wide, for as long as it is in memory: 8 bytes for each entry, as
// in the file. With extended L2, slices are always wide, and an entry is two words
// that belong together.
//
// Entries are read with no lock, those of two words under the slice's; all are changed
// under it. A slice becomes wide beside readers: the wide words are filled from the
// narrow ones, published by one store of a pointer, and changed from then on; the
// narrow ones never change again. So who found no wide words and reads a narrow one
// gets what the entry was at a moment after he began to look: its value when he reads
// it, or, if the slice became wide meanwhile, its value at that moment.
type entryWords struct {
	narrow      []atomic.Uint32 // nil if the slice was made wide
	wide        atomic.Pointer[wideWords]
	clusterBits uint8
	pair        bool   // extended L2
	n           uint16 // entries
}

// wideWords are as many words as the largest slice has.
type wideWords [maxSliceBytes / 8]atomic.Uint64

const (
	narrowCopied = 1 << 31
	narrowZero   = 1 << 30
	narrowMask   = narrowZero - 1 // host clusters
)

// use makes n empty entries of narrow words, or of wide ones if there are none.
func (w *entryWords) use(narrow []atomic.Uint32, n int, g format.Geometry) {
	w.narrow, w.n, w.clusterBits, w.pair = narrow, uint16(n), uint8(g.ClusterBits), g.ExtendedL2
	if narrow == nil {
		w.wide.Store(new(wideWords))
	}
}

// narrowed is e as a narrow word, and whether it fits into one.
func narrowed(e format.L2Entry, clusterBits uint8) (uint32, bool) {
	w := uint32(e.Offset()>>clusterBits) & narrowMask
	if e.Copied() {
		w |= narrowCopied
	}
	if e&format.ZeroEntry != 0 {
		w |= narrowZero
	}
	return w, widened(w, clusterBits) == e
}

// widened is the entry that a narrow word stands for.
func widened(w uint32, clusterBits uint8) format.L2Entry {
	e := format.L2Entry(w&narrowMask) << (clusterBits & 63)
	e |= format.L2Entry(w&narrowCopied) << 32
	return e | format.L2Entry(w&narrowZero)/narrowZero*format.ZeroEntry
}

// allNarrow reports whether all entries fit into narrow words.
func allNarrow(pairs []format.L2Pair, g format.Geometry) bool {
	for _, p := range pairs {
		if _, fits := narrowed(p.Entry, uint8(g.ClusterBits)); !fits {
			return false
		}
	}
	return !g.ExtendedL2
}

// entries is how many entries there are.
func (w *entryWords) entries() int { return int(w.n) }

// bytes is how much memory the words take.
func (w *entryWords) bytes() int64 {
	n := int64(len(w.narrow)) * 4
	if w.wide.Load() != nil {
		n += maxSliceBytes
	}
	return n
}

// narrowEntry is entry i of words that were narrow a moment ago.
func (w *entryWords) narrowEntry(i int) format.L2Entry {
	return widened(w.narrow[i].Load(), w.clusterBits)
}

// loadLocked returns entry i. Its caller holds the slice's lock, or reads an entry of
// one word.
func (w *entryWords) loadLocked(i int) format.L2Pair {
	words := w.wide.Load()
	switch {
	case words == nil:
		return format.L2Pair{Entry: w.narrowEntry(i)}
	case w.pair:
		return format.L2Pair{Entry: format.L2Entry(words[2*i].Load()), Sub: format.Subclusters(words[2*i+1].Load())}
	}
	return format.L2Pair{Entry: format.L2Entry(words[i].Load())}
}

// storeLocked changes entry i. Its caller holds the slice's lock, and marks the slice
// dirty.
func (w *entryWords) storeLocked(i int, p format.L2Pair) {
	words := w.wide.Load()
	if words == nil {
		if word, fits := narrowed(p.Entry, w.clusterBits); fits {
			w.narrow[i].Store(word)
			return
		}
		words = w.widenLocked()
	}
	if w.pair {
		words[2*i].Store(uint64(p.Entry))
		words[2*i+1].Store(uint64(p.Sub))
		return
	}
	words[i].Store(uint64(p.Entry))
}

// widenLocked makes the words wide.
func (w *entryWords) widenLocked() *wideWords {
	words := new(wideWords)
	for i := range w.narrow {
		words[i].Store(uint64(w.narrowEntry(i)))
	}
	w.wide.Store(words)
	return words
}
