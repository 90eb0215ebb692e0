package format

import (
	"encoding/binary"
	"fmt"
	"math"
)

// An entry of the snapshot table (specification, section "Snapshots"). Entries
// follow each other, each padded to a multiple of 8 bytes.
//
//	 0  offset of its L1 table     32  size of the VM state, 32 bits
//	 8  entries of the L1 table    36  length of the extra data
//	12  length of the ID           40  extra data:
//	14  length of the name             0  size of the VM state, bytes
//	16  time taken, seconds            8  size of the disk, bytes
//	20  and nanoseconds               16  unknown here, kept
//	24  guest's running time, ns       -  ID, name, padding
const (
	snapshotLen      = 40
	snapshotExtraLen = 16 // version 3 must have so much

	// MaxSnapshotExtra and MaxSnapshotTableBytes are QEMU's limits.
	MaxSnapshotExtra      = 1024
	MaxSnapshotTableBytes = 64 << 20
	// MaxSnapshotBytes is the length of the longest entry.
	MaxSnapshotBytes = (snapshotLen + MaxSnapshotExtra + 2*math.MaxUint16 + 7) &^ 7
)

// A Snapshot is an entry of the snapshot table: an L1 table with a name.
type Snapshot struct {
	L1Offset             int64
	L1Size               uint32 // entries
	ID, Name             string
	Seconds, Nanoseconds uint32 // since the Epoch, when it was taken
	ClockNanoseconds     uint64 // how long the guest had run
	// VMStateSize is in bytes; the state is stored behind the virtual disk.
	VMStateSize uint64
	// DiskSize is that of the virtual disk in bytes, -1 if the entry does not tell.
	DiskSize int64
	// Extra is the extra data. Encoding sets the two fields above in it, where
	// there is room or DiskSize is told, and keeps the rest.
	Extra []byte
}

// DecodeSnapshot decodes the entry at the beginning of b and returns its length,
// padding included. b must hold MaxSnapshotBytes, or all of a file that is
// shorter; at is b's offset in the file. It looks at lengths only: what the entry
// refers to is CheckSnapshot's to judge.
func DecodeSnapshot(b []byte, at int64) (Snapshot, int, error) {
	be := binary.BigEndian
	if len(b) < snapshotLen {
		return Snapshot{}, 0, corrupt("snapshot table entry", at, fmt.Sprintf("%d bytes", len(b)), "at least %d bytes", snapshotLen)
	}
	idLen, nameLen, extraLen := int(be.Uint16(b[12:])), int(be.Uint16(b[14:])), be.Uint32(b[36:])
	if extraLen > MaxSnapshotExtra {
		return Snapshot{}, 0, corrupt("extra data of a snapshot", at+36, fmt.Sprintf("%d bytes", extraLen), "at most %d bytes", MaxSnapshotExtra)
	}
	idAt := snapshotLen + int(extraLen)
	end := idAt + idLen + nameLen
	if len(b) < end {
		return Snapshot{}, 0, corrupt("snapshot table entry", at, fmt.Sprintf("%d bytes", len(b)), "the %d bytes that its lengths add up to", end)
	}
	s := Snapshot{
		L1Offset: int64(be.Uint64(b)), L1Size: be.Uint32(b[8:]),
		ID: string(b[idAt : idAt+idLen]), Name: string(b[idAt+idLen : end]),
		Seconds: be.Uint32(b[16:]), Nanoseconds: be.Uint32(b[20:]),
		ClockNanoseconds: be.Uint64(b[24:]), VMStateSize: uint64(be.Uint32(b[32:])), DiskSize: -1,
		Extra: append([]byte(nil), b[snapshotLen:idAt]...),
	}
	if extraLen >= 8 {
		s.VMStateSize = be.Uint64(s.Extra)
	}
	if extraLen >= snapshotExtraLen {
		size := be.Uint64(s.Extra[8:])
		if size > math.MaxInt64 {
			return Snapshot{}, 0, corrupt("disk size of a snapshot", at+snapshotLen+8, size, "less than 2^63 bytes")
		}
		s.DiskSize = int64(size)
	}
	return s, (end + 7) &^ 7, nil
}

