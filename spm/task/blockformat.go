package task

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/google/uuid"
)

// The layout of a BlockStore. Numbers are big-endian.
//
//	0          header, one sector of 512 bytes
//	32 KiB     slot 0: copy 0, 16 KiB; copy 1, 16 KiB
//	64 KiB     slot 1, and so on
//
//	header   0  magic, 16 bytes             copy   0  magic, 8 bytes
//	        16  version                            8  CRC-32C of what follows, with the record
//	        20  bytes of a copy                   12  bytes of the record; 0: the slot is free
//	        24  slots                             16  generation, 8 bytes
//	        28  0                                 24  number of the slot
//	        32  UUID of the store                 28  0
//	        48  CRC-32C of what precedes          32  UUID of the store
//	                                              48  the record, JSON
//
// The UUID tells our copies from what the device held before it was formatted.
const (
	copySize    = 16 << 10
	slotSize    = 2 * copySize
	headerSize  = 52
	copyHeader  = 48
	sectorSize  = 512
	blockFormat = 1
	slotsMax    = 1 << 16 // 2 GiB: nobody has that many tasks
)

var (
	headerMagic = [16]byte([]byte("TIDEMARK TASKS\r\n"))
	copyMagic   = [8]byte([]byte("TMTASK\r\n"))
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// A header describes a store.
type header struct {
	slots int
	id    uuid.UUID
}

func (h header) encode() []byte {
	p := make([]byte, 0, headerSize)
	p = append(p, headerMagic[:]...)
	p = binary.BigEndian.AppendUint32(p, blockFormat)
	p = binary.BigEndian.AppendUint32(p, copySize)
	p = binary.BigEndian.AppendUint32(p, uint32(h.slots))
	p = binary.BigEndian.AppendUint32(p, 0)
	p = append(p, h.id[:]...)
	return binary.BigEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

// ErrUnformatted: there is no store on the device.
var ErrUnformatted = errors.New("no store of tasks")

// decodeHeader reads the header of a store on a device of size bytes.
func decodeHeader(p []byte, size int64) (header, error) {
	if len(p) < headerSize || !bytes.Equal(p[:16], headerMagic[:]) {
		return header{}, fmt.Errorf("%w: expected %q at its beginning: format it", ErrUnformatted, headerMagic)
	}
	if v := binary.BigEndian.Uint32(p[16:]); v != blockFormat {
		return header{}, fmt.Errorf("store of tasks: version %d, expected %d: use a version of Tidemark that knows it", v, blockFormat)
	}
	if got, want := crc32.Checksum(p[:48], castagnoli), binary.BigEndian.Uint32(p[48:]); got != want {
		return header{}, fmt.Errorf("store of tasks: its header is damaged: checksum %08x, expected %08x", got, want)
	}
	if n := binary.BigEndian.Uint32(p[20:]); n != copySize {
		return header{}, fmt.Errorf("store of tasks: copies of %d bytes, expected %d", n, copySize)
	}
	h := header{slots: int(binary.BigEndian.Uint32(p[24:])), id: uuid.UUID(p[32:48])}
	if h.slots < 1 || h.slots > slotsMax || int64(1+h.slots)*slotSize > size {
		return header{}, fmt.Errorf("store of tasks: %d slots on a device of %d bytes", h.slots, size)
	}
	return h, nil
}

// A copyOf is one of the two copies of a slot.
type copyOf struct {
	generation uint64
	record     []byte // empty: the slot is free
}

// encode returns the bytes of a copy.
func (c copyOf) encode(h header, slot int) []byte {
	p := make([]byte, copyHeader, copyHeader+len(c.record))
	copy(p, copyMagic[:])
	binary.BigEndian.PutUint32(p[12:], uint32(len(c.record)))
	binary.BigEndian.PutUint64(p[16:], c.generation)
	binary.BigEndian.PutUint32(p[24:], uint32(slot))
	copy(p[32:], h.id[:])
	p = append(p, c.record...)
	binary.BigEndian.PutUint32(p[8:], crc32.Checksum(p[12:], castagnoli))
	return p
}

// decodeCopy reads a copy. It is not ours if nothing says that this store has
// written there; otherwise an error says that it is torn or damaged.
func decodeCopy(p []byte, h header, slot int) (c copyOf, ours bool, err error) {
	if len(p) < copyHeader || !bytes.Equal(p[:8], copyMagic[:]) || !bytes.Equal(p[32:48], h.id[:]) {
		return copyOf{}, false, nil
	}
	n := binary.BigEndian.Uint32(p[12:])
	if int64(n) > int64(len(p)-copyHeader) {
		return copyOf{}, true, fmt.Errorf("a record of %d bytes, at most %d are possible", n, len(p)-copyHeader)
	}
	p = p[:copyHeader+n]
	if got, want := crc32.Checksum(p[12:], castagnoli), binary.BigEndian.Uint32(p[8:]); got != want {
		return copyOf{}, true, fmt.Errorf("checksum %08x, expected %08x", got, want)
	}
	if at := binary.BigEndian.Uint32(p[24:]); at != uint32(slot) {
		return copyOf{}, true, fmt.Errorf("it belongs to slot %d", at)
	}
	return copyOf{binary.BigEndian.Uint64(p[16:]), p[copyHeader:]}, true, nil
}
