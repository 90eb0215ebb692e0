package qcow2

import (
	"sync/atomic"

	"tidemark/qcow2/format"
)

// A wordRun is the narrow words of a slice whose entries name host clusters that follow
// each other, with the same marks, up to the last that names any: what preallocation makes,
// and a conversion. The word of entry i is first+i, so that an entry is found as soon as
// its slice is, and the slices of half a TiB fit into the caches of a processor, which
// their words do not.
//
// A run never changes. When an entry is to change, all are spelled out: words are
// filled from the run, published by one store of a pointer, and changed from then on, for
// as long as the slice is in memory. So who found no words, and counts the entry out, gets
// what it was at that moment.
//
// What its words will take is counted from the beginning: a run is spelled out under the
// slice's lock, where no other slice can make room for it. Only slices of the most entries
// are runs.
type wordRun struct {
	first   uint32                      // of entry 0; 0: not a run
	n       uint16                      // entries behind these are 0
	spelled atomic.Pointer[narrowWords] // nil: nothing has changed
}

// narrowWords are as many narrow words as the largest slice has.
type narrowWords [maxSliceBytes / 8]atomic.Uint32

// leastRun is how many entries a run has at least: a shorter one is of a slice that is
// filled only now, and would soon be spelled out, away from the slice's head.
const leastRun = 32

// runOf is the run that these entries are, with first 0 if they are none, and how many of
// them it has.
func runOf(pairs []format.L2Pair, g format.Geometry) (first uint32, n int) {
	if g.ExtendedL2 || len(pairs) < len(narrowWords{}) {
		return 0, 0
	}
	bits := uint8(g.ClusterBits)
	first, _ = narrowed(pairs[0].Entry, bits)
	if cluster := first & narrowMask; cluster == 0 || cluster > narrowMask-uint32(len(pairs)) {
		return 0, 0
	}
	for n < len(pairs) && pairs[n].Entry == widened(first+uint32(n), bits) {
		n++
	}
	for _, p := range pairs[n:] {
		if p.Entry != 0 {
			return 0, 0
		}
	}
	if n < leastRun {
		return 0, 0
	}
	return first, n
}

// load returns the word of entry i.
func (r *wordRun) load(i int) uint32 {
	if words := r.spelled.Load(); words != nil {
		return words[i].Load()
	}
	return r.word(i)
}

// word is the word of entry i in the run.
func (r *wordRun) word(i int) uint32 {
	if i >= int(r.n) {
		return 0
	}
	return r.first + uint32(i)
}

// storeLocked changes the word of entry i. Its caller holds the slice's lock.
func (r *wordRun) storeLocked(i int, word uint32) {
	words := r.spelled.Load()
	if words == nil {
		if r.word(i) == word {
			return
		}
		words = r.spellLocked()
	}
	words[i].Store(word)
}

// spellLocked makes the words of a run.
func (r *wordRun) spellLocked() *narrowWords {
	words := new(narrowWords)
	for i := range words {
		words[i].Store(r.word(i))
	}
	r.spelled.Store(words)
	return words
}
