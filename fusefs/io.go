//go:build linux

package fusefs

import (
	"context"
	"errors"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// begin returns the file of a node and a request for it, or why there is none.
// Whoever gets one defers finish.
func (s *server) begin(node, unique uint64, thread uint32) (*file, *request, fuse.Status) {
	f := s.file(node)
	switch {
	case f == nil:
		return nil, nil, fuse.EISDIR
	case f.poisoned.Load():
		return nil, nil, fuse.EIO
	}
	r := s.requests.begin(unique, thread)
	if r == nil {
		return nil, nil, statusShutdown
	}
	return f, r, fuse.OK
}

// beginCold is begin for what comes by way of go-fuse.
func (s *server) beginCold(h *fuse.InHeader) (*file, *request, fuse.Status) {
	return s.begin(h.NodeId, h.Unique, h.Pid)
}

// finish gives the request back. It is deferred: a panic becomes EIO and poisons
// the file.
func (s *server) finish(f *file, r *request, st *fuse.Status) {
	if cause := recover(); cause != nil {
		f.poison(cause)
		*st = fuse.EIO
	}
	if *st == fuse.EINTR && s.requests.closing() {
		*st = statusShutdown // this is why it was cancelled
	}
	s.requests.end(r)
}

// read fills buf with what of the range lies within the disk, and returns how much
// that is.
func (s *server) read(h header, t transfer, buf []byte, by *reader) (n int, st fuse.Status) {
	f, r, st := s.begin(h.node, h.unique, h.thread)
	if !st.Ok() {
		return 0, st
	}
	defer s.finish(f, r, &st)
	if (t.off|uint64(t.size))&f.misaligned != 0 {
		return 0, fuse.EINVAL
	}
	by.standby()
	buf = buf[:f.clip(t.off, uint64(t.size))]
	for n < len(buf) {
		p := f.piece(buf[n:])
		if err := f.Device.ReadAt(r.ctx, p, int64(t.off)+int64(n), 0); err != nil {
			return 0, f.fail("read", err)
		}
		n += len(p)
	}
	return n, fuse.OK
}

// write writes what of the range lies within the disk. If nothing does, the file
// is as large as it can be.
func (s *server) write(h header, t transfer, data []byte, by *reader) (written uint32, st fuse.Status) {
	f, r, st := s.begin(h.node, h.unique, h.thread)
	if !st.Ok() {
		return 0, st
	}
	defer s.finish(f, r, &st)
	room := f.clip(t.off, uint64(t.size))
	switch {
	case f.readOnly:
		return 0, fuse.EROFS
	case (t.off|uint64(t.size))&f.misaligned != 0:
		return 0, fuse.EINVAL
	case room == 0 && t.size > 0:
		return 0, statusTooBig
	}
	f.wrote()
	data, flags := data[:room], f.writeFlags(t.open)
	if by.follows(f) && f.atOnce(data) {
		if err := f.Device.WriteAt(r.ctx, data, int64(t.off), flags|block.NoWait); !errors.Is(err, block.ErrWouldBlock) {
			return uint32(len(data)), f.fail("write", err)
		}
	}
	by.standby()
	for len(data) > 0 {
		p := f.piece(data)
		if err := f.Device.WriteAt(r.ctx, p, int64(t.off)+int64(written), flags); err != nil {
			return 0, f.fail("write", err)
		}
		data, written = data[len(p):], written+uint32(len(p))
	}
	return written, fuse.OK
}

// atOnce reports whether a write is small enough to be done while perhaps nobody
// else reads requests.
func (f *file) atOnce(p []byte) bool {
	return len(p) <= atOnceMax && (f.maxTransfer == 0 || len(p) <= f.maxTransfer)
}

// piece is the part of p that the Device takes at a time.
func (f *file) piece(p []byte) []byte {
	if f.maxTransfer > 0 && len(p) > f.maxTransfer {
		return p[:f.maxTransfer]
	}
	return p
}

// writeFlags: with direct I/O the kernel does not follow a write to a file that
// is open with O_DSYNC or O_SYNC (or RWF_DSYNC) by an fsync, but tells us.
func (f *file) writeFlags(open uint32) block.Flags {
	if open&unix.O_DSYNC != 0 && f.canFUA { // O_SYNC contains it
		return block.FUA
	}
	return 0
}

// fsync makes every write that has returned durable, fdatasync alike.
func (s *server) fsync(h header, by *reader) (st fuse.Status) {
	f, r, st := s.begin(h.node, h.unique, h.thread)
	if !st.Ok() {
		return st
	}
	defer s.finish(f, r, &st)
	by.standby()
	return f.fail("fsync", f.Device.Flush(r.ctx))
}

// Fallocate punches holes and zeroes; see decideFallocate.
func (s *server) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) (st fuse.Status) {
	f, r, st := s.beginCold(&in.InHeader)
	if !st.Ok() {
		return st
	}
	defer s.finish(f, r, &st)
	switch {
	case f.readOnly:
		return fuse.EROFS
	case (in.Offset|in.Length)&f.misaligned != 0:
		return fuse.EINVAL
	}
	n, flags, st := decideFallocate(in.Mode, in.Offset, in.Length, uint64(f.refresh()))
	if !st.Ok() || n == 0 {
		return st
	}
	f.wrote()
	if err := f.Device.WriteZeroes(r.ctx, int64(in.Offset), n, flags); err != nil {
		return f.fail("fallocate", err)
	}
	return fuse.OK
}

