package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// This file is the protocol's bytes, and nothing else: layouts, numbers, encode
// and decode side by side. All integers are big-endian. Sections are those of
// the specification, doc/proto.md.

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

// ---- EXPORT_NAME ----------------------------------------------------------
//
// The data is the name. The answer has no header, and no zeroes when both
// sides have NO_ZEROES:
//
//	 0      8       10
//	+------+-------+-----------------+
//	| size | flags | 124 zero bytes  |
//	+------+-------+-----------------+

const (
	exportNameReplyBytes  = 10
	exportNameReplyZeroes = 124
)

func appendExportNameReply(dst []byte, size uint64, flags uint16, zeroes bool) []byte {
	dst = be.AppendUint64(dst, size)
	dst = be.AppendUint16(dst, flags)
	if zeroes {
		dst = append(dst, make([]byte, exportNameReplyZeroes)...)
	}
	return dst
}

// ---- INFO and GO ----------------------------------------------------------
//
//	 0             4             4+n     6+n
//	+-------------+-------------+-------+------------------
//	| name length | name        | count | 16-bit infos ...
//	+-------------+-------------+-------+------------------

// infoType is the number of an information item.
type infoType uint16

const (
	infoExport      infoType = 0
	infoName        infoType = 1
	infoDescription infoType = 2
	infoBlockSize   infoType = 3
)

// goRequest is the data of INFO and GO.
type goRequest struct {
	name  string
	infos []infoType
}

func (g goRequest) wants(t infoType) bool {
	for _, i := range g.infos {
		if i == t {
			return true
		}
	}
	return false
}

func (g goRequest) append(dst []byte) []byte {
	dst = be.AppendUint32(dst, uint32(len(g.name)))
	dst = append(dst, g.name...)
	dst = be.AppendUint16(dst, uint16(len(g.infos)))
	for _, i := range g.infos {
		dst = be.AppendUint16(dst, uint16(i))
	}
	return dst
}

func parseGoRequest(b []byte) (goRequest, error) {
	name, b, err := cutString(b)
	if err != nil {
		return goRequest{}, fmt.Errorf("export name: %w", err)
	}
	if len(b) < 2 || len(b)-2 != 2*int(be.Uint16(b)) {
		return goRequest{}, fmt.Errorf("%d bytes behind the export name do not hold the information requests: %w", len(b), errSyntax)
	}
	g := goRequest{name: name}
	for b = b[2:]; len(b) > 0; b = b[2:] {
		g.infos = append(g.infos, infoType(be.Uint16(b)))
	}
	return g, nil
}

// The information items, after the 16-bit type that they all begin with:
//
//	EXPORT       size 64, transmission flags 16
//	NAME         string
//	DESCRIPTION  string
//	BLOCK_SIZE   minimum 32, preferred 32, maximum payload 32

func appendInfoExport(dst []byte, size uint64, flags uint16) []byte {
	dst = be.AppendUint16(dst, uint16(infoExport))
	dst = be.AppendUint64(dst, size)
	return be.AppendUint16(dst, flags)
}

func appendInfoString(dst []byte, t infoType, s string) []byte {
	dst = be.AppendUint16(dst, uint16(t))
	return append(dst, s...)
}

func appendInfoBlockSize(dst []byte, s blockSizes) []byte {
	dst = be.AppendUint16(dst, uint16(infoBlockSize))
	dst = be.AppendUint32(dst, s.min)
	dst = be.AppendUint32(dst, s.preferred)
	return be.AppendUint32(dst, s.payload)
}

// blockSizes are the size constraints, in bytes.
type blockSizes struct{ min, preferred, payload uint32 }

// exportFacts collects the information items of one export.
type exportFacts struct {
	size              uint64
	flags             txFlags
	hasExport         bool
	name, description string
	sizes             blockSizes
	hasSizes          bool
}

// parseInfo adds one information item to f; unknown ones are ignored.
func (f *exportFacts) parseInfo(b []byte) error {
	if len(b) < 2 {
		return fmt.Errorf("information of %d bytes: %w", len(b), errSyntax)
	}
	t, b := infoType(be.Uint16(b)), b[2:]
	switch t {
	case infoExport:
		if len(b) != 10 {
			return fmt.Errorf("INFO_EXPORT of %d bytes, expected 12: %w", len(b)+2, errSyntax)
		}
		f.size, f.flags, f.hasExport = be.Uint64(b), txFlags(be.Uint16(b[8:])), true
	case infoName:
		f.name = string(b)
	case infoDescription:
		f.description = string(b)
	case infoBlockSize:
		if len(b) != 12 {
			return fmt.Errorf("INFO_BLOCK_SIZE of %d bytes, expected 14: %w", len(b)+2, errSyntax)
		}
		f.sizes = blockSizes{be.Uint32(b), be.Uint32(b[4:]), be.Uint32(b[8:])}
		f.hasSizes = true
	}
	return nil
}

// ---- LIST -----------------------------------------------------------------
//
// No data; one SERVER reply for each export:
//
//	 0             4      4+n
//	+-------------+------+-------------
//	| name length | name | description
//	+-------------+------+-------------

