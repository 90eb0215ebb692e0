package thin

import (
	"context"
	"fmt"
	"time"

	"tidemark/internal/block"
)

// A waiter is a Grow whose writer has overtaken the volume. done is closed, and
// err and size are set before that, when it is over; from then on it is not in
// File.waiters and nobody writes it.
type waiter struct {
	need, want int64
	since      time.Time
	done       chan struct{}
	size       int64
	err        error
}

// wait waits for w with the caller's context and no lock. What arrives at the
// same time as the end of the context wins.
func (f *File) wait(ctx context.Context, w *waiter) (int64, error) {
	timer := time.NewTimer(f.o.HoldAfter)
	defer timer.Stop()
	select {
	case <-w.done:
		return w.size, w.err
	case <-ctx.Done():
		return f.giveUp(w, spaceError(ctx, f.o.Name, w.need))
	case <-timer.C:
	}
	hold := block.HoldOf(ctx)
	if err := hold.Begin(); err != nil {
		return f.giveUp(w, err)
	}
	defer hold.End()
	f.holdBegins(w)
	defer f.holdEnds(w)
	select {
	case <-w.done:
		return w.size, w.err
	case <-ctx.Done():
		return f.giveUp(w, spaceError(ctx, f.o.Name, w.need))
	}
}

// giveUp ends w with err, unless it has just ended by itself.
func (f *File) giveUp(w *waiter, err error) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, waits := f.waiters[w]; !waits {
		return w.size, w.err
	}
	f.endLocked(w, err)
	f.hungry = true
	f.replanLocked()
	return 0, err
}

func spaceError(ctx context.Context, name string, need int64) error {
	return fmt.Errorf("%s: grow to %d bytes: the pool had no space in time: %w", name, need, block.SpaceError(ctx))
}

// endLocked ends w; err is nil if its need is met.
func (f *File) endLocked(w *waiter, err error) {
	delete(f.waiters, w)
	w.err = err
	if err == nil {
		w.size = f.size
		f.reachedLocked(w.need)
	}
	close(w.done)
}

// serveLocked ends every waiter whose need the size meets, and returns how long
// the first of them has waited; 0 if there was none.
func (f *File) serveLocked() (waited time.Duration) {
	now := f.o.Now()
	for w := range f.waiters {
		if w.need <= f.size {
			waited = max(waited, now.Sub(w.since))
			f.endLocked(w, nil)
		}
	}
	return waited
}

// failLocked ends every waiter with err.
func (f *File) failLocked(err error) {
	for w := range f.waiters {
		f.endLocked(w, err)
	}
}

// needsLocked sums up the waiters: the smallest and the largest need, and the
// largest want. All are 0 when none waits.
func (f *File) needsLocked() (smallest, largest, want int64) {
	for w := range f.waiters {
		if smallest == 0 || w.need < smallest {
			smallest = w.need
		}
		largest = max(largest, w.need)
		want = max(want, w.want)
	}
	return smallest, largest, want
}

// holdBegins counts w as held and says so if it is the first.
func (f *File) holdBegins(w *waiter) {
	f.mu.Lock()
	f.held++
	first := f.held == 1
	if first {
		f.heldSince = w.since
	}
	size, failures := f.size, f.failures
	f.mu.Unlock()
	if first {
		f.o.Log.Warn("writes wait for space", "volume", f.o.Name, "need", w.need, "size", size, "failed_requests", failures)
	}
}

// holdEnds is its counterpart.
func (f *File) holdEnds(w *waiter) {
	f.mu.Lock()
	f.held--
	last := f.held == 0
	size, after := f.size, f.o.Now().Sub(f.heldSince)
	f.mu.Unlock()
	if last {
		f.o.Log.Warn("no write waits for space any more", "volume", f.o.Name, "need", w.need, "size", size,
			"after", after, "granted", w.err == nil)
	}
}
