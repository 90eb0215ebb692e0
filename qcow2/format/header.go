package format

import (
	"encoding/binary"
	"fmt"
)

// The header (specification, section "Header"); a field is named by its offset.
//
//	 0  magic "QFI\xfb"            56  refcount_table_clusters
//	 4  version                    60  nb_snapshots
//	 8  backing_file_offset        64  snapshots_offset
//	16  backing_file_size          72  incompatible_features   version 3
//	20  cluster_bits               80  compatible_features
//	24  size                       88  autoclear_features
//	32  crypt_method               96  refcount_order
//	36  l1_size                   100  header_length
//	40  l1_table_offset           104  compression_type        optional
//	48  refcount_table_offset     105  padding to 112
const (
	Magic = 0x514649fb

	headerLenV2   = 72
	headerLenV3   = 104 // at least
	headerLenFull = 112 // what is written: with compression_type
)

// A Header is the decoded header of an image, extensions included.
type Header struct {
	Geometry
	Size int64 // of the virtual disk, bytes

	L1Offset              int64
	L1Size                uint32 // entries
	RefcountTableOffset   int64
	RefcountTableClusters uint32
	SnapshotsOffset       int64
	Snapshots             uint32

	CryptMethod     uint32
	CompressionType uint8
	BackingFile     string
	BackingOffset   int64 // of the name in the image, 0 if there is none; set by coding

	Incompatible, Compatible, Autoclear uint64

	Length     uint32 // of the fixed part in the image, bytes
	Extensions []Extension

	extensionsEnd int64 // offset of the end mark, 0 if there is none
}

// DecodeHeader decodes the header from the beginning of an image. b must hold
// the whole first cluster, or all of a file that is shorter. Whether the tables
// lie inside the file is CheckLayout's to say.
func DecodeHeader(b []byte) (*Header, error) {
	be := binary.BigEndian
	if len(b) < 4 || be.Uint32(b) != Magic {
		return nil, fmt.Errorf("%w: expected the magic \"QFI\\xfb\" at offset 0, found %q", ErrNotQCOW2, b[:min(4, len(b))])
	}
	if len(b) < headerLenV2 {
		return nil, corrupt("header", 0, fmt.Sprintf("%d bytes", len(b)), "at least %d bytes", headerLenV2)
	}
	h := &Header{Geometry: Geometry{Version: be.Uint32(b[4:]), RefcountOrder: DefaultRefcountOrder}, Length: headerLenV2}
	need := headerLenV2
	switch h.Version {
	case 2:
	case 3:
		need = headerLenV3
	default:
		return nil, &UnsupportedError{Feature: fmt.Sprintf("QCOW version %d", h.Version), Advice: "convert it with qemu-img convert -O qcow2"}
	}
	if len(b) < need {
		return nil, corrupt("header", 0, fmt.Sprintf("%d bytes", len(b)), "at least %d bytes", need)
	}
	if bits := be.Uint32(b[20:]); bits < MinClusterBits || bits > MaxClusterBits {
		return nil, corrupt("cluster_bits", 20, bits, "%d to %d", MinClusterBits, MaxClusterBits)
	}
	h.ClusterBits = uint(be.Uint32(b[20:]))
	h.CryptMethod = be.Uint32(b[32:])
	h.L1Size = be.Uint32(b[36:])
	h.RefcountTableClusters = be.Uint32(b[56:])
	h.Snapshots = be.Uint32(b[60:])
	if h.Version == 3 {
		if err := h.decodeV3(b); err != nil {
			return nil, err
		}
	}
	if err := h.decodeOffsets(b); err != nil {
		return nil, err
	}
	return h, h.decodeNames(b)
}

