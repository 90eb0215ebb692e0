package format

import "fmt"

// Limits of the format and of what is accepted from an image, each with its
// reason.
const (
	MinClusterBits   = 9  // the specification: 512 bytes
	MaxClusterBits   = 21 // QEMU's limit: 2 MiB
	MaxRefcountOrder = 6  // the specification: 64 bits
	// MinExtendedL2ClusterBits is the smallest cluster with sub-clusters (16 KiB,
	// QEMU's limit): a sub-cluster is then a sector.
	MinExtendedL2ClusterBits = 14
	DefaultClusterBits       = 16
	DefaultRefcountOrder     = 4

	// MaxL1Bytes bounds the memory that opening an image takes (QEMU's limit).
	MaxL1Bytes = 32 << 20
	// MaxRefcountTableBytes likewise.
	MaxRefcountTableBytes = 8 << 20
	// MaxBackingName is the specification's limit for the backing file name.
	MaxBackingName = 1023
	// MaxSnapshots is QEMU's limit.
	MaxSnapshots = 65536

	// SectorSize is the unit that a power cut leaves old or new.
	SectorSize = 512
	// MaxHostOffset is the end of what a standard cluster's entry can address.
	MaxHostOffset = 1 << 56
)

// Geometry is what decides where everything is.
type Geometry struct {
	Version       uint32 // 2 or 3
	ClusterBits   uint   // a cluster is 1 << ClusterBits bytes
	RefcountOrder uint   // a reference count is 1 << RefcountOrder bits
	ExtendedL2    bool   // L2 entries are pairs, clusters have sub-clusters (version 3)
}

// ClusterSize is in bytes.
func (g Geometry) ClusterSize() int64 { return 1 << g.ClusterBits }

// L2EntryBytes is the size of an L2 entry: 16 bytes with extended L2, else 8.
func (g Geometry) L2EntryBytes() int { return 1 << g.l2EntryBits() }

// L2Entries is the number of entries of an L2 table.
func (g Geometry) L2Entries() int { return 1 << (g.ClusterBits - g.l2EntryBits()) }

// L2Coverage is how many guest bytes an L2 table maps.
func (g Geometry) L2Coverage() int64 { return 1 << g.l2CoverageBits() }

// Subclusters is the number of sub-clusters in a cluster: 32 with extended L2,
// else 1.
func (g Geometry) Subclusters() int { return 1 << (g.ClusterBits - g.SubclusterBits()) }

// SubclusterBits is the binary logarithm of a sub-cluster's size in bytes. It is
// ClusterBits without extended L2.
func (g Geometry) SubclusterBits() uint {
	if g.ExtendedL2 {
		return g.ClusterBits - subclustersBits
	}
	return g.ClusterBits
}

func (g Geometry) l2EntryBits() uint {
	if g.ExtendedL2 {
		return 4
	}
	return 3
}

func (g Geometry) l2CoverageBits() uint { return 2*g.ClusterBits - g.l2EntryBits() }

// RefcountsPerBlock is the number of clusters that a refcount block covers.
func (g Geometry) RefcountsPerBlock() int64 { return 1 << (g.ClusterBits + 3 - g.RefcountOrder) }

// RefcountMax is the largest reference count.
func (g Geometry) RefcountMax() uint64 {
	if g.RefcountOrder == 6 {
		return 1<<63 - 1 // the specification leaves 64 bits; QEMU stops at the signed maximum
	}
	return 1<<(1<<g.RefcountOrder) - 1
}

// Clusters is the number of clusters that n bytes fill or touch.
func (g Geometry) Clusters(n int64) int64 {
	return int64((uint64(n) + uint64(g.ClusterSize()) - 1) >> g.ClusterBits)
}

// L1Entries is the number of L1 entries for a disk of size bytes.
func (g Geometry) L1Entries(size int64) int64 {
	bits := g.l2CoverageBits()
	return int64((uint64(size) + 1<<bits - 1) >> bits)
}

// MaxSize is the largest disk in bytes: what an L1 table of MaxL1Bytes maps,
// and no more than a host offset can address.
func (g Geometry) MaxSize() int64 {
	return min(int64(MaxL1Bytes/8)<<g.l2CoverageBits(), MaxHostOffset)
}

// Valid returns an error unless the specification allows g.
func (g Geometry) Valid() error {
	switch {
	case g.Version != 2 && g.Version != 3:
		return fmt.Errorf("version %d: expected 2 or 3", g.Version)
	case g.ClusterBits < MinClusterBits || g.ClusterBits > MaxClusterBits:
		return fmt.Errorf("cluster size 2^%d: expected a power of two from 512 to 2M", g.ClusterBits)
	case g.RefcountOrder > MaxRefcountOrder:
		return fmt.Errorf("refcount width 2^%d bits: expected 1, 2, 4, 8, 16, 32 or 64", g.RefcountOrder)
	case g.Version == 2 && g.RefcountOrder != DefaultRefcountOrder:
		return fmt.Errorf("refcount width %d bits: compat 0.10 allows only 16", 1<<g.RefcountOrder)
	case g.ExtendedL2 && g.Version < 3:
		return fmt.Errorf("extended L2 entries: need compat 1.1")
	case g.ExtendedL2 && g.ClusterBits < MinExtendedL2ClusterBits:
		return fmt.Errorf("extended L2 entries with clusters of %d bytes: need at least %d", g.ClusterSize(), 1<<MinExtendedL2ClusterBits)
	}
	return nil
}