// decideFallocate says how many bytes at off to zero, and how:
//
//	mode                     within the file        behind its end
//	PUNCH_HOLE|KEEP_SIZE     zero, give space back  nothing to do
//	ZERO_RANGE|KEEP_SIZE     zero                   nothing to do
//	ZERO_RANGE               zero                   EFBIG: it would have to grow
//	0, KEEP_SIZE             EOPNOTSUPP             EOPNOTSUPP
//	anything else            EOPNOTSUPP
//
// Plain allocation promises that later writes find space. A thin disk cannot,
// and who asks is better told; posix_fallocate(3) then writes into every block.
func decideFallocate(mode uint32, off, length, size uint64) (n int64, f block.Flags, st fuse.Status) {
	switch mode {
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
		f = block.MayUnmap
	case unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
	case unix.FALLOC_FL_ZERO_RANGE:
		if off > size || length > size-off {
			return 0, 0, statusTooBig
		}
	default:
		return 0, 0, statusUnsupported
	}
	if off >= size {
		return 0, 0, fuse.OK
	}
	return int64(min(length, size-off)), f, fuse.OK
}

// Lseek finds the next data or hole. A hole is what is known to read zero,
// whether storage is set aside for it or not.
func (s *server) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) (st fuse.Status) {
	f, r, st := s.beginCold(&in.InHeader)
	if !st.Ok() {
		return st
	}
	defer s.finish(f, r, &st)
	size := uint64(f.refresh())
	switch {
	case in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE:
		return fuse.EINVAL
	case in.Offset >= size:
		return statusNoAddress
	}
	hole := in.Whence == unix.SEEK_HOLE
	off, err := f.find(r.ctx, int64(in.Offset), int64(size), hole)
	switch {
	case err != nil:
		return f.fail("lseek", err)
	case off == int64(size) && !hole:
		return statusNoAddress
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// extentBuffers are used again: a slice of them is too large for the stack.
var extentBuffers = sync.Pool{New: func() any { return new([extentBatch]block.Extent) }}

// find returns the first byte from off on that is a hole, or data, or end.
func (f *file) find(ctx context.Context, off, end int64, hole bool) (int64, error) {
	buf := extentBuffers.Get().(*[extentBatch]block.Extent) //nolint:errcheck,forcetypeassert // nothing else is put in
	defer extentBuffers.Put(buf)
	for off < end {
		extents, err := f.Device.AppendExtents(ctx, buf[:0], off, end-off)
		if err != nil {
			return 0, err
		}
		for _, e := range extents {
			if e.State.Has(block.Zero) == hole {
				return e.Off, nil
			}
			off = e.End()
		}
	}
	return end, nil
}
