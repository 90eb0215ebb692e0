package swap

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"tidemark/internal/block"
)

// gates is how many counters there are for those who are in, so that processors
// do not wait for each other's. A power of two.
const gates = 16

// A gate counts requests of a part of the disk, in a cache line of its own.
type gate struct {
	in atomic.Int64
	_  [56]byte
}

// A Device is a block.Device that shows another one, which may be exchanged.
type Device struct {
	shown atomic.Pointer[block.Device]
	gates [gates]gate
	shut  atomic.Bool
	left  chan struct{} // capacity 1: a gate may be empty

	switching chan struct{} // capacity 1: held by Switch

	mu   sync.Mutex    // guards open
	open chan struct{} // closed when the entrance is open again; nil: it is open
}

var _ block.Device = (*Device)(nil)

// New shows d. Who closes the Device closes what it shows.
func New(d block.Device) *Device {
	s := &Device{left: make(chan struct{}, 1), switching: make(chan struct{}, 1)}
	s.shown.Store(&d)
	return s
}

// Shown is the device that is shown.
func (s *Device) Shown() block.Device { return *s.shown.Load() }

// enter lets a request in. Who waits and may not, is told so.
func (s *Device) enter(ctx context.Context, off int64, f block.Flags) (*gate, error) {
	g := &s.gates[off>>16&(gates-1)]
	g.in.Add(1)
	if !s.shut.Load() {
		return g, nil
	}
	return g, s.enterLater(ctx, g, f)
}

func (s *Device) enterLater(ctx context.Context, g *gate, f block.Flags) error {
	for {
		s.leave(g)
		if f.Has(block.NoWait) {
			return block.ErrWouldBlock
		}
		s.mu.Lock()
		open := s.open
		s.mu.Unlock()
		if open != nil {
			select {
			case <-open:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		g.in.Add(1)
		if !s.shut.Load() {
			return nil
		}
	}
}

func (s *Device) leave(g *gate) {
	if g.in.Add(-1) != 0 || !s.shut.Load() {
		return
	}
	select {
	case s.left <- struct{}{}:
	default:
	}
}

// Switch lets exchange replace what is shown, while no request is in progress and
// everything that was acknowledged is durable. What exchange returns is shown from
// then on; nil: what was before. It may return another device with its error.
//
// If requests are in progress for longer than ctx allows, or the flush fails, nothing
// is exchanged. What comes meanwhile waits.
func (s *Device) Switch(ctx context.Context, exchange func(old block.Device) (block.Device, error)) error {
	select {
	case s.switching <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.switching }()
	s.close()
	defer s.reopen()
	if err := s.drain(ctx); err != nil {
		return fmt.Errorf("wait for the requests in progress: %w", err)
	}
	old := s.Shown()
	if info := old.Info(); info.CanFlush && !info.ReadOnly {
		if err := old.Flush(ctx); err != nil {
			return err
		}
	}
	next, err := exchange(old)
	if next != nil {
		s.shown.Store(&next)
	}
	return err
}

func (s *Device) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = make(chan struct{})
	s.shut.Store(true)
}

func (s *Device) reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut.Store(false)
	close(s.open)
	s.open = nil
}

// drain waits until nobody is in. Who enters from now on leaves at once.
func (s *Device) drain(ctx context.Context) error {
	for s.in() {
		select {
		case <-s.left:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (s *Device) in() bool {
	for i := range s.gates {
		if s.gates[i].in.Load() != 0 {
			return true
		}
	}
	return false
}

// ReadAt reads from the device that is shown.
func (s *Device) ReadAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	g, err := s.enter(ctx, off, f)
	if err != nil {
		return err
	}
	err = s.Shown().ReadAt(ctx, p, off, f)
	s.leave(g)
	return err
}

// WriteAt writes to the device that is shown.
func (s *Device) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	g, err := s.enter(ctx, off, f)
	if err != nil {
		return err
	}
	err = s.Shown().WriteAt(ctx, p, off, f)
	s.leave(g)
	return err
}

// WriteZeroes zeroes a range of the device that is shown.
func (s *Device) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	g, err := s.enter(ctx, off, f)
	if err != nil {
		return err
	}
	defer s.leave(g)
	return s.Shown().WriteZeroes(ctx, off, n, f)
}

// Discard discards a range of the device that is shown. One that cannot does nothing,
// which a discard allows: who asks has been told what one that was shown before can.
func (s *Device) Discard(ctx context.Context, off, n int64, f block.Flags) error {
	g, err := s.enter(ctx, off, f)
	if err != nil {
		return err
	}
	defer s.leave(g)
	d := s.Shown()
	if err = d.Discard(ctx, off, n, f); errors.Is(err, block.ErrUnsupported) && !d.Info().CanDiscard {
		return nil
	}
	return err
}

// AppendExtents asks the device that is shown.
func (s *Device) AppendExtents(ctx context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	g, err := s.enter(ctx, off, 0)
	if err != nil {
		return dst, err
	}
	defer s.leave(g)
	return s.Shown().AppendExtents(ctx, dst, off, n)
}

// Flush flushes the device that is shown. What completed in one that was shown
// before is durable.
func (s *Device) Flush(ctx context.Context) error {
	g, err := s.enter(ctx, 0, 0)
	if err != nil {
		return err
	}
	defer s.leave(g)
	return s.Shown().Flush(ctx)
}

// Info describes the device that is shown.
func (s *Device) Info() block.DeviceInfo { return s.Shown().Info() }

// Close closes the device that is shown.
func (s *Device) Close() error { return s.Shown().Close() }
