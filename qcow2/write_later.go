package qcow2

import (
	"sync"

	"tidemark/internal/block"
	"tidemark/internal/mutant"
	"tidemark/internal/steps"
)

// This file begins writes whose places are known, or can be decided without waiting, and
// leaves them to the file: W1 to W3, or a write in place. Who notices that a write has
// ended does W4. Meanwhile the request is in progress, as any other one.

// A laterWrite is a write that the file has begun.
type laterWrite struct {
	im *Image
	t  ticket
	to block.Later
}

var laterWrites = sync.Pool{New: func() any { return new(laterWrite) }}

// WriteLater begins a write that lies in one piece in the file.
func (im *Image) WriteLater(p []byte, off int64, to block.Later) bool {
	if !im.direct || im.throttled() {
		return false
	}
	t, err := im.begin(true, "write", off, int64(len(p)))
	if err != nil {
		return false
	}
	if host, n := im.placeNow(off, int64(len(p))); n > 0 && n == int64(len(p)) {
		w := laterWrites.Get().(*laterWrite) //nolint:errcheck // New makes nothing else
		*w = laterWrite{im, t, to}
		if im.file.WriteLater(p, host, w) {
			return true
		}
		w.free()
	}
	im.grace.leave(t)
	return false
}

// Ended is called by the file. It may not wait: where tables have to be written before
// the write survives the process, WriteAt does that when it does the same again.
func (w *laterWrite) Ended(ok bool) {
	im, t, to := w.im, w.t, w.to
	w.free()
	ok = ok && im.unlogged.Load() == 0 && im.poisoned.Load() == nil
	late := mutant.On("begun-write-counted-late")
	if !late {
		im.completed.Add(1) // also after an error: part of it may be done
	}
	steps.At("W4")
	im.commitLater()
	im.grace.leave(t)
	to.Ended(ok)
	if late {
		im.completed.Add(1)
	}
}

func (w *laterWrite) free() {
	*w = laterWrite{}
	laterWrites.Put(w)
}
