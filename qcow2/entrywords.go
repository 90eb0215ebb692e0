package qcow2

import (
	"sync/atomic"

	"tidemark/qcow2/format"
)

// entryWords are the entries of a slice in memory: narrow, wide, or a [wordRun] of what
// would be narrow.
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
// others never change again. So who found no wide words and reads a narrow one
// gets what the entry was at a moment after he began to look: its value when he reads
// it, or, if the slice became wide meanwhile, its value at that moment.
type entryWords struct {
	narrow      []atomic.Uint32 // nil if the slice was made wide, or a run
	wide        atomic.Pointer[wideWords]
	run         wordRun
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

// A form is what the entries of a slice are in the beginning: narrow, if nothing else is
// said.
type form struct {
	wide  bool
	first uint32 // of a run, 0: none
	n     int    // entries of the run
}

// formOf is the form for these entries.
func formOf(pairs []format.L2Pair, g format.Geometry) form {
	if first, n := runOf(pairs, g); n > 0 {
		return form{first: first, n: n}
	}
	for _, p := range pairs {
		if _, fits := narrowed(p.Entry, uint8(g.ClusterBits)); !fits {
			return form{wide: true}
		}
	}
	return form{wide: g.ExtendedL2}
}

// use makes n entries, which are empty but for those of a run. narrow are their words, nil
// in another form.
func (w *entryWords) use(narrow []atomic.Uint32, f form, n int, g format.Geometry) {
	w.narrow, w.run.first, w.run.n = narrow, f.first, uint16(f.n)
	w.n, w.clusterBits, w.pair = uint16(n), uint8(g.ClusterBits), g.ExtendedL2
	if f.wide {
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

// entries is how many entries there are.
func (w *entryWords) entries() int { return int(w.n) }

// bytes is how much memory the words take, those of a run as if they were spelled out.
func (w *entryWords) bytes() int64 {
	n := int64(len(w.narrow)) * 4
	if w.run.first != 0 {
		n = maxSliceBytes / 2
	}
	if w.wide.Load() != nil {
		n += maxSliceBytes
	}
	return n
}

// narrowEntry is entry i of words that were narrow, or a run, a moment ago.
func (w *entryWords) narrowEntry(i int) format.L2Entry {
	if w.narrow == nil {
		return widened(w.run.load(i), w.clusterBits)
	}
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
		switch word, fits := narrowed(p.Entry, w.clusterBits); {
		case fits && w.narrow != nil:
			w.narrow[i].Store(word)
			return
		case fits:
			w.run.storeLocked(i, word)
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
	for i := range w.entries() {
		words[i].Store(uint64(w.narrowEntry(i)))
	}
	w.wide.Store(words)
	return words
}
