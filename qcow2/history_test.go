package qcow2_test

import (
	"bytes"
	"fmt"
	"slices"

	"tidemark/internal/simdisk"
)

// A history knows what each sector of a disk may hold after something went wrong,
// for one client that does one request at a time: what the last request left there
// that is certain, or one that came later.
type history struct {
	initial []byte // the content in the beginning
	sectors [][]event
}

// An event is what a request left in a sector, if it did anything.
type event struct {
	version uint64
	sure    bool // the request has succeeded
}

// Versions that are no stamps.
const (
	initialVersion = 1 << 62
	zeroVersion    = 0
)

func newHistory(initial []byte) *history {
	h := &history{initial: initial}
	h.extend(int64(len(initial)))
	for i := range h.sectors {
		h.sectors[i] = []event{{initialVersion, true}}
	}
	return h
}

// extend is for a disk that has become larger: it reads zero there.
func (h *history) extend(size int64) {
	for int64(len(h.sectors)) < size/sector {
		h.sectors = append(h.sectors, []event{{zeroVersion, true}})
	}
}

func (h *history) clone() *history {
	return &history{h.initial, slices.Clone(h.sectors)} // events are only ever appended or replaced
}

// add notes that a request has ended that left version in n sectors from first.
// Whether it succeeded or not, its bytes are in the host's cache, or are not, by now.
func (h *history) add(first, n int64, version uint64, sure bool) {
	for s := first; s < first+n; s++ {
		h.sectors[s] = append(slices.Clip(h.sectors[s]), event{version, sure})
	}
}

// certain makes what has succeeded in n sectors from first the least that is there:
// it is durable; or is looked at after the death of the process.
func (h *history) certain(first, n int64) {
	for s := first; s < first+n; s++ {
		e := h.sectors[s]
		for i := len(e) - 1; i > 0; i-- {
			if e[i].sure {
				h.sectors[s] = e[i:]
				break
			}
		}
	}
}

func (h *history) allCertain() { h.certain(0, int64(len(h.sectors))) }

// judge returns what is wrong with the content p. mixed: a failed request may have
// left a part of a sector.
func (h *history) judge(p []byte, mixed bool) error {
	want := make([]byte, sector)
	for s, events := range h.sectors {
		if (s+1)*sector > len(p) {
			return nil // a disk that has not become larger after all
		}
		got := p[s*sector : (s+1)*sector]
		if simdisk.HasForeign(got) {
			return fmt.Errorf("sector %d: another tenant's bytes", s)
		}
		if mixed && slices.ContainsFunc(events, func(e event) bool { return !e.sure }) {
			continue
		}
		if !slices.ContainsFunc(events, func(e event) bool { return bytes.Equal(h.content(want, s, e.version), got) }) {
			return fmt.Errorf("sector %d: %x...; allowed are %v", s, got[:16], events)
		}
	}
	return nil
}

// content is what version of sector s looks like, in p where it has to be made.
func (h *history) content(p []byte, s int, version uint64) []byte {
	switch version {
	case initialVersion:
		return h.initial[s*sector : (s+1)*sector]
	case zeroVersion:
		clear(p)
	default:
		stamp(p, version)
	}
	return p
}

// is reports whether p is version of sector s.
func (h *history) is(p []byte, s int, version uint64) bool {
	return bytes.Equal(h.content(make([]byte, sector), s, version), p)
}
