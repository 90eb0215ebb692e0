package simdisk

import (
	"bytes"
	"hash/maphash"
	"slices"
)

// SectorSize is the unit that a power cut leaves whole.
const SectorSize = 512

// ForeignTag is what another tenant's space is filled with, over and over, from
// every multiple of its length.
const ForeignTag = "another tenant's"

// HasForeign reports whether p holds bytes of another tenant.
func HasForeign(p []byte) bool { return bytes.Contains(p, []byte(ForeignTag)) }

// A sector is the content of a sector. It never changes; the one that reads zero
// is nil.
type sector struct {
	data [SectorSize]byte
	hash uint64
}

var (
	hashSeed = maphash.MakeSeed()
	zeroes   [SectorSize]byte
	foreign  = newSector((*[SectorSize]byte)(bytes.Repeat([]byte(ForeignTag), SectorSize/len(ForeignTag))))
)

func newSector(p *[SectorSize]byte) *sector {
	if *p == zeroes {
		return nil
	}
	return &sector{*p, maphash.Bytes(hashSeed, p[:])}
}

func (s *sector) bytes() *[SectorSize]byte {
	if s == nil {
		return &zeroes
	}
	return &s.data
}

// with is s with p at from.
func (s *sector) with(p []byte, from int64) *sector {
	next := *s.bytes()
	copy(next[from:], p)
	return newSector(&next)
}

const (
	fanBits = 6
	fan     = 1 << fanBits
)

// A node holds the content of fan sectors (level 0) or nodes. One that reads
// zero is nil. Only the image whose token it carries may change it.
type node struct {
	owner   *token
	sectors []*sector // at level 0
	kids    []*node   // above
	hash    uint64
	hashed  bool
}

type token struct{ _ byte } // not empty: two of them must not share an address

// uniform returns a node of a level that holds nothing but s, which is nil or
// foreign.
func uniform(s *sector, level int) *node {
	if s == nil {
		return nil
	}
	return foreignNodes[level]
}

// maxLevel is enough for every offset: 2^(9+6*9) bytes.
const maxLevel = 8

var foreignNodes = func() (list [maxLevel + 1]*node) {
	for level := range list {
		n := &node{}
		if level == 0 {
			n.sectors = make([]*sector, fan)
			for i := range n.sectors {
				n.sectors[i] = foreign
			}
		} else {
			n.kids = make([]*node, fan)
			for i := range n.kids {
				n.kids[i] = list[level-1]
			}
		}
		n.sum(level)
		list[level] = n
	}
	return list
}()

// sum is a hash of the node's content, the sum of its sectors' hashes, each times
// a factor of its place. It does not depend on the height of the tree. Who shares
// a node has called it before.
func (n *node) sum(level int) uint64 {
	switch {
	case n == nil:
		return 0
	case n.hashed:
		return n.hash
	}
	h, factor := uint64(0), hashFactor*uint64(2*level+1)
	for _, s := range slices.Backward(n.sectors) {
		h *= factor
		if s != nil {
			h += s.hash
		}
	}
	for _, k := range slices.Backward(n.kids) {
		h = h*factor + k.sum(level-1)
	}
	n.hash, n.hashed = h, true
	return h
}

const hashFactor = 0x9e3779b97f4a7c15 // odd, and without a pattern

// An image is sparse content: a tree whose nodes are shared by copies until one
// of them changes something.
type image struct {
	root  *node
	level int // of root
	owner *token
}

func newImage() image { return image{owner: new(token)} }

// clone returns a copy, for the price of a pointer. It hashes what is new.
func (im *image) clone() image {
	im.root.sum(im.level)
	im.owner = new(token) // what there is belongs to nobody from now on
	return image{root: im.root, level: im.level, owner: new(token)}
}

// sum is a hash of the content.
func (im *image) sum() uint64 { return im.root.sum(im.level) }

// edit returns n, or a copy of it, which im may change.
func (im *image) edit(n *node, level int) *node {
	switch {
	case n == nil:
		n = &node{owner: im.owner}
		if level == 0 {
			n.sectors = make([]*sector, fan)
		} else {
			n.kids = make([]*node, fan)
		}
		return n
	case n.owner == im.owner:
		n.hashed = false
		return n
	}
	c := &node{owner: im.owner}
	if level == 0 {
		c.sectors = append(make([]*sector, 0, fan), n.sectors...)
	} else {
		c.kids = append(make([]*node, 0, fan), n.kids...)
	}
	return c
}

