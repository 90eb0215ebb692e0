package thin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"tidemark/internal/block"
)

// A request is one call of the Extender.
type request struct {
	need, want int64
	waiting    bool // a Grow depends on it
	dropped    bool // cancelled because it was decided again
	cancel     context.CancelFunc
	began      time.Time
}

// run is the only goroutine of a File: it decides, asks, adopts and settles, and
// sleeps until there is something to decide.
func (f *File) run() {
	defer close(f.done)
	for f.ctx.Err() == nil {
		ctx, r, pause := f.next()
		if r == nil {
			f.sleep(pause)
			continue
		}
		size, err := f.ask(ctx, r)
		r.cancel()
		f.settle(r, size, err)
	}
}

// sleep waits until there is something to decide; a pause of 0 has no end.
func (f *File) sleep(pause time.Duration) {
	var end <-chan time.Time
	if pause > 0 {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		end = timer.C
	}
	select {
	case <-f.kick:
	case <-end:
	case <-f.ctx.Done():
	}
}

// next decides what to ask for now: a request, or none and when to look again.
func (f *File) next() (context.Context, *request, time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.o.Now()
	smallest, largest, want := f.needsLocked()
	state := State{
		Size: f.size, End: max(f.end, largest), Want: want, Bound: f.o.Bound,
		Rate: f.rate.now(now), Latency: f.latency.expected(),
	}
	d := f.o.Policy.Decide(state)
	switch {
	case f.closed || f.shrinking || !d.Ask || ((f.resting || f.given && !f.hungry) && !d.Wait):
		return nil, nil, 0
	case now.Before(f.notBefore):
		return nil, nil, f.notBefore.Sub(now)
	}
	if short := f.shortUntil.Sub(now); short > 0 {
		state.Short = true
		if d = f.o.Policy.Decide(state); !d.Ask {
			return nil, nil, short
		}
	}
	r := &request{need: f.size, want: d.Target, waiting: d.Wait, began: now}
	if d.Wait {
		r.need = smallest
	}
	ctx, cancel := context.WithCancel(f.ctx)
	r.cancel = cancel
	f.inflight = r
	return ctx, r, 0
}

// replanLocked drops the request in flight if it no longer fits: nobody waits
// for it any more, or somebody would be content with less.
func (f *File) replanLocked() {
	r := f.inflight
	if r == nil {
		return
	}
	smallest, _, _ := f.needsLocked()
	if r.waiting && (smallest == 0 || smallest < r.need) {
		r.dropped = true
		r.cancel()
	}
}

// ask calls the Extender and lets the inner file adopt the answer.
func (f *File) ask(ctx context.Context, r *request) (int64, error) {
	size, err := f.ext.Extend(ctx, r.need, r.want)
	if err != nil {
		return 0, err
	}
	if size < r.need {
		return 0, fmt.Errorf("the pool answered %d bytes although %d were needed", size, r.need)
	}
	if size <= f.Size() {
		return size, nil
	}
	adopted, err := f.inner.Grow(f.ctx, size, size)
	if err != nil {
		return 0, fmt.Errorf("adopt %d bytes: %w", size, err)
	}
	if adopted < size {
		return 0, fmt.Errorf("the pool granted %d bytes, but the volume has %d", size, adopted)
	}
	return adopted, nil
}

// settle takes the result of a request over and says what has changed.
func (f *File) settle(r *request, size int64, err error) {
	f.mu.Lock()
	f.inflight = nil
	if err != nil {
		say := f.failedLocked(r, err)
		f.mu.Unlock()
		say()
		return
	}
	say := f.grantedLocked(r, size)
	f.mu.Unlock()
	say()
}

// grantedLocked adopts an answer and returns what to log.
func (f *File) grantedLocked(r *request, size int64) func() {
	now := f.o.Now()
	before, failures, took := f.size, f.failures, now.Sub(r.began)
	f.failures, f.notBefore = 0, time.Time{}
	if size < r.want {
		f.shortUntil = now.Add(f.o.ShortPause)
	}
	if size <= before {
		f.serveLocked()
		return func() {}
	}
	f.size, f.hungry = size, false
	f.extensions++
	f.latency.note(took)
	waited := f.serveLocked()
	end, rate := f.end, int64(f.rate.now(now))
	return func() {
		f.o.Log.Info("volume extended", "volume", f.o.Name, "from", before, "to", size, "asked", r.want,
			"end", end, "took", took, "waited", waited, "rate", rate, "failed_requests", failures)
	}
}

// failedLocked decides what an error means and returns what to log.
func (f *File) failedLocked(r *request, err error) func() {
	if r.dropped || f.closed {
		return func() {}
	}
	if IsFinal(err) {
		f.resting = true
		f.failures = 0
		f.failLocked(fmt.Errorf("%s: grow: %w", f.o.Name, finalSpace(err)))
		return func() {
			f.o.Log.Error("volume cannot be extended", "volume", f.o.Name, "need", r.need, "want", r.want, "error", err)
		}
	}
	f.failures++
	pause := f.o.RetryMin << min(f.failures-1, 16)
	if pause > f.o.RetryMax || pause <= 0 {
		pause = f.o.RetryMax
	}
	f.notBefore = f.o.Now().Add(pause)
	if f.failures > 1 {
		return func() {}
	}
	return func() {
		f.o.Log.Warn("extension failed, it is repeated until the pool answers", "volume", f.o.Name,
			"need", r.need, "want", r.want, "error", err)
	}
}

// finalSpace makes a final error one that the seam knows: waiting is pointless.
func finalSpace(err error) error {
	if errors.Is(err, block.ErrNoSpace) {
		return err
	}
	return fmt.Errorf("%w (%w)", err, block.ErrNoSpace)
}