// CheckSnapshot returns an error unless the L1 table of s lies inside a file of
// fileSize bytes and keeps the limits of this package. at is the entry's offset.
func (g Geometry) CheckSnapshot(s *Snapshot, at, fileSize int64) error {
	n := int64(s.L1Size) * 8
	switch {
	case n > MaxL1Bytes:
		return corrupt("L1 table size of a snapshot", at+8, n, "at most %d bytes", MaxL1Bytes)
	case s.L1Offset < 0 || s.L1Offset >= MaxHostOffset || s.L1Offset&(g.ClusterSize()-1) != 0:
		return corrupt("L1 table of a snapshot", at, fmt.Sprintf("offset %d", uint64(s.L1Offset)), "a multiple of the cluster size %d below 2^56", g.ClusterSize())
	case n > 0 && (s.L1Offset < g.ClusterSize() || s.L1Offset > fileSize || n > fileSize-s.L1Offset):
		return corrupt("L1 table of a snapshot", at, fmt.Sprintf("offset %d, %d bytes", s.L1Offset, n),
			"behind the header and inside the file's %d bytes", fileSize)
	}
	return nil
}

// CheckSnapshotExtra returns an error if version 3 demands more extra data than
// s was decoded with.
func (g Geometry) CheckSnapshotExtra(s *Snapshot, at int64) error {
	if g.Version >= 3 && len(s.Extra) < snapshotExtraLen {
		return corrupt("extra data of a snapshot", at+36, fmt.Sprintf("%d bytes", len(s.Extra)), "at least %d bytes in version 3", snapshotExtraLen)
	}
	return nil
}

// EncodeSnapshots is a snapshot table.
func EncodeSnapshots(snapshots []Snapshot) ([]byte, error) {
	if len(snapshots) > MaxSnapshots {
		return nil, fmt.Errorf("%d snapshots: at most %d", len(snapshots), MaxSnapshots)
	}
	var b []byte
	for i := range snapshots {
		var err error
		if b, err = appendSnapshot(b, &snapshots[i]); err != nil {
			return nil, fmt.Errorf("snapshot %q: %w", snapshots[i].Name, err)
		}
	}
	if len(b) > MaxSnapshotTableBytes {
		return nil, fmt.Errorf("snapshot table of %d bytes: at most %d", len(b), MaxSnapshotTableBytes)
	}
	return b, nil
}

func appendSnapshot(b []byte, s *Snapshot) ([]byte, error) {
	be := binary.BigEndian
	extra := s.encodeExtra()
	switch {
	case len(s.ID) > math.MaxUint16 || len(s.Name) > math.MaxUint16:
		return nil, fmt.Errorf("ID of %d bytes, name of %d bytes: at most %d", len(s.ID), len(s.Name), math.MaxUint16)
	case len(extra) > MaxSnapshotExtra:
		return nil, fmt.Errorf("extra data of %d bytes: at most %d", len(extra), MaxSnapshotExtra)
	}
	b = be.AppendUint64(b, uint64(s.L1Offset))
	b = be.AppendUint32(b, s.L1Size)
	b = be.AppendUint16(b, uint16(len(s.ID)))
	b = be.AppendUint16(b, uint16(len(s.Name)))
	b = be.AppendUint32(b, s.Seconds)
	b = be.AppendUint32(b, s.Nanoseconds)
	b = be.AppendUint64(b, s.ClockNanoseconds)
	b = be.AppendUint32(b, uint32(min(s.VMStateSize, math.MaxUint32)))
	b = be.AppendUint32(b, uint32(len(extra)))
	b = append(b, extra...)
	b = append(b, s.ID...)
	b = append(b, s.Name...)
	return append(b, make([]byte, -len(b)&7)...), nil
}

func (s *Snapshot) encodeExtra() []byte {
	extra := append([]byte(nil), s.Extra...)
	if s.DiskSize >= 0 {
		extra = append(extra, make([]byte, max(snapshotExtraLen-len(extra), 0))...)
		binary.BigEndian.PutUint64(extra[8:], uint64(s.DiskSize))
	}
	if len(extra) >= 8 {
		binary.BigEndian.PutUint64(extra, s.VMStateSize)
	}
	return extra
}