// reach makes the tree high enough for sector i.
func (im *image) reach(i int64) {
	for i>>(fanBits*(im.level+1)) != 0 {
		old := im.root
		im.level++
		im.root = nil
		if old != nil {
			im.root = im.edit(nil, im.level)
			im.root.kids[0] = old
		}
	}
}

// get returns sector i.
func (im *image) get(i int64) *sector {
	if l := im.leaf(i); l != nil {
		return l.sectors[i&(fan-1)]
	}
	return nil
}

// leaf returns the node of level 0 that holds sector i.
func (im *image) leaf(i int64) *node {
	n := im.root
	if i>>(fanBits*(im.level+1)) != 0 {
		return nil
	}
	for level := im.level; level > 0 && n != nil; level-- {
		n = n.kids[i>>(fanBits*level)&(fan-1)]
	}
	return n
}

// set replaces sector i.
func (im *image) set(i int64, s *sector) {
	im.reach(i)
	im.root = im.edit(im.root, im.level)
	n := im.root
	for level := im.level; level > 0; level-- {
		k := i >> (fanBits * level) & (fan - 1)
		n.kids[k] = im.edit(n.kids[k], level-1)
		n = n.kids[k]
	}
	n.sectors[i&(fan-1)] = s
}

// fill makes the sectors from lo to hi, exclusively, hold s, which is nil or
// foreign.
func (im *image) fill(lo, hi int64, s *sector) {
	if lo >= hi {
		return
	}
	if s == nil { // nothing to do where the tree does not reach
		if hi = min(hi, 1<<(fanBits*(im.level+1))); lo >= hi {
			return
		}
	}
	im.reach(hi - 1)
	im.root = im.fillNode(im.root, im.level, 0, lo, hi, s)
}

func (im *image) fillNode(n *node, level int, base, lo, hi int64, s *sector) *node {
	span := int64(1) << (fanBits * (level + 1))
	switch {
	case lo >= base+span || hi <= base || n == nil && s == nil:
		return n
	case lo <= base && base+span <= hi:
		return uniform(s, level)
	}
	n = im.edit(n, level)
	if level == 0 {
		for i := max(lo-base, 0); i < min(hi-base, fan); i++ {
			n.sectors[i] = s
		}
		return n
	}
	step := span / fan
	for i := max(lo-base, 0) / step; i < fan && base+i*step < hi; i++ {
		n.kids[i] = im.fillNode(n.kids[i], level-1, base+i*step, lo, hi, s)
	}
	return n
}

// read copies the bytes at off into p.
func (im *image) read(p []byte, off int64) {
	for len(p) > 0 {
		i, from := off/SectorSize, off%SectorSize
		l := im.leaf(i)
		if l == nil {
			n := min(int64(len(p)), (i&^(fan-1)+fan)*SectorSize-off)
			clear(p[:n])
			p, off = p[n:], off+n
			continue
		}
		for _, s := range l.sectors[i&(fan-1):] {
			n := copy(p, s.bytes()[from:])
			p, off, from = p[n:], off+int64(n), 0
			if len(p) == 0 {
				break
			}
		}
	}
}

// addForeign makes the bytes [off, end), which nothing was written to, another
// tenant's.
func (im *image) addForeign(off, end int64) {
	first, last := off/SectorSize, end/SectorSize
	from, to := off%SectorSize, end%SectorSize
	switch {
	case first == last:
		im.set(first, im.get(first).with(foreign.data[from:to], from))
		return
	case from != 0:
		im.set(first, im.get(first).with(foreign.data[from:], from))
		first++
	}
	im.fill(first, last, foreign)
	if to != 0 {
		im.set(last, im.get(last).with(foreign.data[:to], 0))
	}
}

// truncate forgets everything from size on.
func (im *image) truncate(size int64) {
	first := size / SectorSize
	if from := size % SectorSize; from != 0 {
		im.set(first, im.get(first).with(zeroes[from:], from))
		first++
	}
	im.fill(first, 1<<62/SectorSize, nil)
}

// each calls f for every sector that does not read zero, in order.
func (im *image) each(f func(i int64, s *sector) error) error {
	return im.root.each(im.level, 0, f)
}

func (n *node) each(level int, base int64, f func(int64, *sector) error) error {
	if n == nil {
		return nil
	}
	for i, s := range n.sectors {
		if s != nil {
			if err := f(base+int64(i), s); err != nil {
				return err
			}
		}
	}
	for i, k := range n.kids {
		if err := k.each(level-1, base+int64(i)<<(fanBits*level), f); err != nil {
			return err
		}
	}
	return nil
}
