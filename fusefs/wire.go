//go:build linux

package fusefs

import (
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// This file knows the bytes of the requests that are served without go-fuse: struct
// fuse_in_header, fuse_read_in, fuse_write_in, fuse_interrupt_in, fuse_out_header and
// fuse_write_out of linux/fuse.h, in the byte order of the machine.

const (
	headerBytes   = 40
	transferBytes = headerBytes + 40 // a read, or a write before its data: they have the same layout
	replyBytes    = 16
	writtenBytes  = replyBytes + 8
)

// The operations that go-fuse does not export.
const (
	opRead      = 15
	opWrite     = 16
	opFsync     = 20
	opInit      = 26
	opReaddir   = 28
	opInterrupt = 36
)

// A header is what every request begins with.
type header struct {
	op     uint32
	unique uint64 // names the request
	node   uint64
	thread uint32 // the caller's, 0 if it is not visible from here
}

// parseHeader reports false if b is no request.
func parseHeader(b []byte) (header, bool) {
	if len(b) < headerBytes || uint64(binary.NativeEndian.Uint32(b)) != uint64(len(b)) {
		return header{}, false
	}
	return header{
		op:     binary.NativeEndian.Uint32(b[4:]),
		unique: binary.NativeEndian.Uint64(b[8:]),
		node:   binary.NativeEndian.Uint64(b[16:]),
		thread: binary.NativeEndian.Uint32(b[32:]),
	}, true
}

// A transfer is a read or a write.
type transfer struct {
	off  uint64 // bytes
	size uint32 // bytes
	open uint32 // the flags of open(2)
}

func parseTransfer(b []byte) (transfer, bool) {
	if len(b) < transferBytes {
		return transfer{}, false
	}
	return transfer{
		off:  binary.NativeEndian.Uint64(b[48:]),
		size: binary.NativeEndian.Uint32(b[56:]),
		open: binary.NativeEndian.Uint32(b[72:]),
	}, true
}

// parseInterrupt returns the unique of the request whose caller got a signal.
func parseInterrupt(b []byte) (unique uint64, ok bool) {
	if len(b) < headerBytes+8 {
		return 0, false
	}
	return binary.NativeEndian.Uint64(b[headerBytes:]), true
}

// putReply fills the first replyBytes of b, the reply as a whole.
func putReply(b []byte, unique uint64, st fuse.Status) {
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint32(b[4:], uint32(-st))
	binary.NativeEndian.PutUint64(b[8:], unique)
}

// putWritten makes b, of writtenBytes, the reply to a write of n bytes.
func putWritten(b []byte, unique uint64, n uint32) {
	putReply(b, unique, fuse.OK)
	binary.NativeEndian.PutUint32(b[replyBytes:], n)
	binary.NativeEndian.PutUint32(b[replyBytes+4:], 0)
}

// statusOf is what a reply says.
func statusOf(reply []byte) fuse.Status {
	return -fuse.Status(int32(binary.NativeEndian.Uint32(reply[4:])))
}
