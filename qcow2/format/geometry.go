package format

import "fmt"

// Limits of the format and of what is accepted from an image, each with its
// reason.
const (
	MinClusterBits       = 9  // the specification: 512 bytes
	MaxClusterBits       = 21 // QEMU's limit: 2 MiB
	MaxRefcountOrder     = 6  // the specification: 64 bits
	DefaultClusterBits   = 16
	DefaultRefcountOrder = 4

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
}

// ClusterSize is in bytes.
func (g Geometry) ClusterSize() int64 { return 1 << g.ClusterBits }

// L2Entries is the number of entries of an L2 table.
func (g Geometry) L2Entries() int { return 1 << (g.ClusterBits - 3) }

// L2Coverage is how many guest bytes an L2 table maps.
func (g Geometry) L2Coverage() int64 { return 1 << (2*g.ClusterBits - 3) }

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
	bits := 2*g.ClusterBits - 3
	return int64((uint64(size) + 1<<bits - 1) >> bits)
}

// MaxSize is the largest disk in bytes: what an L1 table of MaxL1Bytes maps,
// and no more than a host offset can address.
func (g Geometry) MaxSize() int64 {
	return min(int64(MaxL1Bytes/8)<<(2*g.ClusterBits-3), MaxHostOffset)
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
	}
	return nil
}
