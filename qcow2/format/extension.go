package format

import (
	"encoding/binary"
	"fmt"
)

// ExtensionType is the type of a header extension.
type ExtensionType uint32

// The header extensions that the specification defines.
const (
	ExtEnd           ExtensionType = 0x00000000
	ExtBackingFormat ExtensionType = 0xe2792aca
	ExtFeatureNames  ExtensionType = 0x6803f857
	ExtBitmaps       ExtensionType = 0x23852875
	ExtCrypto        ExtensionType = 0x0537be77
	ExtDataFile      ExtensionType = 0x44415441
)

// An Extension is a header extension: a type, a length, the data, and padding
// to a multiple of 8 bytes. An unknown one is kept as it is.
type Extension struct {
	Type ExtensionType
	Data []byte
}

const extensionHeaderLen = 8

// Extension returns the data of the first extension of type t, nil if there is
// none.
func (h *Header) Extension(t ExtensionType) []byte {
	for _, e := range h.Extensions {
		if e.Type == t {
			return e.Data
		}
	}
	return nil
}

// BackingFormat is the format name of the backing file, "" if none is given.
func (h *Header) BackingFormat() string { return string(h.Extension(ExtBackingFormat)) }

// decodeExtensions decodes the extension area b, which starts at offset at of
// the file. The area ends with ExtEnd or with b.
func decodeExtensions(b []byte, at int64) ([]Extension, error) {
	var exts []Extension
	for len(b) >= extensionHeaderLen {
		t := ExtensionType(binary.BigEndian.Uint32(b))
		n := int64(binary.BigEndian.Uint32(b[4:]))
		if t == ExtEnd {
			break
		}
		b, at = b[extensionHeaderLen:], at+extensionHeaderLen
		if n > int64(len(b)) {
			return nil, corrupt(fmt.Sprintf("header extension 0x%08x", uint32(t)), at-4, n, "at most the %d bytes left in the header", len(b))
		}
		exts = append(exts, Extension{t, append([]byte(nil), b[:n]...)})
		padded := min((n+7)&^7, int64(len(b)))
		b, at = b[padded:], at+padded
	}
	return exts, nil
}

// encodeExtensions is the reverse, the end mark included.
func encodeExtensions(exts []Extension) []byte {
	var b []byte
	for _, e := range exts {
		b = binary.BigEndian.AppendUint32(b, uint32(e.Type))
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.Data)))
		b = append(b, e.Data...)
		b = append(b, make([]byte, -len(e.Data)&7)...)
	}
	return append(b, make([]byte, extensionHeaderLen)...)
}
