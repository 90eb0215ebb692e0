//go:build linux

package hostfile

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// WriteLater is described at block.File: the page cache takes a write at once.
func (f *File) WriteLater([]byte, int64, block.Later) bool { return false }

// ReadNow is described at block.File. The kernel reads from the page cache, and says
// so where the bytes are not there.
func (f *File) ReadNow(p []byte, off int64) bool {
	if block.CheckRange(off, int64(len(p)), f.size.Load()) != nil {
		return false
	}
	r, _ := f.reading.Get().(*cachedRead)
	if r == nil {
		r = newCachedRead()
	}
	defer f.reading.Put(r)
	return r.read(f.raw, p, off)
}

// A cachedRead is one try to read from the page cache. Its function is made once,
// because a closure for each read would be an allocation.
type cachedRead struct {
	try func(fd uintptr)
	p   []byte
	off int64
	n   int
}

func newCachedRead() *cachedRead {
	r := &cachedRead{}
	r.try = func(fd uintptr) {
		part := unix.Iovec{Base: unsafe.SliceData(r.p)}
		part.SetLen(len(r.p))
		n, _, errno := unix.Syscall6(unix.SYS_PREADV2, fd, uintptr(unsafe.Pointer(&part)), 1,
			uintptr(r.off), uintptr(r.off>>32), unix.RWF_NOWAIT)
		if r.n = int(n); errno != 0 {
			r.n = 0
		}
	}
	return r
}

// read reports whether it read all of p.
func (r *cachedRead) read(raw syscall.RawConn, p []byte, off int64) bool {
	r.p, r.off, r.n = p, off, 0
	err := raw.Control(r.try)
	r.p = nil
	return err == nil && r.n == len(p)
}
