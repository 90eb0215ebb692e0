package nbd

import (
	"errors"
	"fmt"
)

// What is in each option and its replies: see wire.go.

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
