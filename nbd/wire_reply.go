package nbd

import (
	"fmt"
	"math"
)

// What a server sends in the transmission: see wire.go.

// A simple reply, and a chunk of a structured one:
//
//	 0            4       8        16
//	+------------+-------+--------+-----------------
//	| 0x67446698 | error | cookie | payload of READ
//	+------------+-------+--------+-----------------
//
//	 0            4       6      8        16       20
//	+------------+-------+------+--------+--------+-------------
//	| 0x668e33ef | flags | type | cookie | length | payload ...
//	+------------+-------+------+--------+--------+-------------
//
// With extended headers there are only chunks, which repeat the request's offset:
//
//	 0            4       6      8        16       24       32
//	+------------+-------+------+--------+--------+--------+-------------
//	| 0x6e8a278c | flags | type | cookie | offset | length | payload ...
//	+------------+-------+------+--------+--------+--------+-------------

const (
	magicSimple   uint32 = 0x67446698
	magicChunk    uint32 = 0x668e33ef
	magicExtChunk uint32 = 0x6e8a278c

	simpleBytes   = 16
	chunkBytes    = 20
	extChunkBytes = 32

	chunkDone = 1 << 0 // the flag of a reply's last chunk
)

func appendSimple(dst []byte, cookie uint64, e Errno) []byte {
	dst = be.AppendUint32(dst, magicSimple)
	dst = be.AppendUint32(dst, uint32(e))
	return be.AppendUint64(dst, cookie)
}

// chunkType is the type of a chunk; the errors have the highest bit.
type chunkType uint16

const (
	chunkNone        chunkType = 0
	chunkOffsetData  chunkType = 1
	chunkOffsetHole  chunkType = 2
	chunkBlockStatus chunkType = 5
	chunkStatusExt   chunkType = 6 // BLOCK_STATUS_EXT
	chunkError       chunkType = 1<<15 + 1
	chunkErrorOffset chunkType = 1<<15 + 2
)

func (t chunkType) isError() bool { return t&(1<<15) != 0 }

// chunkHeader is a chunk without its payload.
type chunkHeader struct {
	flags  uint16
	typ    chunkType
	cookie uint64
	offset uint64 // only if extended
	length uint64 // 32 bits unless extended
}

// chunkOf begins a chunk in the reply to h.
func chunkOf(h requestHeader, flags uint16, t chunkType, length int) chunkHeader {
	return chunkHeader{flags, t, h.cookie, h.offset, uint64(length)}
}

func (c chunkHeader) append(dst []byte, extended bool) []byte {
	magic := magicChunk
	if extended {
		magic = magicExtChunk
	}
	dst = be.AppendUint32(dst, magic)
	dst = be.AppendUint16(dst, c.flags)
	dst = be.AppendUint16(dst, uint16(c.typ))
	dst = be.AppendUint64(dst, c.cookie)
	if extended {
		dst = be.AppendUint64(dst, c.offset)
		return be.AppendUint64(dst, c.length)
	}
	return be.AppendUint32(dst, uint32(c.length))
}

// chunkHeaderBytes is the length of a chunk's header.
func chunkHeaderBytes(extended bool) int {
	if extended {
		return extChunkBytes
	}
	return chunkBytes
}

// parseChunk decodes what follows the magic of a chunk.
func parseChunk(b []byte) chunkHeader {
	return chunkHeader{
		flags: be.Uint16(b), typ: chunkType(be.Uint16(b[2:])), cookie: be.Uint64(b[4:]), length: uint64(be.Uint32(b[12:])),
	}
}

// parseExtChunk does for extended ones.
func parseExtChunk(b []byte) chunkHeader {
	return chunkHeader{
		flags: be.Uint16(b), typ: chunkType(be.Uint16(b[2:])), cookie: be.Uint64(b[4:]), offset: be.Uint64(b[12:]), length: be.Uint64(b[20:]),
	}
}

// The payloads:
//
//	OFFSET_DATA       offset 64, data
//	OFFSET_HOLE       offset 64, length 32
//	BLOCK_STATUS      context id 32, (length 32, status 32) ...
//	BLOCK_STATUS_EXT  context id 32, count 32, (length 64, status 64) ...
//	ERROR             error 32, text length 16, text
//	ERROR_OFFSET      error 32, text length 16, text, offset 64

const (
	offsetDataBytes = 8 // in front of the data
	offsetHoleBytes = 12
	statusIDBytes   = 4
	descriptorBytes = 8
	errorBytes      = 6 // in front of the text

	statusExtBytes     = 8
	descriptorExtBytes = 16
)

// appendDataChunk appends everything of an OFFSET_DATA chunk but the data, which is
// as long as was asked for. It is the only and last chunk of its reply.
func appendDataChunk(dst []byte, h requestHeader) []byte {
	c := chunkOf(h, chunkDone, chunkOffsetData, offsetDataBytes+int(h.length))
	return be.AppendUint64(c.append(dst, h.extended), h.offset)
}

