package format

import (
	"encoding/binary"
	"fmt"
)

// ExtPadding is Tidemark's own header extension: room for another one, of any
// content. Programs that do not know it ignore and keep it.
const ExtPadding ExtensionType = 0x54644d50

// MaxBackingFormat is how long the name of a backing file's format may be so that
// its extension can be written in place.
const MaxBackingFormat = 8

// SectorSize is what a power cut leaves old or new, so the name of the backing file,
// its place and its format change together where the latter two are in the first
// sector of an image. The name itself is written elsewhere before, and cleared in
// its old place afterwards.
//
//	         sector 0                                  rest of the first cluster
//	before   header | format: qcow2 | names ... | end  | old name |
//	B1       header | format: qcow2 | names ... | end  | old name | new name |
//	B2       header | format: raw   | names ... | end  | old name | new name |
//	B3       header | format: raw   | names ... | end  |          | new name |
//
// An extension for the format that is not there takes the place of one that holds
// nothing of importance: padding, or the feature name table.

// A BackingChange is the first cluster of an image at the three steps of a change
// of its backing file. B1 may be written in any order; B2 differs from it in the
// first sector only, B3 from that behind the extensions.
type BackingChange struct{ B1, B2, B3 []byte }

// ChangeBacking plans that the image whose first cluster is given has another
// backing file, or with name "" none.
func (h *Header) ChangeBacking(cluster []byte, name, format string) (*BackingChange, error) {
	switch {
	case len(name) > MaxBackingName:
		return nil, fmt.Errorf("backing file name of %d bytes: expected at most %d", len(name), MaxBackingName)
	case (name == "") != (format == "") || len(format) > MaxBackingFormat:
		return nil, fmt.Errorf("backing file %q of format %q: expected both or none, and at most %d bytes of format", name, format, MaxBackingFormat)
	case h.extensionsEnd == 0:
		return nil, &UnsupportedError{Feature: "a header without an end of its extensions, for changing the backing file", Advice: "convert it with qemu-img convert"}
	}
	b1 := append([]byte(nil), cluster...)
	clear(b1[h.extensionsEnd+extensionHeaderLen:])
	old := int64(len(h.BackingFile))
	copy(b1[h.BackingOffset:], h.BackingFile)
	if old == 0 {
		h.BackingOffset = 0
	}
	at, err := h.placeForName(int64(len(name)))
	if err != nil {
		return nil, err
	}
	copy(b1[at:], name)
	c := &BackingChange{B1: b1, B2: append([]byte(nil), b1...)}
	if err := h.putFormat(c.B2, format); err != nil {
		return nil, err
	}
	PutBackingOffset(c.B2, at)
	binary.BigEndian.PutUint32(c.B2[16:], uint32(len(name)))
	c.B3 = append([]byte(nil), c.B2...)
	if old > 0 {
		clear(c.B3[h.BackingOffset : h.BackingOffset+old])
	}
	return c, nil
}

// placeForName returns a place for n bytes in the first cluster that is neither
// the extensions' nor the present name's: as far behind as possible, so that there
// is room for more extensions. It is 0 for no name.
func (h *Header) placeForName(n int64) (int64, error) {
	if n == 0 {
		return 0, nil
	}
	from := h.extensionsEnd + extensionHeaderLen
	old, oldEnd := h.BackingOffset, h.BackingOffset+int64(len(h.BackingFile))
	last := (h.ClusterSize() - n) &^ 7
	if last >= max(from, oldEnd) {
		return last, nil
	}
	if before := (old - n) &^ 7; before >= from {
		return before, nil
	}
	return 0, fmt.Errorf("backing file name of %d bytes: the first cluster of %d bytes has no room for it", n, h.ClusterSize())
}

// putFormat writes the extension with the format into the first sector of cluster,
// or padding in its place.
func (h *Header) putFormat(cluster []byte, format string) error {
	const need = extensionHeaderLen + MaxBackingFormat
	if h.BackingFormat() == format {
		return nil
	}
	e, ok := h.donor(format == "")
	if !ok {
		if format == "" {
			return nil // there is none
		}
		return &UnsupportedError{Feature: "a header without room for the backing file's format in its first sector", Advice: "convert it with qemu-img convert"}
	}
	start, size := e.Off-extensionHeaderLen, (int64(len(e.Data))+7)&^7
	be := binary.BigEndian
	put := func(at int64, t ExtensionType, n int64) {
		be.PutUint32(cluster[at:], uint32(t))
		be.PutUint32(cluster[at+4:], uint32(n))
	}
	if format == "" {
		put(start, ExtPadding, size)
		return nil
	}
	put(start, ExtBackingFormat, int64(len(format)))
	clear(cluster[e.Off : e.Off+MaxBackingFormat])
	copy(cluster[e.Off:], format)
	if rest := size - MaxBackingFormat; rest >= extensionHeaderLen {
		put(start+need, ExtPadding, rest-extensionHeaderLen)
	}
	return nil
}

// donor is the extension whose place in the first sector the format may have: its
// own, or unless that is to go that of something that holds nothing of importance.
func (h *Header) donor(own bool) (Extension, bool) {
	fits := func(e Extension) bool {
		size := (int64(len(e.Data)) + 7) &^ 7
		end := e.Off + MaxBackingFormat
		if size > MaxBackingFormat {
			end += extensionHeaderLen // of the padding behind it
		}
		return size >= MaxBackingFormat && end <= SectorSize
	}
	types := []ExtensionType{ExtBackingFormat, ExtPadding, ExtFeatureNames}
	if own {
		types = types[:1]
	}
	for _, t := range types {
		for _, e := range h.Extensions {
			if e.Type == t && (fits(e) || own && e.Off <= SectorSize) {
				return e, true
			}
		}
		if _, has := h.FindExtension(ExtBackingFormat); has {
			break // a second one would contradict it
		}
	}
	return Extension{}, false
}
