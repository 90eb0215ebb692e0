package crashlab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"tidemark/internal/block"
)

// A gate is a File that the process can be cut off from, as if it were killed:
// operations that are in progress end, later ones fail.
type gate struct {
	block.File
	mu     sync.RWMutex // held shared by every operation
	closed bool
	// failing counts down to the write that fails; then is called.
	failing atomic.Int64
	then    func()
}

var errDead = errors.New("the process is dead")

// newGate returns a gate that is open. then is called when a write fails that was
// to fail.
func newGate(f block.File, then func()) *gate { return &gate{File: f, then: then} }

// shut calls then in the moment of death.
func (g *gate) shut(then func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	then()
}

func (g *gate) pass(do func() error) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return errDead
	}
	return do()
}

func (g *gate) ReadAt(p []byte, off int64) (n int, err error) {
	err = g.pass(func() error { n, err = g.File.ReadAt(p, off); return err })
	return n, err
}

// WriteLater begins nothing: where writes are to be begun, simdisk.Later is above.
func (g *gate) WriteLater([]byte, int64, block.Later) bool { return false }

func (g *gate) ReadNow(p []byte, off int64) (done bool) {
	err := g.pass(func() error { done = g.File.ReadNow(p, off); return nil })
	return done && err == nil
}

func (g *gate) WriteAt(p []byte, off int64) (n int, err error) {
	err = g.pass(func() error {
		if g.failing.Load() > 0 && g.failing.Add(-1) == 0 {
			g.then()
			return fmt.Errorf("write %d bytes at %d: %w", len(p), off, syscall.EIO)
		}
		n, err = g.File.WriteAt(p, off)
		return err
	})
	return n, err
}

func (g *gate) WriteAtSync(p []byte, off int64) (n int, err error) {
	err = g.pass(func() error { n, err = g.File.WriteAtSync(p, off); return err })
	return n, err
}

func (g *gate) WriteZeroes(off, n int64) error {
	return g.pass(func() error { return g.File.WriteZeroes(off, n) })
}

func (g *gate) Discard(off, n int64) error {
	return g.pass(func() error { return g.File.Discard(off, n) })
}

func (g *gate) Grow(ctx context.Context, need, want int64) (size int64, err error) {
	err = g.pass(func() error { size, err = g.File.Grow(ctx, need, want); return err })
	return size, err
}

func (g *gate) Shrink(ctx context.Context, from, to int64) error {
	return g.pass(func() error { return g.File.Shrink(ctx, from, to) })
}

func (g *gate) WriteBack(off, n int64) {
	_ = g.pass(func() error { g.File.WriteBack(off, n); return nil })
}

func (g *gate) Sync() error { return g.pass(g.File.Sync) }

// slowly returns f with operations that yield a random number of times before and
// after they are done; f itself if rng is nil.
func slowly(f block.File, rng *rand.Rand) block.File {
	if rng == nil {
		return f
	}
	return &slow{File: f, rng: rng}
}

type slow struct {
	block.File
	mu  sync.Mutex // guards rng
	rng *rand.Rand
}

func (s *slow) yield() {
	s.mu.Lock()
	n := s.rng.IntN(1 + s.rng.IntN(60))
	s.mu.Unlock()
	for range n {
		runtime.Gosched()
	}
}

func (s *slow) WriteAt(p []byte, off int64) (int, error) {
	s.yield()
	defer s.yield()
	return s.File.WriteAt(p, off)
}

func (s *slow) WriteAtSync(p []byte, off int64) (int, error) {
	s.yield()
	defer s.yield()
	return s.File.WriteAtSync(p, off)
}

func (s *slow) WriteZeroes(off, n int64) error {
	s.yield()
	defer s.yield()
	return s.File.WriteZeroes(off, n)
}

func (s *slow) Discard(off, n int64) error {
	s.yield()
	defer s.yield()
	return s.File.Discard(off, n)
}

func (s *slow) Sync() error {
	s.yield()
	defer s.yield()
	return s.File.Sync()
}
