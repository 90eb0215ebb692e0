package format

import (
	"encoding/binary"
	"fmt"
)

// ExtReserved is Tidemark's own header extension: where clusters may be that are
// counted and that nothing refers to, because a writer had reserved them when it
// died. Programs that do not know it ignore and keep it. What it says is a hint
// that may be too wide, old, or torn: whoever acts on it must look for
// references first.
//
//	0-3    version, 1
//	4-7    number of ranges, at most MaxReservedRanges
//	8-     ranges: first cluster (8 bytes), number of clusters (8 bytes)
//
// It always has its full length, so that it can be rewritten in place.
const ExtReserved ExtensionType = 0x54644d52

// MaxReservedRanges is how many ranges there is room for; more are merged.
const MaxReservedRanges = 16

const (
	reservedVersion = 1
	// ReservedLen is the length of the extension's data in bytes.
	ReservedLen = 8 + MaxReservedRanges*16
)

// A ClusterRange is N host clusters from At.
type ClusterRange struct{ At, N int64 }

// EncodeReserved is the data of the extension; there must not be more than
// MaxReservedRanges.
func EncodeReserved(ranges []ClusterRange) []byte {
	b := make([]byte, ReservedLen)
	binary.BigEndian.PutUint32(b, reservedVersion)
	binary.BigEndian.PutUint32(b[4:], uint32(len(ranges)))
	for i, r := range ranges {
		binary.BigEndian.PutUint64(b[8+i*16:], uint64(r.At))
		binary.BigEndian.PutUint64(b[16+i*16:], uint64(r.N))
	}
	return b
}

// DecodeReserved is the reverse. Ranges are cut to the clusters below end.
func DecodeReserved(b []byte, end int64) ([]ClusterRange, error) {
	if len(b) < 8 {
		return nil, corrupt("reserved clusters extension", -1, fmt.Sprintf("%d bytes", len(b)), "at least 8 bytes")
	}
	if v := binary.BigEndian.Uint32(b); v != reservedVersion {
		return nil, &UnsupportedError{Feature: fmt.Sprintf("version %d of the reserved clusters extension", v)}
	}
	n := binary.BigEndian.Uint32(b[4:])
	if n > MaxReservedRanges || len(b) < 8+int(n)*16 {
		return nil, corrupt("reserved clusters extension", -1, fmt.Sprintf("%d ranges in %d bytes", n, len(b)), "at most %d ranges, 16 bytes each", MaxReservedRanges)
	}
	var ranges []ClusterRange
	for i := range int(n) {
		at, count := binary.BigEndian.Uint64(b[8+i*16:]), binary.BigEndian.Uint64(b[16+i*16:])
		if at < uint64(end) && count > 0 {
			ranges = append(ranges, ClusterRange{int64(at), int64(min(count, uint64(end)-at))})
		}
	}
	return ranges, nil
}
