package qcow2

import (
	"errors"
	"fmt"

	"tidemark/internal/block"
)

// nowPieces bounds a write that is done inline.
const nowPieces = 8

// writeNow is WriteAt with NoWait. It finds, or publishes, the places of all bytes
// before it writes any; what was published reads as before.
func (im *Image) writeNow(p []byte, off int64, f block.Flags) error {
	if im.direct || f.Has(block.FUA) || (off|int64(len(p)))&(maxSliceBytes-1) != 0 || im.throttled() {
		return block.ErrWouldBlock
	}
	t, err := im.begin(true, "write", off, int64(len(p)))
	if err != nil {
		return err
	}
	defer im.grace.leave(t)
	var places [nowPieces]struct{ host, n int64 }
	k := 0
	for at := off; at < off+int64(len(p)); k++ {
		if k == len(places) {
			return block.ErrWouldBlock
		}
		host, n := im.placeNow(at, off+int64(len(p))-at)
		switch {
		case n == 0 && k == 0 && im.copyNow(p, off):
			return im.complete(nil, 0)
		case n == 0:
			return block.ErrWouldBlock
		}
		places[k].host, places[k].n = host, n
		at += n
	}
	for _, place := range places[:k] {
		if _, err = im.file.WriteAt(p[:place.n], place.host); err != nil {
			break
		}
		p = p[place.n:]
	}
	if errors.Is(err, block.ErrNoSpace) {
		return block.ErrWouldBlock // to be held; writing the same again does no harm
	}
	if err != nil {
		err = fmt.Errorf("write at %d: %w", off, err)
	}
	return im.complete(err, 0)
}

// placeNow is where the bytes at off are to be written, as far as that is known or
// can be decided without waiting; n is 0 if not.
func (im *Image) placeNow(off, want int64) (host, n int64) {
	s := im.sliceNow(off >> im.geo.ClusterBits)
	if s == nil {
		return 0, 0
	}
	piece, err := im.locate(s, off, want)
	if err != nil {
		return 0, 0
	}
	switch decideWrite(piece.situation) {
	case actInPlace:
		return piece.host, piece.n
	case actAllocate:
		if im.ring.Load() == nil || s.shared.Load() {
			return 0, 0
		}
		ch, ok := im.startChange(im.geo.Clusters(piece.n) + 1)
		if !ok {
			return 0, 0
		}
		host, n, _, err = im.allocate(off, piece.n, &ch)
		_ = im.finish(&ch) // there is a ring: nothing is written
		if err != nil {
			n = 0
		}
		return host, n
	}
	return 0, 0
}
