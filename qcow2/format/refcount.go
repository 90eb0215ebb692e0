package format

import (
	"bytes"
	"encoding/binary"
)

// Refcount returns count number i of a refcount block, or of a part of one that
// starts at a count (specification, section "Host cluster management"). Counts
// of less than 8 bits fill a byte from its least significant bit.
func Refcount(block []byte, order uint, i int) uint64 {
	switch order {
	case 0, 1, 2:
		width := uint(1) << order
		perByte := 8 / width
		return uint64(block[uint(i)/perByte]>>(uint(i)%perByte*width)) & (1<<width - 1)
	case 3:
		return uint64(block[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(block[i*2:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(block[i*4:]))
	default:
		return binary.BigEndian.Uint64(block[i*8:])
	}
}

// SetRefcount sets count number i to v, which must fit.
func SetRefcount(block []byte, order uint, i int, v uint64) {
	switch order {
	case 0, 1, 2:
		width := uint(1) << order
		perByte := 8 / width
		shift := uint(i) % perByte * width
		b := &block[uint(i)/perByte]
		*b = *b&^(byte(1<<width-1)<<shift) | byte(v)<<shift
	case 3:
		block[i] = byte(v)
	case 4:
		binary.BigEndian.PutUint16(block[i*2:], uint16(v))
	case 5:
		binary.BigEndian.PutUint32(block[i*4:], uint32(v))
	default:
		binary.BigEndian.PutUint64(block[i*8:], v)
	}
}

// Counted is the index behind the last count of a refcount block that is not 0.
func Counted(block []byte, order uint) int64 {
	n := int64(len(bytes.TrimRight(block, "\x00"))) * 8 >> order
	if order > 3 { // the last count may end in bytes that are 0
		n = min(n+1, int64(len(block))*8>>order)
	}
	for n > 0 && Refcount(block, order, int(n-1)) == 0 {
		n--
	}
	return n
}

// DecodeTable turns a table of 8-byte words into entries.
func DecodeTable[E ~uint64](dst []E, b []byte) {
	for i := range dst {
		dst[i] = E(binary.BigEndian.Uint64(b[i*8:]))
	}
}

// EncodeTable is the reverse of DecodeTable.
func EncodeTable[E ~uint64](b []byte, src []E) {
	for i, e := range src {
		binary.BigEndian.PutUint64(b[i*8:], uint64(e))
	}
}
