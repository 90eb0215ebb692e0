package format

// An L1Entry names an L2 table (specification, section "Cluster mapping").
//
//	63      COPIED: the L2 table's reference count is exactly 1
//	62-56   reserved, 0
//	55-9    host offset of the L2 table, 0: all its clusters are unallocated
//	8-0     reserved, 0
type L1Entry uint64

// An L2Entry maps a guest cluster.
//
//	63      COPIED: the host cluster's reference count is exactly 1
//	62      compressed
//
// Not compressed:
//
//	61-56   reserved, 0
//	55-9    host offset of the cluster, 0: none
//	8-1     reserved, 0
//	0       the cluster reads zero (version 3; 0 with extended L2)
//
// Compressed, x = 62 - (ClusterBits - 8):
//
//	61-x    number of further 512-byte sectors
//	x-1-0   host offset in bytes, below 2^56
type L2Entry uint64

// A RefcountTableEntry names a refcount block: host offset in bits 63-9, bits
// 8-0 reserved, 0: the block does not exist and all its counts are 0.
type RefcountTableEntry uint64

const (
	copied     = 1 << 63
	compressed = 1 << 62
	readsZero  = 1 << 0
	offsetMask = 0x00fffffffffffe00

	l1Reserved       = ^uint64(copied | offsetMask)
	l2Reserved       = ^uint64(copied | compressed | offsetMask | readsZero)
	refTableReserved = 0x1ff
)

// NewL1Entry is the entry for an L2 table at off that nothing else refers to.
func NewL1Entry(off int64) L1Entry { return L1Entry(uint64(off) | copied) }

// Offset is the host offset of the L2 table, 0 if there is none.
func (e L1Entry) Offset() int64 { return int64(e & offsetMask) }

// Copied reports whether the L2 table's reference count is exactly 1.
func (e L1Entry) Copied() bool { return e&copied != 0 }

// Valid reports whether the reserved bits are 0.
func (e L1Entry) Valid() bool { return uint64(e)&l1Reserved == 0 }

// Offset is the host offset of the refcount block, 0 if there is none.
func (e RefcountTableEntry) Offset() int64 { return int64(e &^ refTableReserved) }

// Valid reports whether the reserved bits are 0 and the offset is no nonsense.
func (e RefcountTableEntry) Valid() bool {
	return e&refTableReserved == 0 && uint64(e) < MaxHostOffset
}

// NewL2Entry is the entry for a data cluster at off that nothing else refers to.
func NewL2Entry(off int64) L2Entry { return L2Entry(uint64(off) | copied) }

// ZeroEntry is a cluster that reads zero and has no host cluster (version 3).
const ZeroEntry L2Entry = readsZero

// A Kind is what an L2 entry says of its cluster, or of one of its sub-clusters.
type Kind uint8

// The kinds. The zero value is the entry 0.
const (
	Unallocated   Kind = iota // ask the backing file, or zero
	ZeroPlain                 // reads zero, no host cluster
	ZeroAllocated             // reads zero, has a host cluster of undefined content
	Data                      // read the host cluster
	Compressed                // read the sectors and decompress
	Invalid                   // contradicts the specification
	// UnallocatedAlloc is a sub-cluster that has a host cluster and is not
	// allocated in it: ask the backing file, or zero. No whole cluster is one.
	UnallocatedAlloc
	KindCount = iota
)

func (k Kind) String() string {
	names := [KindCount]string{"unallocated", "zero", "zero with host cluster", "data", "compressed", "invalid", "unallocated with host cluster"}
	if int(k) < len(names) {
		return names[k]
	}
	return "unknown"
}

// Kind classifies e by the rules of g's version. It does not look at the host
// offset beyond its alignment: whether it lies in the file is the caller's to say.
// With extended L2 it is what the first word alone says, where zero marks are
// not allowed; SubclusterKind looks at both.
func (e L2Entry) Kind(g Geometry) Kind {
	switch {
	case e&compressed != 0:
		if off, _ := e.CompressedRange(g); e&copied != 0 || off >= MaxHostOffset {
			return Invalid // "set to 0 for compressed clusters", "bits beyond 55 must be 0"
		}
		return Compressed
	case uint64(e)&l2Reserved != 0 || uint64(e)&offsetMask&uint64(g.ClusterSize()-1) != 0:
		return Invalid
	case e&readsZero != 0 && (g.Version < 3 || g.ExtendedL2):
		return Invalid
	case e&readsZero != 0 && e&offsetMask == 0:
		return ZeroPlain
	case e&readsZero != 0:
		return ZeroAllocated
	case e&offsetMask == 0:
		return Unallocated
	}
	return Data
}

// Offset is the host offset of a cluster that is not compressed, 0 if none.
func (e L2Entry) Offset() int64 { return int64(e & offsetMask) }

// Copied reports whether the host cluster's reference count is exactly 1.
func (e L2Entry) Copied() bool { return e&copied != 0 }

// Compressed reports whether the cluster is compressed.
func (e L2Entry) Compressed() bool { return e&compressed != 0 }

// CompressedRange is the host range in bytes that a compressed cluster's
// sectors take; the compressed stream ends somewhere in its last sector.
func (e L2Entry) CompressedRange(g Geometry) (off, n int64) {
	x := 62 - (g.ClusterBits - 8)
	off = int64(uint64(e) & (1<<x - 1))
	sectors := int64((uint64(e)&(compressed-1))>>x) + 1
	return off, sectors*SectorSize - off%SectorSize
}
