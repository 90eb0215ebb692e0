package swap

import (
	"context"
	"sync"

	"tidemark/internal/block"
)

// A laterWrite is a write that the device which is shown has begun. It is in until it
// has ended.
type laterWrite struct {
	s  *Device
	g  *gate
	to block.Later
}

var laterWrites = sync.Pool{New: func() any { return new(laterWrite) }}

// WriteLater begins a write to the device that is shown.
func (s *Device) WriteLater(p []byte, off int64, to block.Later) bool {
	g, err := s.enter(context.Background(), off, block.NoWait)
	if err != nil {
		return false
	}
	w := laterWrites.Get().(*laterWrite) //nolint:errcheck // New makes nothing else
	*w = laterWrite{s, g, to}
	if s.Shown().WriteLater(p, off, w) {
		return true
	}
	w.free()
	s.leave(g)
	return false
}

// Ended is called by the device.
func (w *laterWrite) Ended(ok bool) {
	s, g, to := w.s, w.g, w.to
	w.free()
	s.leave(g)
	to.Ended(ok)
}

func (w *laterWrite) free() {
	*w = laterWrite{}
	laterWrites.Put(w)
}