func (h *Header) decodeV3(b []byte) error {
	be := binary.BigEndian
	h.Incompatible, h.Compatible, h.Autoclear = be.Uint64(b[72:]), be.Uint64(b[80:]), be.Uint64(b[88:])
	order := be.Uint32(b[96:])
	h.Length = be.Uint32(b[100:])
	if order > MaxRefcountOrder {
		return corrupt("refcount_order", 96, order, "at most %d", MaxRefcountOrder)
	}
	h.RefcountOrder = uint(order)
	h.ExtendedL2 = h.Incompatible&IncompatExtendedL2 != 0
	if h.ExtendedL2 && h.ClusterBits < MinExtendedL2ClusterBits {
		return corrupt("cluster_bits", 20, h.ClusterBits, "at least %d with extended L2 entries", MinExtendedL2ClusterBits)
	}
	if h.Length < headerLenV3 || h.Length%8 != 0 || int64(h.Length) > h.ClusterSize() {
		return corrupt("header_length", 100, h.Length, "a multiple of 8 from %d to the cluster size %d", headerLenV3, h.ClusterSize())
	}
	if int(h.Length) > len(b) {
		return corrupt("header_length", 100, h.Length, "at most the %d bytes there are", len(b))
	}
	if h.Length > 104 {
		h.CompressionType = b[104]
	}
	if (h.CompressionType != 0) != (h.Incompatible&IncompatCompressionType != 0) {
		return corrupt("compression_type", 104, h.CompressionType, "not 0 if and only if incompatible bit 3 is set")
	}
	return nil
}

func (h *Header) decodeOffsets(b []byte) error {
	be := binary.BigEndian
	size := be.Uint64(b[24:])
	if size > uint64(h.MaxSize()) {
		return corrupt("size", 24, size, "at most %d with this cluster size", h.MaxSize())
	}
	h.Size = int64(size)
	for _, f := range []struct {
		name string
		at   int64
		dst  *int64
	}{
		{"l1_table_offset", 40, &h.L1Offset},
		{"refcount_table_offset", 48, &h.RefcountTableOffset},
		{"snapshots_offset", 64, &h.SnapshotsOffset},
	} {
		v := be.Uint64(b[f.at:])
		if v >= MaxHostOffset || v&uint64(h.ClusterSize()-1) != 0 {
			return corrupt(f.name, f.at, v, "a multiple of the cluster size %d below 2^56", h.ClusterSize())
		}
		*f.dst = int64(v)
	}
	return nil
}

func (h *Header) decodeNames(b []byte) error {
	be := binary.BigEndian
	end := min(int64(len(b)), h.ClusterSize())
	if off := be.Uint64(b[8:]); off != 0 {
		n := uint64(be.Uint32(b[16:]))
		if n > MaxBackingName || off < uint64(h.Length) || off > uint64(end) || n > uint64(end)-off {
			return corrupt("backing_file_offset", 8, fmt.Sprintf("%d, length %d", off, n),
				"a name of at most %d bytes behind the header and inside the first cluster", MaxBackingName)
		}
		h.BackingFile, h.BackingOffset = string(b[off:off+n]), int64(off)
		end = int64(off)
	}
	var err error
	h.Extensions, h.extensionsEnd, err = decodeExtensions(b[h.Length:max(end, int64(h.Length))], int64(h.Length))
	return err
}

// FirstCluster is how many bytes the header with its names and extensions may
// take, from the beginning of an image: its first cluster. It is 0 if b, the first
// sector, does not look like a header.
func FirstCluster(b []byte) int64 {
	if len(b) < headerLenV2 || binary.BigEndian.Uint32(b) != Magic {
		return 0
	}
	bits := binary.BigEndian.Uint32(b[20:])
	if bits < MinClusterBits || bits > MaxClusterBits {
		return 0
	}
	return 1 << bits
}

// CheckLayout returns an error unless the tables that h names lie inside a file
// of fileSize bytes, do not overlap and keep the limits of this package.
func (h *Header) CheckLayout(fileSize int64) error {
	if need := h.L1Entries(h.Size); int64(h.L1Size) < need {
		return corrupt("l1_size", 36, h.L1Size, "at least %d for %d bytes", need, h.Size)
	}
	if h.RefcountTableClusters == 0 {
		return corrupt("refcount_table_clusters", 56, 0, "at least 1")
	}
	tables := []struct {
		name        string
		at          int64
		off, n, max int64
	}{
		{"L1 table", 40, h.L1Offset, int64(h.L1Size) * 8, MaxL1Bytes},
		{"refcount table", 48, h.RefcountTableOffset, int64(h.RefcountTableClusters) << h.ClusterBits, MaxRefcountTableBytes},
	}
	for _, t := range tables {
		if t.n == 0 {
			continue // a disk of 0 bytes has no L1 table
		}
		if t.n > t.max {
			return corrupt(t.name+" size", t.at, t.n, "at most %d bytes", t.max)
		}
		if t.off < h.ClusterSize() || t.off > fileSize || t.n > fileSize-t.off {
			return corrupt(t.name, t.at, fmt.Sprintf("offset %d, %d bytes", t.off, t.n),
				"behind the header and inside the file's %d bytes", fileSize)
		}
	}
	a, b := tables[0], tables[1]
	if a.n > 0 && a.off < b.off+b.n && b.off < a.off+a.n {
		return corrupt(a.name, a.at, fmt.Sprintf("offset %d", a.off), "no overlap with the refcount table at %d", b.off)
	}
	if h.Snapshots > MaxSnapshots {
		return corrupt("nb_snapshots", 60, h.Snapshots, "at most %d", MaxSnapshots)
	}
	return nil
}

