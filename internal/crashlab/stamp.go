package crashlab

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"tidemark/internal/simdisk"
)

// sector is the unit of versions, bytes.
const sector = simdisk.SectorSize

// A version is what a sector of the disk holds: 0 for zeroes, otherwise the
// number of the request that wrote it.
type version uint32

// original stands for what the disk held when the recording began, where that is
// not zeroes.
const original version = 1<<32 - 1

// stamp fills p, the sectors from first, with a version. The number of the sector
// is part of it, so that content in the wrong place is seen.
func stamp(p []byte, first int64, v version) {
	for i := 0; i < len(p); i += sector {
		b := p[i : i+sector]
		binary.BigEndian.PutUint32(b, uint32(v))
		binary.BigEndian.PutUint32(b[4:], uint32(first)+uint32(i/sector)+1)
		for n := 8; n < sector; n *= 2 {
			copy(b[n:], b[:n])
		}
	}
}

var zeroSector [sector]byte

// versionOf reads the version of sector s from b. before is what the disk held at
// the start, where it was as large.
func versionOf(b []byte, s int64, before []byte) (version, error) {
	switch {
	case bytes.Equal(b, zeroSector[:]):
		return 0, nil
	case simdisk.HasForeign(b):
		return 0, faultf(3, "sector %d: another tenant's bytes", s)
	case (s+1)*sector <= int64(len(before)) && bytes.Equal(b, before[s*sector:(s+1)*sector]):
		return original, nil
	case !bytes.Equal(b[8:], b[:sector-8]):
		return 0, faultf(2, "sector %d: a mix, or nobody's bytes: %x ... %x", s, b[:16], b[sector-16:])
	}
	v, at := version(binary.BigEndian.Uint32(b)), int64(binary.BigEndian.Uint32(b[4:]))-1
	if at != s {
		return 0, faultf(2, "sector %d: the bytes of sector %d, version %d", s, at, v)
	}
	return v, nil
}

func (v version) String() string {
	switch v {
	case 0:
		return "zeroes"
	case original:
		return "the original"
	}
	return fmt.Sprintf("version %d", uint32(v))
}
