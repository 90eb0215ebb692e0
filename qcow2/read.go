package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"

	"tidemark/internal/block"
	"tidemark/qcow2/format"
)

// ReadAt reads len(p) bytes at off.
func (im *Image) ReadAt(_ context.Context, p []byte, off int64, f block.Flags) error {
	if err := im.enter(false); err != nil {
		return err
	}
	defer im.requests.RUnlock()
	if err := block.CheckRange(off, int64(len(p)), im.size()); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	if f.Has(block.NoWait) {
		return block.ErrWouldBlock
	}
	for len(p) > 0 {
		n, err := im.readSome(p, off)
		if err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readSome reads the first extent of what is asked for. It holds region until
// the bytes are in p, so that the host cluster cannot be reused under it.
func (im *Image) readSome(p []byte, off int64) (int64, error) {
	im.region.RLock()
	defer im.region.RUnlock()
	im.mu.Lock()
	e, err := im.extentLocked(off, int64(len(p)))
	im.mu.Unlock()
	switch {
	case err != nil:
		return 0, err
	case e.State.Has(block.Zero):
		clear(p[:e.Len])
	case e.State.Has(block.Compressed):
		return 0, refusal(format.Compressed, false)
	default:
		n, err := im.file.ReadAt(p[:e.Len], e.Host)
		if n < int(e.Len) && err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		clear(p[n:e.Len]) // a read-only image may end inside its last cluster
	}
	return e.Len, nil
}

// extentLocked returns the extent at off, at most n bytes of it and at most to
// the end of an L2 slice or of a missing L2 table.
func (im *Image) extentLocked(off, n int64) (block.Extent, error) {
	bits := im.geo.ClusterBits
	gc := off >> bits
	s, err := im.l2SliceLocked(gc)
	if err != nil {
		return block.Extent{}, err
	}
	if s == nil {
		end := (gc>>(bits-3) + 1) << (2*bits - 3)
		return block.Extent{Off: off, Len: min(n, end-off), State: block.Zero, Host: -1}, nil
	}
	i := gc & (1<<im.sliceBits() - 1)
	if s.data[i] == badEntry {
		return block.Extent{}, im.badEntryLocked(gc)
	}
	inCluster := off & (im.geo.ClusterSize() - 1)
	ext := im.describe(s.data[i])
	ext.Off, ext.Len = off, im.geo.ClusterSize()-inCluster
	if ext.Host >= 0 {
		ext.Host += inCluster
	}
	for _, e := range s.data[i+1:] {
		next := im.describe(e)
		if ext.Len >= n || e == badEntry || next.State != ext.State || !follows(ext, next) {
			break
		}
		ext.Len += im.geo.ClusterSize()
	}
	ext.Len = min(ext.Len, n)
	return ext, nil
}

// describe says what an entry means, without a place.
func (im *Image) describe(e format.L2Entry) block.Extent {
	ext := block.Extent{Host: -1}
	switch e.Kind(im.geo) {
	case format.Unallocated:
		ext.State = block.Zero
	case format.ZeroPlain:
		ext.State = block.Allocated | block.Zero
	case format.ZeroAllocated:
		ext.State, ext.Host = block.Allocated|block.Zero, e.Offset()
	case format.Compressed:
		ext.State = block.Allocated | block.Data | block.Compressed
	default:
		ext.State, ext.Host = block.Allocated|block.Data, e.Offset()
	}
	return ext
}

// follows reports whether b's place in the file continues a's.
func follows(a, b block.Extent) bool {
	if a.Host < 0 || b.Host < 0 {
		return a.Host == b.Host
	}
	return b.Host == a.Host+a.Len
}

// AppendExtents appends the extents of n bytes at off.
func (im *Image) AppendExtents(_ context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	if err := im.enter(false); err != nil {
		return dst, err
	}
	defer im.requests.RUnlock()
	if err := block.CheckRange(off, n, im.size()); err != nil {
		return dst, fmt.Errorf("extents of %d bytes at %d: %w", n, off, err)
	}
	room := max(cap(dst)-len(dst), 1)
	first := len(dst)
	for end := off + n; off < end; {
		im.mu.Lock()
		e, err := im.extentLocked(off, end-off)
		im.mu.Unlock()
		if err != nil {
			return dst, fmt.Errorf("extents at %d: %w", off, err)
		}
		off = e.End()
		if last := len(dst) - 1; last >= first && dst[last].State == e.State && follows(dst[last], e) {
			dst[last].Len += e.Len
			continue
		}
		if len(dst)-first == room {
			break
		}
		dst = append(dst, e)
	}
	return dst, nil
}