// appendHoleChunk says that all of what was asked for reads zero. It is the only
// and last chunk of its reply.
func appendHoleChunk(dst []byte, h requestHeader) []byte {
	dst = chunkOf(h, chunkDone, chunkOffsetHole, offsetHoleBytes).append(dst, h.extended)
	dst = be.AppendUint64(dst, h.offset)
	return be.AppendUint32(dst, uint32(h.length))
}

// appendErrorChunk appends an ERROR chunk, the last of its reply.
func appendErrorChunk(dst []byte, h requestHeader, e Errno, text string) []byte {
	dst = chunkOf(h, chunkDone, chunkError, errorBytes+len(text)).append(dst, h.extended)
	dst = be.AppendUint32(dst, uint32(e))
	dst = be.AppendUint16(dst, uint16(len(text)))
	return append(dst, text...)
}

// parseErrorChunk decodes ERROR, and as much of other error chunks as is common.
func parseErrorChunk(b []byte) (e Errno, text string, err error) {
	if len(b) < errorBytes || int(be.Uint16(b[4:])) > len(b)-errorBytes {
		return 0, "", fmt.Errorf("error chunk of %d bytes: %w", len(b), errSyntax)
	}
	n := int(be.Uint16(b[4:]))
	return Errno(be.Uint32(b)), string(b[errorBytes : errorBytes+n]), nil
}

// stateFlags are the status bits of base:allocation.
type stateFlags uint32

const (
	stateHole stateFlags = 1 << 0
	stateZero stateFlags = 1 << 1
)

// descriptor is one extent of a BLOCK_STATUS reply. What its state means depends on
// the context: stateFlags, or a depth.
type descriptor struct {
	length uint64 // 32 bits unless extended
	state  stateFlags
}

// appendStatusChunk appends a BLOCK_STATUS chunk for one context.
func appendStatusChunk(dst []byte, h requestHeader, flags uint16, id uint32, ds []descriptor) []byte {
	if h.extended {
		return appendStatusExtChunk(dst, h, flags, id, ds)
	}
	dst = chunkOf(h, flags, chunkBlockStatus, statusIDBytes+descriptorBytes*len(ds)).append(dst, false)
	dst = be.AppendUint32(dst, id)
	for _, d := range ds {
		dst = be.AppendUint32(dst, uint32(d.length))
		dst = be.AppendUint32(dst, uint32(d.state))
	}
	return dst
}

func appendStatusExtChunk(dst []byte, h requestHeader, flags uint16, id uint32, ds []descriptor) []byte {
	dst = chunkOf(h, flags, chunkStatusExt, statusExtBytes+descriptorExtBytes*len(ds)).append(dst, true)
	dst = be.AppendUint32(dst, id)
	dst = be.AppendUint32(dst, uint32(len(ds)))
	for _, d := range ds {
		dst = be.AppendUint64(dst, d.length)
		dst = be.AppendUint64(dst, uint64(d.state))
	}
	return dst
}

func parseStatusExtChunk(b []byte) (id uint32, ds []descriptor, err error) {
	n := len(b) - statusExtBytes
	if n <= 0 || n%descriptorExtBytes != 0 || uint32(n/descriptorExtBytes) != be.Uint32(b[4:]) {
		return 0, nil, fmt.Errorf("extended block status chunk of %d bytes: %w", len(b), errSyntax)
	}
	ds = make([]descriptor, 0, n/descriptorExtBytes)
	for p := b[statusExtBytes:]; len(p) > 0; p = p[descriptorExtBytes:] {
		d := descriptor{be.Uint64(p), stateFlags(be.Uint64(p[8:]))}
		if d.length == 0 || d.length > math.MaxInt64 || be.Uint64(p[8:])>>32 != 0 {
			return 0, nil, fmt.Errorf("extended block status descriptor %d has %d bytes in state %#x: %w", len(ds), d.length, be.Uint64(p[8:]), errSyntax)
		}
		ds = append(ds, d)
	}
	return be.Uint32(b), ds, nil
}

func parseStatusChunk(b []byte) (id uint32, ds []descriptor, err error) {
	n := len(b) - statusIDBytes
	if n <= 0 || n%descriptorBytes != 0 {
		return 0, nil, fmt.Errorf("block status chunk of %d bytes: %w", len(b), errSyntax)
	}
	ds = make([]descriptor, 0, n/descriptorBytes)
	for p := b[statusIDBytes:]; len(p) > 0; p = p[descriptorBytes:] {
		d := descriptor{uint64(be.Uint32(p)), stateFlags(be.Uint32(p[4:]))}
		if d.length == 0 {
			return 0, nil, fmt.Errorf("block status descriptor %d has no length: %w", len(ds), errSyntax)
		}
		ds = append(ds, d)
	}
	return be.Uint32(b), ds, nil
}
