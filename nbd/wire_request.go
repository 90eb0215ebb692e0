package nbd

import "fmt"

// The flags of an export, and what a client sends in the transmission: see wire.go.

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