// RoomForBackingName returns a place for the backing file's name at the end of
// the first cluster, behind the one it has, so that extensions can be added. ok is
// false if there is none.
func (h *Header) RoomForBackingName() (off int64, ok bool) {
	n := int64(len(h.BackingFile))
	off = (h.ClusterSize() - n) &^ 7
	return off, n > 0 && off >= h.BackingOffset+n
}

// PutBackingOffset writes where the backing file's name is into sector, the first
// 512 bytes of an image.
func PutBackingOffset(sector []byte, off int64) {
	binary.BigEndian.PutUint64(sector[8:], uint64(off))
}

// Put writes the fixed fields of h into sector, the first 512 bytes of an
// image, and leaves everything else there as it is: extensions, the backing
// file's name and fields that this package does not know. It sets the
// incompatible bit of what the geometry says.
func (h *Header) Put(sector []byte) {
	be := binary.BigEndian
	be.PutUint32(sector, Magic)
	be.PutUint32(sector[4:], h.Version)
	be.PutUint32(sector[20:], uint32(h.ClusterBits))
	be.PutUint64(sector[24:], uint64(h.Size))
	be.PutUint32(sector[32:], h.CryptMethod)
	be.PutUint32(sector[36:], h.L1Size)
	be.PutUint64(sector[40:], uint64(h.L1Offset))
	be.PutUint64(sector[48:], uint64(h.RefcountTableOffset))
	be.PutUint32(sector[56:], h.RefcountTableClusters)
	be.PutUint32(sector[60:], h.Snapshots)
	be.PutUint64(sector[64:], uint64(h.SnapshotsOffset))
	if h.Version < 3 {
		return
	}
	h.Incompatible &^= IncompatExtendedL2
	if h.ExtendedL2 {
		h.Incompatible |= IncompatExtendedL2
	}
	be.PutUint64(sector[72:], h.Incompatible)
	be.PutUint64(sector[80:], h.Compatible)
	be.PutUint64(sector[88:], h.Autoclear)
	be.PutUint32(sector[96:], uint32(h.RefcountOrder))
	be.PutUint32(sector[100:], h.Length)
	if h.Length > 104 {
		sector[104] = h.CompressionType
	}
}

// Encode is the first cluster of a new image: h with its extensions and the
// backing file's name. It sets h.Length.
func (h *Header) Encode() ([]byte, error) {
	if err := h.Valid(); err != nil {
		return nil, err
	}
	h.Length = headerLenV2
	if h.Version == 3 {
		h.Length = headerLenFull
	}
	b := make([]byte, h.ClusterSize())
	h.Put(b)
	ext := encodeExtensions(h.Extensions)
	nameOff := int64(h.Length) + int64(len(ext))
	if nameOff+int64(len(h.BackingFile)) > h.ClusterSize() {
		return nil, fmt.Errorf("header extensions (%d bytes) and backing file name (%d bytes) do not fit into the first cluster of %d bytes",
			len(ext), len(h.BackingFile), h.ClusterSize())
	}
	copy(b[h.Length:], ext)
	if h.BackingFile != "" {
		h.BackingOffset = nameOff
		binary.BigEndian.PutUint64(b[8:], uint64(nameOff))
		binary.BigEndian.PutUint32(b[16:], uint32(len(h.BackingFile)))
		copy(b[nameOff:], h.BackingFile)
	}
	return b, nil
}
