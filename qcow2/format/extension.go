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
	Off  int64 // of Data in the image, set by decoding
}

const extensionHeaderLen = 8

// Extension returns the data of the first extension of type t, nil if there is
// none.
func (h *Header) Extension(t ExtensionType) []byte {
	e, _ := h.FindExtension(t)
	return e.Data
}

// FindExtension returns the first extension of type t.
func (h *Header) FindExtension(t ExtensionType) (Extension, bool) {
	for _, e := range h.Extensions {
		if e.Type == t {
			return e, true
		}
	}
	return Extension{}, false
}

// BackingFormat is the format name of the backing file, "" if none is given.
func (h *Header) BackingFormat() string { return string(h.Extension(ExtBackingFormat)) }

// decodeExtensions decodes the extension area b, which starts at offset at of
// the file. The area ends with ExtEnd or with b; end is the offset of the former,
// 0 if there is none.
func decodeExtensions(b []byte, at int64) (exts []Extension, end int64, err error) {
	for len(b) >= extensionHeaderLen {
		t := ExtensionType(binary.BigEndian.Uint32(b))
		n := int64(binary.BigEndian.Uint32(b[4:]))
		if t == ExtEnd {
			return exts, at, nil
		}
		b, at = b[extensionHeaderLen:], at+extensionHeaderLen
		if n > int64(len(b)) {
			return nil, 0, corrupt(fmt.Sprintf("header extension 0x%08x", uint32(t)), at-4, n, "at most the %d bytes left in the header", len(b))
		}
		exts = append(exts, Extension{t, append([]byte(nil), b[:n]...), at})
		padded := min((n+7)&^7, int64(len(b)))
		b, at = b[padded:], at+padded
	}
	return exts, 0, nil
}

// PlaceForExtension returns the offset at which an extension with n bytes of data
// can be added to an image, together with the bytes to write there: its header,
// data and a new end mark. Only the first 8 bytes replace something, the old end
// mark, so they are to be written last. ok is false if there is no room.
func (h *Header) PlaceForExtension(t ExtensionType, data []byte) (off int64, b []byte, ok bool) {
	b = encodeExtensions([]Extension{{Type: t, Data: data}})
	end := h.ClusterSize()
	if h.BackingOffset > 0 {
		end = h.BackingOffset
	}
	return h.extensionsEnd, b, h.extensionsEnd > 0 && int64(len(b)) <= end-h.extensionsEnd
}

// encodeExtensions is the reverse of decodeExtensions, the end mark included.
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
