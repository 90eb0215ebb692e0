package lvm

import (
	"sync"

	"tidemark/internal/block"
)

// A laterWrite is a write that is in the queue, with its blocks held.
type laterWrite struct {
	f  *File
	r  blockRange
	to block.Later
}

var laterWrites = sync.Pool{New: func() any { return new(laterWrite) }}

// WriteLater begins a write of whole blocks, from aligned memory, that lies on one
// device.
func (f *File) WriteLater(p []byte, off int64, to block.Later) bool {
	l, err := f.mayWrite("write", off, int64(len(p)))
	q := theQueue()
	if err != nil || q == nil || len(p) == 0 || !isAligned(p, off, f.unit) {
		return false
	}
	d, at := l.whole(off, int64(len(p)))
	if d == nil || at&int64(f.unit-1) != 0 {
		return false
	}
	r, ok := f.blocks.tryLock(off, off+int64(len(p)))
	if !ok {
		return false
	}
	w := laterWrites.Get().(*laterWrite) //nolint:errcheck // New makes nothing else
	*w = laterWrite{f, r, to}
	// Who closes looks at what is held after he has said so: the descriptor stays.
	if !f.closed.Load() && q.begin(d, p, at, w) {
		return true
	}
	w.free()
	f.blocks.unlock(r)
	return false
}

// ended is called when nothing of the write is on its way any more.
func (w *laterWrite) ended(ok bool) {
	f, r, to := w.f, w.r, w.to
	w.free()
	f.blocks.unlock(r)
	to.Ended(ok)
}

func (w *laterWrite) free() {
	*w = laterWrite{}
	laterWrites.Put(w)
}

// whole returns the device that all of [off, off+n) lies on, and the place there; nil:
// it does not lie on one.
func (l *layout) whole(off, n int64) (*device, int64) {
	for _, s := range l.spans {
		if off >= s.start && off+n <= s.start+s.size {
			return s.d, s.offset + off - s.start
		}
	}
	return nil, 0
}
