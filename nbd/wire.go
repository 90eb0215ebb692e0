package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The files wire*.go are the protocol's bytes, and nothing else: layouts, numbers,
// encode and decode side by side. All integers are big-endian. Sections are those of
// the specification, doc/proto.md. This one has how a handshake and an option look;
// wire_options.go has what is in each option, wire_request.go and wire_reply.go have
// the transmission.

// be is the byte order of everything on the wire.
var be = binary.BigEndian

// errSyntax: bytes that do not have the layout their kind has.
var errSyntax = errors.New("malformed")

// ---- Handshake ------------------------------------------------------------
//
// The server's greeting:
//
//	 0        8         16     18
//	+--------+---------+------+
//	|NBDMAGIC|IHAVEOPT | flags|
//	+--------+---------+------+
//
// The client answers with 32 bits of flags, then sends options.

const (
	magicNBD    uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption uint64 = 0x49484156454F5054 // "IHAVEOPT"
	magicReply  uint64 = 0x0003e889045565a9 // option replies

	greetingBytes    = 18
	clientFlagsBytes = 4
)

// Handshake flags (16 bits from the server) and client flags (32 bits back)
// have the same bits.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

func appendGreeting(dst []byte, flags uint16) []byte {
	dst = be.AppendUint64(dst, magicNBD)
	dst = be.AppendUint64(dst, magicOption)
	return be.AppendUint16(dst, flags)
}

func parseGreeting(b []byte) (flags uint16, err error) {
	if len(b) != greetingBytes || be.Uint64(b) != magicNBD {
		return 0, fmt.Errorf("greeting %x: not an NBD server: %w", b, errSyntax)
	}
	if m := be.Uint64(b[8:]); m != magicOption {
		return 0, fmt.Errorf("greeting's second magic is %#x, expected %#x (newstyle): %w", m, magicOption, errSyntax)
	}
	return be.Uint16(b[16:]), nil
}

// ---- Options --------------------------------------------------------------
//
//	 0         8        12       16
//	+---------+--------+--------+----------
//	|IHAVEOPT | option | length | data ...
//	+---------+--------+--------+----------

const optionHeaderBytes = 16

// option is the number of an option.
type option uint32

const (
	optExportName      option = 1
	optAbort           option = 2
	optList            option = 3
	optStartTLS        option = 5
	optInfo            option = 6
	optGo              option = 7
	optStructuredReply option = 8
	optListMeta        option = 9
	optSetMeta         option = 10
	optExtendedHeaders option = 11
)

func appendOption(dst []byte, o option, data []byte) []byte {
	dst = be.AppendUint64(dst, magicOption)
	dst = be.AppendUint32(dst, uint32(o))
	dst = be.AppendUint32(dst, uint32(len(data)))
	return append(dst, data...)
}

func parseOption(b []byte) (o option, length uint32, err error) {
	if m := be.Uint64(b); m != magicOption {
		return 0, 0, fmt.Errorf("option magic is %#x, expected %#x: %w", m, magicOption, errSyntax)
	}
	return option(be.Uint32(b[8:])), be.Uint32(b[12:]), nil
}

// ---- Option replies -------------------------------------------------------
//
//	 0                  8        12     16       20
//	+------------------+--------+------+--------+----------
//	| 0x3e889045565a9  | option | type | length | data ...
//	+------------------+--------+------+--------+----------

const replyHeaderBytes = 20

// repType is the type of an option reply; the errors have the highest bit.
type repType uint32

const (
	repAck         repType = 1
	repServer      repType = 2
	repInfo        repType = 3
	repMetaContext repType = 4

	repErr             repType = 1 << 31
	repErrUnsup                = repErr + 1
	repErrPolicy               = repErr + 2
	repErrInvalid              = repErr + 3
	repErrPlatform             = repErr + 4
	repErrTLSReqd              = repErr + 5
	repErrUnknown              = repErr + 6
	repErrShutdown             = repErr + 7
	repErrBlockSize            = repErr + 8
	repErrTooBig               = repErr + 9
	repErrExtHeaderReq         = repErr + 10
)

func (t repType) isError() bool { return t&repErr != 0 }

func (t repType) String() string {
	names := [...]string{
		1: "ERR_UNSUP", 2: "ERR_POLICY", 3: "ERR_INVALID", 4: "ERR_PLATFORM", 5: "ERR_TLS_REQD",
		6: "ERR_UNKNOWN", 7: "ERR_SHUTDOWN", 8: "ERR_BLOCK_SIZE_REQD", 9: "ERR_TOO_BIG", 10: "ERR_EXT_HEADER_REQD",
	}
	if i := t &^ repErr; t.isError() && i > 0 && int(i) < len(names) {
		return names[i]
	}
	return fmt.Sprintf("reply %#x", uint32(t))
}

func appendOptionReply(dst []byte, o option, t repType, data []byte) []byte {
	dst = be.AppendUint64(dst, magicReply)
	dst = be.AppendUint32(dst, uint32(o))
	dst = be.AppendUint32(dst, uint32(t))
	dst = be.AppendUint32(dst, uint32(len(data)))
	return append(dst, data...)
}

func parseOptionReply(b []byte) (o option, t repType, length uint32, err error) {
	if m := be.Uint64(b); m != magicReply {
		return 0, 0, 0, fmt.Errorf("option reply magic is %#x, expected %#x: %w", m, magicReply, errSyntax)
	}
	return option(be.Uint32(b[8:])), repType(be.Uint32(b[12:])), be.Uint32(b[16:]), nil
}