func appendServerReply(dst []byte, name, description string) []byte {
	dst = be.AppendUint32(dst, uint32(len(name)))
	dst = append(dst, name...)
	return append(dst, description...)
}

func parseServerReply(b []byte) (name, description string, err error) {
	name, b, err = cutString(b)
	return name, string(b), err
}

// ---- LIST_META_CONTEXT and SET_META_CONTEXT --------------------------------
//
//	 0             4      4+n     8+n
//	+-------------+------+-------+--------------------------------
//	| name length | name | count | (query length 32, query) ...
//	+-------------+------+-------+--------------------------------
//
// One META_CONTEXT reply for each context: id 32, name.

// metaRequest is the data of both options.
type metaRequest struct {
	name    string
	queries []string
}

const contextAllocation = "base:allocation"

func (m metaRequest) append(dst []byte) []byte {
	dst = be.AppendUint32(dst, uint32(len(m.name)))
	dst = append(dst, m.name...)
	dst = be.AppendUint32(dst, uint32(len(m.queries)))
	for _, q := range m.queries {
		dst = be.AppendUint32(dst, uint32(len(q)))
		dst = append(dst, q...)
	}
	return dst
}

func parseMetaRequest(b []byte) (metaRequest, error) {
	name, b, err := cutString(b)
	if err != nil {
		return metaRequest{}, fmt.Errorf("export name: %w", err)
	}
	if len(b) < 4 {
		return metaRequest{}, fmt.Errorf("no room for the number of queries: %w", errSyntax)
	}
	m := metaRequest{name: name}
	n, b := be.Uint32(b), b[4:]
	for i := range n { // ends with the data at the latest: a query has 4 bytes
		var q string
		if q, b, err = cutString(b); err != nil {
			return metaRequest{}, fmt.Errorf("query %d of %d: %w", i+1, n, err)
		}
		m.queries = append(m.queries, q)
	}
	if len(b) != 0 {
		return metaRequest{}, fmt.Errorf("%d bytes behind the last query: %w", len(b), errSyntax)
	}
	return m, nil
}

func appendMetaContext(dst []byte, id uint32, name string) []byte {
	dst = be.AppendUint32(dst, id)
	return append(dst, name...)
}

func parseMetaContext(b []byte) (id uint32, name string, err error) {
	if len(b) < 4 {
		return 0, "", fmt.Errorf("metadata context of %d bytes: %w", len(b), errSyntax)
	}
	return be.Uint32(b), string(b[4:]), nil
}

// errTooLong: a string above the specification's limit.
var errTooLong = errors.New("longer than 4096 bytes")

// cutString takes a string with a 32-bit length from the front of b.
func cutString(b []byte) (s string, rest []byte, err error) {
	if len(b) < 4 {
		return "", nil, fmt.Errorf("%d bytes left, expected a 32-bit length: %w", len(b), errSyntax)
	}
	n, b := be.Uint32(b), b[4:]
	if uint64(n) > uint64(len(b)) {
		return "", nil, fmt.Errorf("length %d, but %d bytes left: %w", n, len(b), errSyntax)
	}
	if n > stringBytesMax {
		return "", nil, fmt.Errorf("length %d: %w", n, errTooLong)
	}
	return string(b[:n]), b[n:], nil
}

// ---- Transmission ---------------------------------------------------------

// txFlags are the transmission flags of an export.
type txFlags uint16

const (
	txHasFlags        txFlags = 1 << 0
	txReadOnly        txFlags = 1 << 1
	txSendFlush       txFlags = 1 << 2
	txSendFUA         txFlags = 1 << 3
	txRotational      txFlags = 1 << 4
	txSendTrim        txFlags = 1 << 5
	txSendWriteZeroes txFlags = 1 << 6
	txSendDF          txFlags = 1 << 7
	txCanMultiConn    txFlags = 1 << 8
	txSendCache       txFlags = 1 << 10
	txSendFastZero    txFlags = 1 << 11
)

func (f txFlags) has(want txFlags) bool { return f&want == want }

// A request:
//
//	 0            4       6      8        16       24       28
//	+------------+-------+------+--------+--------+--------+------------
//	| 0x25609513 | flags | type | cookie | offset | length | payload of
//	+------------+-------+------+--------+--------+--------+ WRITE ...

const (
	magicRequest uint32 = 0x25609513

	requestBytes = 28
)

// command is the type of a request.
type command uint16

const (
	cmdRead        command = 0
	cmdWrite       command = 1
	cmdDisc        command = 2
	cmdFlush       command = 3
	cmdTrim        command = 4
	cmdCache       command = 5
	cmdWriteZeroes command = 6
	cmdBlockStatus command = 7
)

// cmdFlags are the flags of a request.
type cmdFlags uint16

const (
	cmdFlagFUA      cmdFlags = 1 << 0
	cmdFlagNoHole   cmdFlags = 1 << 1
	cmdFlagDF       cmdFlags = 1 << 2
	cmdFlagReqOne   cmdFlags = 1 << 3
	cmdFlagFastZero cmdFlags = 1 << 4
)

func (f cmdFlags) has(want cmdFlags) bool { return f&want == want }

