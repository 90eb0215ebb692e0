package qcow2_test

import (
	"sync"

	"tidemark/internal/faultfile"
)

// Stops hold chosen operations of a file before they are done, so that an
// interleaving is what the test says.
type stops struct {
	mu   sync.Mutex
	list []*stop
}

// A stop holds one operation.
type stop struct {
	want    func(faultfile.Op) bool
	reached chan struct{} // closed when the operation has come
	gone    chan struct{} // closed by release
}

// stopsOf lets f stop where it is asked to. Nothing else hooks f.
func stopsOf(f *faultfile.File) *stops {
	s := &stops{}
	f.Hook(s.meet, nil)
	return s
}

// at stops the next operation that want wants. Of several stops that want it the
// first one has it.
func (s *stops) at(want func(faultfile.Op) bool) *stop {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &stop{want, make(chan struct{}), make(chan struct{})}
	s.list = append(s.list, p)
	return p
}

func (s *stops) meet(op faultfile.Op) {
	if p := s.take(op); p != nil {
		close(p.reached)
		<-p.gone
	}
}

func (s *stops) take(op faultfile.Op) *stop {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range s.list {
		if p.want(op) {
			s.list = append(s.list[:i], s.list[i+1:]...)
			return p
		}
	}
	return nil
}

// release lets the operation be done.
func (p *stop) release() { close(p.gone) }

// kindOf wants the next operation of a kind.
func kindOf(k faultfile.Kind) func(faultfile.Op) bool {
	return func(op faultfile.Op) bool { return op.Kind&k != 0 }
}

// overlaps wants the next operation of a kind that touches n bytes at off.
func overlaps(k faultfile.Kind, off, n int64) func(faultfile.Op) bool {
	return func(op faultfile.Op) bool {
		return op.Kind&k != 0 && op.Off < off+n && op.Off+op.Len > off
	}
}
