package bench

import (
	"encoding/binary"

	"tidemark/qcow2/format"
)

const (
	clusterBits = 16
	clusterSize = int64(1) << clusterBits
)

// A mappedFile is an image of clusters of 64 KiB with a disk that is allocated from
// begin to end, of any size. It exists as arithmetic: reading computes the metadata.
//
// Its data lies in the order of the disk, as preallocation and a conversion leave it. In a
// scattered one no cluster follows the one before it, as after writes at random: every two
// neighbours are exchanged.
//
// The parts of the file, in clusters: header 0, L1 table, refcount table, refcount
// blocks, L2 tables, data.
type mappedFile struct {
	hollowFile
	header           []byte
	l1, table        int64 // where they begin, clusters
	blocks, l2, data int64
	entries, end     int64 // L1 entries; clusters in all
	scattered        bool
}

func newMappedFile(disk int64) *mappedFile {
	h := format.Header{Geometry: format.Geometry{Version: 3, ClusterBits: clusterBits, RefcountOrder: 4}, Size: disk}
	f := &mappedFile{}
	f.base = f.compute
	f.entries = h.L1Entries(disk)
	f.l1 = 1
	f.table = f.l1 + h.Clusters(f.entries*8)
	data := h.Clusters(disk)
	var tableN, blockN int64
	for {
		f.blocks = f.table + tableN
		f.l2 = f.blocks + blockN
		f.data = f.l2 + f.entries
		f.end = f.data + data
		b := (f.end + h.RefcountsPerBlock() - 1) / h.RefcountsPerBlock()
		t := h.Clusters(b * 8)
		if b == blockN && t == tableN {
			break
		}
		blockN, tableN = b, t
	}
	f.size, f.hollow = f.end<<clusterBits, f.data<<clusterBits
	h.L1Offset, h.L1Size = f.l1<<clusterBits, uint32(f.entries)
	h.RefcountTableOffset, h.RefcountTableClusters = f.table<<clusterBits, uint32(tableN)
	b, err := h.Encode()
	if err != nil {
		panic(err) // it is the same for everybody
	}
	f.header = append(b, make([]byte, clusterSize-int64(len(b)))...)
	return f
}

// word is the 8 bytes at off of the metadata, as the computed image has them.
func (f *mappedFile) word(off int64) uint64 {
	c, i := off>>clusterBits, off&(clusterSize-1)/8
	switch {
	case c < f.l1:
		return binary.BigEndian.Uint64(f.header[off:])
	case c < f.table:
		if i += (c - f.l1) * clusterSize / 8; i < f.entries {
			return uint64(format.NewL1Entry((f.l2 + i) << clusterBits))
		}
	case c < f.blocks:
		if i += (c - f.table) * clusterSize / 8; i < f.l2-f.blocks {
			return uint64((f.blocks + i) << clusterBits)
		}
	case c < f.l2:
		n := uint64(0)
		for k := range int64(4) { // counts of 16 bits
			if (c-f.blocks)*clusterSize/2+i*4+k < f.end {
				n |= 1 << (48 - 16*k)
			}
		}
		return n
	case c < f.data:
		if i += (c - f.l2) * clusterSize / 8; f.data+i < f.end {
			if f.scattered && f.data+(i|1) < f.end {
				i ^= 1
			}
			return uint64(format.NewL2Entry((f.data + i) << clusterBits))
		}
	}
	return 0
}

// compute fills p with what the computed image has at off.
func (f *mappedFile) compute(p []byte, off int64) {
	if off%8 == 0 && len(p)%8 == 0 {
		for i := 0; i < len(p); i += 8 {
			binary.BigEndian.PutUint64(p[i:], f.word(off+int64(i)))
		}
		return
	}
	var b [8]byte
	for i := range p {
		binary.BigEndian.PutUint64(b[:], f.word((off+int64(i))&^7))
		p[i] = b[(off+int64(i))&7]
	}
}
