package qcow2_test

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// powerCuts calls f with what power cuts at this moment leave of d. Of up to 8
// pending operations these are all subsets; of more, each prefix, each one alone and
// all but each one. Then each is torn: the first sector that it touches, and all
// but that.
func powerCuts(d *simdisk.Disk, f func(what string, left *simdisk.Disk)) {
	var ids []int
	for _, op := range d.Pending() {
		ids = append(ids, op.ID)
	}
	cut := func(what string, keep func(n int) bool) {
		f(what, d.Crash(simdisk.KeepOps(func(op *simdisk.Op) bool {
			n := slices.Index(ids, op.ID)
			return n >= 0 && keep(n)
		})))
	}
	n := len(ids)
	if n <= 8 {
		for set := range 1 << n {
			cut(fmt.Sprintf("operations %b of %d", set, n), func(i int) bool { return set>>i&1 == 1 })
		}
	} else {
		for k := range n + 1 {
			cut(fmt.Sprintf("the first %d of %d operations", k, n), func(i int) bool { return i < k })
			cut(fmt.Sprintf("operation %d of %d", k, n), func(i int) bool { return i == k })
			cut(fmt.Sprintf("all but operation %d of %d", k, n), func(i int) bool { return i != k })
		}
	}
	for torn, id := range ids {
		for _, head := range []bool{true, false} {
			f(fmt.Sprintf("operation %d of %d torn", torn, n), d.Crash(func(op *simdisk.Op, sector int64) bool {
				first, _ := op.Sectors()
				return op.ID == id && (sector == first) == head
			}))
		}
	}
}

// Cuts collects what power cuts may leave while a client works, and judges it when
// that is over.
type cuts struct {
	mu     sync.Mutex
	disk   *simdisk.Disk
	legal  *versions
	states []cutState
	// seen are the states since the last flush, by hash: one that was taken before
	// was legal with less.
	seen map[uint64]bool
}

type cutState struct {
	what  string
	left  *simdisk.Disk
	legal *versions
}

// cutsBefore cuts the power before every operation of f of those kinds. content is
// what the disk holds durably.
func cutsBefore(f *faultfile.File, kinds faultfile.Kind, d *simdisk.Disk, content []byte) *cuts {
	c := &cuts{disk: d, legal: versionsOf(content), seen: map[uint64]bool{}}
	f.Hook(func(op faultfile.Op) {
		if op.Kind&kinds != 0 {
			c.cut(fmt.Sprintf("before %v", op))
		}
	}, nil)
	return c
}

// cut cuts the power now.
func (c *cuts) cut(when string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	powerCuts(c.disk, func(what string, left *simdisk.Disk) {
		hash := left.State().Hash()
		if c.seen[hash] {
			return
		}
		c.seen[hash] = true
		c.states = append(c.states, cutState{when + ", " + what, left, c.legal.clone()})
	})
}

// write says that p is about to be written, flush that everything was flushed.
func (c *cuts) write(p []byte, off int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.legal.write(p, off)
}

func (c *cuts) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.legal.flush()
	clear(c.seen)
}

// judge wants every state to be uncorrupted and to hold what is legal. What the engine
// does by itself meanwhile is not judged any more.
func (c *cuts) judge(t *testing.T, m *made) {
	t.Helper()
	c.mu.Lock()
	states := slices.Clone(c.states)
	c.mu.Unlock()
	for _, s := range states {
		res, err := qcow2.Check(t.Context(), s.left, qcow2.CheckOptions{})
		require.NoError(t, err)
		require.Zero(t, res.Corruptions+res.CheckErrors, "%s: %q", s.what, res.Problems)
		s.legal.judge(t, m.open(t, s.left, qcow2.Options{ReadOnly: true}), s.what)
	}
	t.Logf("%d states judged", len(states))
}

// Versions are what the bytes of a disk may be after a power cut: per sector the last
// flushed version or a later one.
type versions struct {
	size  int64
	legal map[int64][][]byte // by sector
	start []byte             // what is legal where legal says nothing
}

func versionsOf(content []byte) *versions {
	return &versions{int64(len(content)), map[int64][][]byte{}, bytes.Clone(content)}
}

func (v *versions) clone() *versions {
	return &versions{v.size, maps.Clone(v.legal), bytes.Clone(v.start)}
}

// write adds a version.
func (v *versions) write(p []byte, off int64) {
	for s := off / sector; s*sector < off+int64(len(p)); s++ {
		end := min((s+1)*sector, v.size)
		all := v.legal[s]
		if all == nil {
			all = [][]byte{bytes.Clone(v.start[s*sector : end])}
		}
		next := bytes.Clone(all[len(all)-1])
		copy(next[max(off-s*sector, 0):], p[max(s*sector-off, 0):])
		v.legal[s] = append(slices.Clip(all), next)
	}
}

// flush makes the last versions the only ones.
func (v *versions) flush() {
	for s, all := range v.legal {
		copy(v.start[s*sector:], all[len(all)-1])
	}
	clear(v.legal)
}

// judge holds the disk of an image against them.
func (v *versions) judge(t *testing.T, im *qcow2.Image, what string) {
	t.Helper()
	got := make([]byte, v.size)
	require.NoError(t, im.ReadAt(t.Context(), got, 0, 0), what)
	for s, all := range v.legal {
		b := got[s*sector : min((s+1)*sector, v.size)]
		if !slices.ContainsFunc(all, func(a []byte) bool { return bytes.Equal(a, b) }) {
			t.Fatalf("%s: sector %d reads %x..., which is none of its %d legal versions (%x...)", what, s, b[:8], len(all), all[len(all)-1][:8])
		}
		copy(b, v.start[s*sector:])
	}
	requireSame(t, v.start, got, what)
}
