package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
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

// The names of the metadata contexts.
const (
	contextAllocation = "base:allocation"
	contextDepth      = "qemu:allocation-depth"
)

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
	txStatusPayload   txFlags = 1 << 12 // BLOCK_STATUS may carry a filter
)

func (f txFlags) has(want txFlags) bool { return f&want == want }

// A request:
//
//	 0            4       6      8        16       24       28
//	+------------+-------+------+--------+--------+--------+------------
//	| 0x25609513 | flags | type | cookie | offset | length | payload of
//	+------------+-------+------+--------+--------+--------+ WRITE ...
//
// With extended headers, which were agreed by EXTENDED_HEADERS:
//
//	 0            4       6      8        16       24       32
//	+------------+-------+------+--------+--------+--------+------------
//	| 0x21e41c71 | flags | type | cookie | offset | length | payload ...
//	+------------+-------+------+--------+--------+--------+------------

const (
	magicRequest    uint32 = 0x25609513
	magicExtRequest uint32 = 0x21e41c71

	requestBytes    = 28
	extRequestBytes = 32
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
	cmdFlagPayload  cmdFlags = 1 << 5 // extended: the length is that of a payload
)

func (f cmdFlags) has(want cmdFlags) bool { return f&want == want }

// requestHeader is a request without its payload.
type requestHeader struct {
	extended bool // the layout, and that of the reply
	flags    cmdFlags
	cmd      command
	cookie   uint64
	offset   uint64
	length   uint64 // 32 bits unless extended
}

func (h requestHeader) append(dst []byte) []byte {
	magic := magicRequest
	if h.extended {
		magic = magicExtRequest
	}
	dst = be.AppendUint32(dst, magic)
	dst = be.AppendUint16(dst, uint16(h.flags))
	dst = be.AppendUint16(dst, uint16(h.cmd))
	dst = be.AppendUint64(dst, h.cookie)
	dst = be.AppendUint64(dst, h.offset)
	if h.extended {
		return be.AppendUint64(dst, h.length)
	}
	return be.AppendUint32(dst, uint32(h.length))
}

// requestHeaderBytes is the length of a header.
func requestHeaderBytes(extended bool) int {
	if extended {
		return extRequestBytes
	}
	return requestBytes
}

// parseRequest decodes a header. Which of the two layouts it is was agreed before,
// and another one ends the connection.
func parseRequest(b []byte, extended bool) (requestHeader, error) {
	h := requestHeader{
		extended: extended, flags: cmdFlags(be.Uint16(b[4:])), cmd: command(be.Uint16(b[6:])),
		cookie: be.Uint64(b[8:]), offset: be.Uint64(b[16:]),
	}
	want := magicRequest
	if extended {
		want, h.length = magicExtRequest, be.Uint64(b[24:])
	} else {
		h.length = uint64(be.Uint32(b[24:]))
	}
	if m := be.Uint32(b); m != want {
		return requestHeader{}, fmt.Errorf("request magic is %#x, expected %#x: %w", m, want, errSyntax)
	}
	return h, nil
}

// payload is the number of bytes that follow the header.
func (h requestHeader) payload() uint64 {
	if h.cmd == cmdWrite || h.extended && h.flags.has(cmdFlagPayload) {
		return h.length
	}
	return 0
}

// The payload of BLOCK_STATUS chooses among the contexts that were negotiated:
//
//	 0               8
//	+---------------+--------------------
//	| effect length | context id 32 ...
//	+---------------+--------------------

const filterBytes = 8 // without ids

func appendFilter(dst []byte, effect uint64, ids ...uint32) []byte {
	dst = be.AppendUint64(dst, effect)
	for _, id := range ids {
		dst = be.AppendUint32(dst, id)
	}
	return dst
}

// parseFilter decodes a filter of at most so many ids.
func parseFilter(b []byte, idsMax int) (effect uint64, ids []uint32, err error) {
	if n := len(b) - filterBytes; n < 0 || n%4 != 0 || n > 4*idsMax {
		return 0, nil, fmt.Errorf("filter of %d bytes: %w", len(b), errSyntax)
	}
	for p := b[filterBytes:]; len(p) > 0; p = p[4:] {
		ids = append(ids, be.Uint32(p))
	}
	return be.Uint64(b), ids, nil
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
