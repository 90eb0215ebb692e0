package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"tidemark/internal/block"
	"tidemark/qcow2/format"
)

// ReadAt reads len(p) bytes at off. With NoWait it reads what the tables in memory
// say, from the host's cache; where either does not have it, or there is something to
// decompress, it answers ErrWouldBlock.
func (im *Image) ReadAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	im.warm(off)
	t, err := im.begin(false, "read", off, int64(len(p)))
	if err != nil {
		return err
	}
	defer im.grace.leave(t)
	if f.Has(block.NoWait) {
		return im.readNow(ctx, p, off)
	}
	return im.read(ctx, p, off)
}

// read fills p from what the tables say. Its caller is in progress (grace), so
// that no host cluster is reused under it.
func (im *Image) read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := im.readSome(ctx, p, off)
		if err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readNow is ReadAt with NoWait.
func (im *Image) readNow(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		s := im.sliceNow(off >> im.geo.ClusterBits)
		if s == nil {
			return block.ErrWouldBlock
		}
		piece, err := im.locate(s, off, int64(len(p)))
		if err != nil || !im.readPieceNow(ctx, p[:piece.n], piece) {
			return block.ErrWouldBlock
		}
		p, off = p[piece.n:], off+piece.n
	}
	return nil
}

// readPieceNow is readPiece without waiting. It reports whether all of p was read.
func (im *Image) readPieceNow(ctx context.Context, p []byte, piece piece) bool {
	switch {
	case piece.readsZero():
		clear(p)
		return true
	case piece.kind == format.Data:
		return !im.direct && im.file.ReadNow(p, piece.host)
	case piece.kind == format.Compressed:
		return false
	}
	return im.readBacking(ctx, p, piece.off, block.NoWait) == nil
}

// readsZero reports whether there is nothing to read.
func (p piece) readsZero() bool {
	switch p.kind {
	case format.ZeroPlain, format.ZeroAllocated:
		return true
	case format.Unallocated, format.UnallocatedAlloc:
		return !p.backed
	}
	return false
}

// readSome reads the first piece of what is asked for.
func (im *Image) readSome(ctx context.Context, p []byte, off int64) (int64, error) {
	piece, err := im.find(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	return piece.n, im.readPiece(ctx, p[:piece.n], piece)
}

// readPiece reads all of a piece, or its first bytes, into p.
func (im *Image) readPiece(ctx context.Context, p []byte, piece piece) error {
	switch {
	case piece.readsZero():
		clear(p)
		return nil
	case piece.kind == format.Data:
		n, err := im.file.ReadAt(p, piece.host)
		if n < len(p) && err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		clear(p[n:]) // a read-only image may end inside its last cluster
		return nil
	case piece.kind == format.Compressed:
		return im.readCompressed(p, piece)
	}
	return im.readBacking(ctx, p, piece.off, 0)
}

// readBacking reads from the backing file, and zeroes where that has ended.
func (im *Image) readBacking(ctx context.Context, p []byte, off int64, f block.Flags) error {
	n := max(min(int64(len(p)), im.backingSize()-off), 0)
	clear(p[n:])
	if n == 0 {
		return nil
	}
	if err := im.opts.Backing.ReadAt(ctx, p[:n], off, f); err != nil {
		return fmt.Errorf("backing file: %w", err)
	}
	return nil
}

// clusterBuffers holds buffers of one cluster size each; compressed clusters are
// read and clusters are copied through them.
var clusterBuffers [format.MaxClusterBits + 2]sync.Pool

// getBuffer returns a buffer of 1<<bits bytes, of any content.
func getBuffer(bits uint) *[]byte {
	if b, ok := clusterBuffers[bits].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 1<<bits)
	return &b
}

func putBuffer(bits uint, b *[]byte) { clusterBuffers[bits].Put(b) }

// readCompressed reads p, which lies in one compressed cluster.
func (im *Image) readCompressed(p []byte, piece piece) error {
	bits := im.geo.ClusterBits
	whole, sectors := getBuffer(bits), getBuffer(bits+1)
	defer putBuffer(bits, whole)
	defer putBuffer(bits+1, sectors)
	off, n := piece.pair.Entry.CompressedRange(im.geo)
	if n > int64(len(*sectors)) {
		return &format.CorruptError{What: "compressed cluster", Off: off, Want: fmt.Sprintf("at most %d bytes", len(*sectors)), Got: fmt.Sprint(n)}
	}
	// The last sectors may lie behind the end of the file, if the stream does
	// not reach them.
	got, err := im.file.ReadAt((*sectors)[:n], off)
	if int64(got) < n && err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := decompress(*whole, (*sectors)[:got], im.compression); err != nil {
		return fmt.Errorf("guest cluster %d, compressed at %d: %w", piece.off>>bits, off, err)
	}
	copy(p, (*whole)[piece.off&(im.geo.ClusterSize()-1):])
	return nil
}

// AppendExtents appends the extents of n bytes at off.
func (im *Image) AppendExtents(ctx context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	t, err := im.begin(false, "extents of", off, n)
	if err != nil {
		return dst, err
	}
	defer im.grace.leave(t)
	room := max(cap(dst)-len(dst), 1)
	first := len(dst)
	for end := off + n; off < end; {
		next, err := im.extentsAt(ctx, off, end-off)
		if err != nil {
			return dst, fmt.Errorf("extents at %d: %w", off, err)
		}
		for _, e := range next {
			off = e.End()
			if last := len(dst) - 1; last >= first && dst[last].State == e.State && dst[last].Depth == e.Depth && follows(dst[last].Host, dst[last].Len, e.Host) {
				dst[last].Len += e.Len
				continue
			}
			if len(dst)-first == room {
				return dst, nil
			}
			dst = append(dst, e)
		}
	}
	return dst, nil
}

// extentsAt are the first extents at off: one of this image's, or those of the
// backing file that one piece shows.
func (im *Image) extentsAt(ctx context.Context, off, n int64) ([]block.Extent, error) {
	p, err := im.find(off, n)
	if err != nil {
		return nil, err
	}
	open := p.kind == format.Unallocated || p.kind == format.UnallocatedAlloc
	if !open || !p.backed || off >= im.backingSize() {
		return []block.Extent{p.extent()}, nil
	}
	below, err := im.opts.Backing.AppendExtents(ctx, make([]block.Extent, 0, 64), off, min(p.n, im.backingSize()-off))
	for i := range below {
		below[i].Depth++
	}
	return below, err
}
