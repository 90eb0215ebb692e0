package crashtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"tidemark/internal/block"
	"tidemark/internal/crashlab"
)

// named is what the first cluster says of an image besides its tables: which file is
// behind it, in which format, and the extensions that others have put there.
type named struct {
	backing    string
	extensions map[uint32][]byte
}

// readNamed reads it with the audit's own eyes.
func readNamed(f block.File) (named, error) {
	a := &auditor{f: f}
	if err := a.header(); err != nil {
		return named{}, err
	}
	first, err := a.read(0, a.cluster())
	if err != nil {
		return named{}, err
	}
	n := named{extensions: map[uint32][]byte{}}
	at, end := int64(72), int64(len(first))
	if binary.BigEndian.Uint32(first[4:]) >= 3 {
		at = int64(binary.BigEndian.Uint32(first[100:]))
	}
	if off, size := int64(binary.BigEndian.Uint64(first[8:])), int64(binary.BigEndian.Uint32(first[16:])); off > 0 {
		if off+size > end {
			return n, fmt.Errorf("the backing file's name, %d bytes at %d, is outside the first cluster", size, off)
		}
		n.backing, end = string(first[off:off+size]), off
	}
	for at+8 <= end {
		kind, size := binary.BigEndian.Uint32(first[at:]), int64(binary.BigEndian.Uint32(first[at+4:]))
		if kind == 0 {
			break
		}
		if at += 8; at+size > int64(len(first)) {
			return n, fmt.Errorf("header extension %08x, %d bytes at %d, is outside the first cluster", kind, size, at)
		}
		n.extensions[kind] = first[at : at+size]
		at += (size + 7) &^ 7
	}
	return n, nil
}

// auditNamed returns next with a look at what the first cluster says: an image that has
// lost the name of its backing file has lost what is in there.
func auditNamed(want named, next func(context.Context, block.File) error) func(context.Context, block.File) error {
	return func(ctx context.Context, f block.File) error {
		got, err := readNamed(f)
		if err != nil {
			return err
		}
		if got.backing != want.backing {
			return &crashlab.Fault{Oracle: 4, Text: fmt.Sprintf("the backing file's name is %.60q, it was %.60q", got.backing, want.backing)}
		}
		for kind, data := range want.extensions {
			if !bytes.Equal(got.extensions[kind], data) {
				return &crashlab.Fault{Oracle: 4, Text: fmt.Sprintf("header extension %08x is %.60q, it was %.60q", kind, got.extensions[kind], data)}
			}
		}
		return next(ctx, f)
	}
}
