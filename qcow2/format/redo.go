package format

import (
	"encoding/binary"
	"fmt"
)

// ExtRedo is Tidemark's own header extension: which redo ring, in the memory of
// the host, belongs to the image. It counts only while AutoclearRedo is set.
//
//	0-3    version, 1
//	4-7    0
//	8-15   number of the ring
const ExtRedo ExtensionType = 0x54644d4c

// AutoclearRedo says that nobody but Tidemark has written to the image since
// ExtRedo was written. It is set while an image is open for writing; a program
// that does not know it clears it when it opens the image for writing, as the
// specification demands.
const AutoclearRedo = 1 << 63

const redoVersion = 1

// RedoLen is the length of the extension's data in bytes.
const RedoLen = 16

// PutRedo writes the data of the extension into b.
func PutRedo(b []byte, id uint64) {
	binary.BigEndian.PutUint32(b, redoVersion)
	binary.BigEndian.PutUint32(b[4:], 0)
	binary.BigEndian.PutUint64(b[8:], id)
}

// DecodeRedo is the reverse.
func DecodeRedo(b []byte) (id uint64, err error) {
	if len(b) != RedoLen {
		return 0, corrupt("redo extension", -1, fmt.Sprintf("%d bytes", len(b)), "%d bytes", RedoLen)
	}
	if v := binary.BigEndian.Uint32(b); v != redoVersion {
		return 0, &UnsupportedError{Feature: fmt.Sprintf("version %d of the redo extension", v)}
	}
	return binary.BigEndian.Uint64(b[8:]), nil
}
