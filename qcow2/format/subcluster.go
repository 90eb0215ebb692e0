package format

import (
	"encoding/binary"
	"math/bits"
)

const (
	subclustersBits    = 5
	subclustersPerPair = 1 << subclustersBits
)

// Subclusters is the second word of an extended L2 entry (specification, section
// "Extended L2 Entries"): what is known of the 32 equal parts of a cluster.
//
//	63-32   sub-cluster i-32 reads zero
//	31-0    sub-cluster i is allocated: its bytes are in the host cluster
//
// Neither bit: ask the backing file, or zero. Both: corrupt. It is 0 for
// compressed clusters.
type Subclusters uint64

// AllAllocated and AllZero are the words of a cluster of one kind.
const (
	AllAllocated Subclusters = 1<<subclustersPerPair - 1
	AllZero      Subclusters = ^AllAllocated
)

// An L2Pair is an entry of an L2 table with extended L2 entries. Of others, only
// Entry counts.
type L2Pair struct {
	Entry L2Entry
	Sub   Subclusters
}

// Allocated reports whether sub-cluster i is allocated.
func (s Subclusters) Allocated(i int) bool { return s>>i&1 != 0 }

// Zero reports whether sub-cluster i reads zero.
func (s Subclusters) Zero(i int) bool { return s>>(i+subclustersPerPair)&1 != 0 }

// Valid reports whether no sub-cluster is both allocated and zero.
func (s Subclusters) Valid() bool { return s.AllocatedBits()&s.ZeroBits() == 0 }

// AllocatedBits has bit i set if sub-cluster i is allocated.
func (s Subclusters) AllocatedBits() uint32 { return uint32(s) }

// ZeroBits has bit i set if sub-cluster i reads zero.
func (s Subclusters) ZeroBits() uint32 { return uint32(s >> subclustersPerPair) }

// WithAllocated is s with the n sub-clusters from from allocated.
func (s Subclusters) WithAllocated(from, n int) Subclusters {
	return s.Cleared(from, n) | subclusterMask(from, n)
}

// WithZero is s with the n sub-clusters from from reading zero.
func (s Subclusters) WithZero(from, n int) Subclusters {
	return s.Cleared(from, n) | subclusterMask(from, n)<<subclustersPerPair
}

// Cleared is s with the n sub-clusters from from unallocated.
func (s Subclusters) Cleared(from, n int) Subclusters {
	m := subclusterMask(from, n)
	return s &^ (m | m<<subclustersPerPair)
}

// subclusterMask has the allocation bits of n sub-clusters from from.
func subclusterMask(from, n int) Subclusters {
	return Subclusters((uint64(1)<<n - 1) << from)
}

// SubclusterKind classifies sub-cluster i of a pair by the rules of g:
//
//	first word      zero bit  allocated bit   kind
//	no host offset  0         0               Unallocated
//	no host offset  1         0               ZeroPlain
//	host offset     0         0               UnallocatedAlloc
//	host offset     1         0               ZeroAllocated
//	host offset     0         1               Data
//	compressed      none of the 64 is set     Compressed
//
// Everything else is Invalid, and so are all sub-clusters of a pair in which one
// has both bits, or one is allocated without a host offset. Without extended L2,
// it is e.Kind.
func (g Geometry) SubclusterKind(e L2Entry, s Subclusters, i int) Kind {
	k := e.Kind(g)
	if !g.ExtendedL2 {
		return k
	}
	switch {
	case !s.Valid():
		return Invalid
	case k == Data && s.Allocated(i):
		return Data
	case k == Data && s.Zero(i):
		return ZeroAllocated
	case k == Data:
		return UnallocatedAlloc
	case k == Unallocated && s.AllocatedBits() != 0:
		return Invalid
	case k == Unallocated && s.Zero(i):
		return ZeroPlain
	case k == Compressed && s != 0:
		return Invalid
	}
	return k
}

// SubclusterRun is the kind of sub-cluster i of a pair and the number of
// sub-clusters from i to the first of another kind, or to the cluster's end.
func (g Geometry) SubclusterRun(e L2Entry, s Subclusters, i int) (k Kind, n int) {
	k = g.SubclusterKind(e, s, i)
	rest := g.Subclusters() - i
	if !g.ExtendedL2 || k == Compressed || k == Invalid {
		return k, rest
	}
	differs := s.AllocatedBits() ^ -(s.AllocatedBits() >> i & 1)
	differs |= s.ZeroBits() ^ -(s.ZeroBits() >> i & 1)
	return k, min(bits.TrailingZeros32(differs>>i), rest)
}

// DecodeL2 turns an L2 table, or a part of one, into entries.
func (g Geometry) DecodeL2(dst []L2Pair, b []byte) {
	size := g.L2EntryBytes()
	for i := range dst {
		e := b[i*size:]
		dst[i] = L2Pair{Entry: L2Entry(binary.BigEndian.Uint64(e))}
		if g.ExtendedL2 {
			dst[i].Sub = Subclusters(binary.BigEndian.Uint64(e[8:]))
		}
	}
}

// EncodeL2 is the reverse of DecodeL2.
func (g Geometry) EncodeL2(b []byte, src []L2Pair) {
	size := g.L2EntryBytes()
	for i, p := range src {
		e := b[i*size:]
		binary.BigEndian.PutUint64(e, uint64(p.Entry))
		if g.ExtendedL2 {
			binary.BigEndian.PutUint64(e[8:], uint64(p.Sub))
		}
	}
}
