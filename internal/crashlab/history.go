package crashlab

import (
	"bytes"
	"hash/maphash"
	"slices"

	"tidemark/internal/simdisk"
)

// An act is a request and what became of it. Moments are positions in the log: an
// act was submitted at n events if its position is below n.
type act struct {
	Request
	version   version // of what it writes
	submitted int
	returned  int // -1: it has not
	failed    bool
	// seen is what a discard left, read before it was acknowledged: the version
	// of every sector. nil if others may have written there meanwhile.
	seen []version
}

// A history is what the clients did and were told.
type history struct {
	acts    []*act
	size    int64 // of the disk at the start, sectors
	start   []byte
	evicted []eviction
}

// An eviction is a moment at which the host's cache was dropped after a failed
// sync, and what the disk held then, durably. No flush behind it covers what was
// before.
type eviction struct {
	at   int
	left simdisk.State
}

// lost reports whether what an act has done before from may have been dropped
// from the host's cache before to.
func (h *history) lost(a *act, to int) bool {
	for _, e := range h.evicted {
		if a.returned < e.at && e.at < to {
			return true
		}
	}
	return false
}

// durableBy returns, for every act, whether it is durable at n events. With died
// the process died at n and the host lives: whatever was acknowledged is.
func (h *history) durableBy(n int, died bool) []bool {
	durable := make([]bool, len(h.acts))
	for i, a := range h.acts {
		if a.returned < 0 || a.returned >= n || a.failed {
			continue
		}
		if died && !h.lost(a, n) || a.Kind == WriteFUA || a.Kind == Resize {
			durable[i] = true
		}
		if a.Kind != Flush && a.Kind != Reopen && a.Kind != Amend {
			continue
		}
		for j, b := range h.acts {
			if b.returned >= 0 && !b.failed && b.returned < a.submitted && !h.lost(b, a.submitted) {
				durable[j] = true
			}
		}
	}
	return durable
}

// An allowance is what a disk may hold.
type allowance struct {
	sizes  []int64 // sectors, sorted
	may    [][]version
	before []byte // what original stands for
	// exact, if not nil, is the only content that is allowed.
	exact []byte
}

// exactly allows one content.
func exactly(content []byte) *allowance {
	return &allowance{sizes: []int64{int64(len(content)) / sector}, exact: content}
}

// allow returns what the disk may hold after a crash at n events.
func (h *history) allow(n int, died bool) *allowance {
	durable := h.durableBy(n, died)
	al := &allowance{sizes: []int64{h.size}, before: h.start}
	for i, a := range h.acts {
		if a.Kind != Resize || a.submitted >= n {
			continue
		}
		if durable[i] {
			al.sizes = al.sizes[:0]
		}
		al.sizes = append(al.sizes, a.N)
	}
	slices.Sort(al.sizes)
	al.may = make([][]version, al.sizes[len(al.sizes)-1])
	for s := range al.may {
		al.may[s] = h.allowSector(int64(s), n, durable)
	}
	return al
}

// allowSector returns the versions that sector s may have.
func (h *history) allowSector(s int64, n int, durable []bool) []version {
	may := []version{h.startVersion(s)}
	for i, a := range h.acts {
		if a.submitted >= n || !a.touches(s) {
			continue
		}
		v, certain := a.leaves(s)
		if a.Kind == Discard && durable[i] && certain && slices.Contains(may, v) {
			// It left what was there. Of two writes that overlapped, that need not be
			// the one which the simulated disk has on top: the recording does not say.
			continue
		}
		if durable[i] && certain {
			may = may[:0]
			for _, b := range h.acts[:i] { // what was not over when a began may be on top
				if b.touches(s) && (b.returned < 0 || b.returned > a.submitted) {
					w, _ := b.leaves(s)
					may = append(may, w)
				}
			}
		} else if a.Kind == Discard {
			may = append(may, 0)
		}
		may = append(may, v)
	}
	return may
}

func (h *history) startVersion(s int64) version {
	if b := s * sector; b >= int64(len(h.start)) || bytes.Equal(h.start[b:b+sector], zeroSector[:]) {
		return 0
	}
	return original
}

func (a *act) touches(s int64) bool {
	return a.Kind <= Discard && s >= a.First && s < a.First+a.N
}

// leaves is the version that sector s has after a, and whether it certainly has
// it: after a discard only if it was read.
func (a *act) leaves(s int64) (v version, certain bool) {
	switch {
	case a.Kind != Discard:
		return a.version, true
	case a.seen != nil:
		return a.seen[s-a.First], true
	}
	return 0, false
}

// sum is a hash of what is allowed, the same in one process only.
func (al *allowance) sum() uint64 {
	var h maphash.Hash
	h.SetSeed(allowanceSeed)
	_, _ = h.Write(al.before) // it never fails
	for _, n := range al.sizes {
		maphash.WriteComparable(&h, n)
	}
	for _, may := range al.may {
		maphash.WriteComparable(&h, len(may))
		for _, v := range may {
			maphash.WriteComparable(&h, v)
		}
	}
	return h.Sum64()
}

var allowanceSeed = maphash.MakeSeed()

// judge returns the first thing that is wrong with the content of a disk.
func (al *allowance) judge(content []byte) error {
	if _, ok := slices.BinarySearch(al.sizes, int64(len(content))/sector); !ok {
		return faultf(2, "the disk has %d sectors; expected one of %d", len(content)/sector, al.sizes)
	}
	if al.exact != nil {
		return judgeExact(content, al.exact)
	}
	for i := 0; i < len(content); i += sector {
		s := int64(i / sector)
		v, err := versionOf(content[i:i+sector], s, al.before)
		if err != nil {
			return err
		}
		if !slices.Contains(al.may[s], v) {
			return faultf(2, "sector %d: %v; expected one of %v", s, v, al.may[s])
		}
	}
	return nil
}

func judgeExact(content, want []byte) error {
	if bytes.Equal(content, want) {
		return nil
	}
	for i := 0; i < len(content); i += sector {
		if b, w := content[i:i+sector], want[i:i+sector]; !bytes.Equal(b, w) {
			return faultf(2, "sector %d: %x ... %x; expected %x ... %x", i/sector, b[:16], b[sector-8:], w[:16], w[sector-8:])
		}
	}
	return nil
}