// requestHeader is a request without its payload.
type requestHeader struct {
	flags  cmdFlags
	cmd    command
	cookie uint64
	offset uint64
	length uint32
}

func (h requestHeader) append(dst []byte) []byte {
	dst = be.AppendUint32(dst, magicRequest)
	dst = be.AppendUint16(dst, uint16(h.flags))
	dst = be.AppendUint16(dst, uint16(h.cmd))
	dst = be.AppendUint64(dst, h.cookie)
	dst = be.AppendUint64(dst, h.offset)
	return be.AppendUint32(dst, h.length)
}

func parseRequest(b []byte) (requestHeader, error) {
	if m := be.Uint32(b); m != magicRequest {
		return requestHeader{}, fmt.Errorf("request magic is %#x, expected %#x: %w", m, magicRequest, errSyntax)
	}
	return requestHeader{
		flags: cmdFlags(be.Uint16(b[4:])), cmd: command(be.Uint16(b[6:])), cookie: be.Uint64(b[8:]),
		offset: be.Uint64(b[16:]), length: be.Uint32(b[24:]),
	}, nil
}

// payload is the number of bytes that follow the header.
func (h requestHeader) payload() uint32 {
	if h.cmd == cmdWrite {
		return h.length
	}
	return 0
}

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

const (
	magicSimple uint32 = 0x67446698
	magicChunk  uint32 = 0x668e33ef

	simpleBytes = 16
	chunkBytes  = 20

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
	chunkError       chunkType = 1<<15 + 1
	chunkErrorOffset chunkType = 1<<15 + 2
)

func (t chunkType) isError() bool { return t&(1<<15) != 0 }

// chunkHeader is a chunk without its payload.
type chunkHeader struct {
	flags  uint16
	typ    chunkType
	cookie uint64
	length uint32
}

func (h chunkHeader) append(dst []byte) []byte {
	dst = be.AppendUint32(dst, magicChunk)
	dst = be.AppendUint16(dst, h.flags)
	dst = be.AppendUint16(dst, uint16(h.typ))
	dst = be.AppendUint64(dst, h.cookie)
	return be.AppendUint32(dst, h.length)
}

// parseChunk decodes what follows the magic.
func parseChunk(b []byte) chunkHeader {
	return chunkHeader{
		flags: be.Uint16(b), typ: chunkType(be.Uint16(b[2:])), cookie: be.Uint64(b[4:]), length: be.Uint32(b[12:]),
	}
}

// The payloads:
//
//	OFFSET_DATA   offset 64, data
//	OFFSET_HOLE   offset 64, length 32
//	BLOCK_STATUS  context id 32, (length 32, status 32) ...
//	ERROR         error 32, text length 16, text
//	ERROR_OFFSET  error 32, text length 16, text, offset 64

const (
	offsetDataBytes = 8 // in front of the data
	offsetHoleBytes = 12
	statusIDBytes   = 4
	descriptorBytes = 8
	errorBytes      = 6 // in front of the text
)

// appendDataChunk appends everything of an OFFSET_DATA chunk but the n bytes of
// data. It is the only and last chunk of its reply.
func appendDataChunk(dst []byte, cookie, offset uint64, n uint32) []byte {
	h := chunkHeader{chunkDone, chunkOffsetData, cookie, offsetDataBytes + n}
	return be.AppendUint64(h.append(dst), offset)
}

// appendErrorChunk appends an ERROR chunk, the last of its reply.
func appendErrorChunk(dst []byte, cookie uint64, e Errno, text string) []byte {
	dst = chunkHeader{chunkDone, chunkError, cookie, uint32(errorBytes + len(text))}.append(dst)
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

// descriptor is one extent of a BLOCK_STATUS reply.
type descriptor struct {
	length uint32
	state  stateFlags
}

// appendStatusChunk appends a BLOCK_STATUS chunk, the last of its reply.
func appendStatusChunk(dst []byte, cookie uint64, id uint32, ds []descriptor) []byte {
	dst = chunkHeader{chunkDone, chunkBlockStatus, cookie, uint32(statusIDBytes + descriptorBytes*len(ds))}.append(dst)
	dst = be.AppendUint32(dst, id)
	for _, d := range ds {
		dst = be.AppendUint32(dst, d.length)
		dst = be.AppendUint32(dst, uint32(d.state))
	}
	return dst
}

func parseStatusChunk(b []byte) (id uint32, ds []descriptor, err error) {
	n := len(b) - statusIDBytes
	if n <= 0 || n%descriptorBytes != 0 {
		return 0, nil, fmt.Errorf("block status chunk of %d bytes: %w", len(b), errSyntax)
	}
	ds = make([]descriptor, 0, n/descriptorBytes)
	for p := b[statusIDBytes:]; len(p) > 0; p = p[descriptorBytes:] {
		d := descriptor{be.Uint32(p), stateFlags(be.Uint32(p[4:]))}
		if d.length == 0 {
			return 0, nil, fmt.Errorf("block status descriptor %d has no length: %w", len(ds), errSyntax)
		}
		ds = append(ds, d)
	}
	return be.Uint32(b), ds, nil
}
