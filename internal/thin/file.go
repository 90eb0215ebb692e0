package thin

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"tidemark/internal/block"
)

// An Extender asks the pool that a volume belongs to for a larger size.
type Extender interface {
	// Extend makes the volume at least need bytes long, and up to want if the
	// pool has that much, and returns its size, which is durable. Sizes are
	// absolute: a repeated request changes nothing, and a volume that is
	// larger already is left as it is. It blocks while the pool is full and
	// need is not reached, as long as ctx allows; a need that is reached is
	// answered at once. See [IsFinal] for its errors.
	Extend(ctx context.Context, need, want int64) (size int64, err error)
}

// Options of a File. The zero value works.
type Options struct {
	// Policy says how much headroom there is.
	Policy Policy
	// Bound is the size in bytes that the volume is never extended beyond; 0
	// means that there is none.
	Bound int64
	// HoldAfter is how long a Grow waits before it counts as held. Default:
	// 50 ms.
	HoldAfter time.Duration
	// RetryMin and RetryMax are the first and the longest pause after an
	// extension that failed. Defaults: 50 ms, 500 ms.
	RetryMin, RetryMax time.Duration
	// ShortPause is how long no headroom is asked for after the pool granted
	// less than it was asked for. Default: 1 s.
	ShortPause time.Duration
	// Now is the clock for latencies and rates. Default: time.Now.
	Now func() time.Time
	// Name is the volume's in log lines and errors.
	Name string
	// Log gets one line per extension and per begin and end of a hold.
	// Default: none.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	o.Policy = o.Policy.withDefaults()
	setDefault(&o.HoldAfter, 50*time.Millisecond)
	setDefault(&o.RetryMin, 50*time.Millisecond)
	setDefault(&o.RetryMax, max(500*time.Millisecond, o.RetryMin))
	setDefault(&o.ShortPause, time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Name == "" {
		o.Name = "volume"
	}
	return o
}

func setDefault(d *time.Duration, def time.Duration) {
	if *d <= 0 {
		*d = def
	}
}

// A File is a thin volume: a block.File whose Grow asks a pool. Everything but
// Grow, Shrink, Size and Close is the inner file's.
type File struct {
	inner block.File
	ext   Extender
	o     Options

	ctx    context.Context // of the extensions; ends with Close
	cancel context.CancelFunc
	kick   chan struct{} // capacity 1: decide again
	done   chan struct{} // the goroutine has ended

	mu      sync.Mutex
	closed  bool
	size    int64
	end     int64
	waiters map[*waiter]struct{}
	moved   time.Time // when the end moved last, or the File was made
	rate    rateMeter
	latency latencyMeter

	inflight   *request  // nil: none
	failures   int       // of the last extensions, in a row
	notBefore  time.Time // no request before, after a failure
	shortUntil time.Time // no headroom is asked for before
	shrinking  bool      // nothing is asked for
	given      bool      // headroom was given back, and the writer has not gone on since
	hungry     bool      // a Grow has given up, and nothing was granted since
	resting    bool      // a final error: ask for no headroom until something changes

	extensions int64
	held       int       // waiters that count as held
	heldSince  time.Time // the first of them
}

var _ block.File = (*File)(nil)

// New makes inner thin. The File owns inner from now on: Close closes both.
func New(inner block.File, ext Extender, o Options) *File {
	ctx, cancel := context.WithCancel(context.Background())
	f := &File{
		inner: inner, ext: ext, o: o.withDefaults(),
		ctx: ctx, cancel: cancel,
		kick: make(chan struct{}, 1), done: make(chan struct{}),
		size:    inner.Size(),
		waiters: make(map[*waiter]struct{}),
	}
	f.moved = f.o.Now()
	go f.run()
	return f
}

// ReadAt reads from the inner file.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.inner.ReadAt(p, off) }

// ReadNow reads from the inner file what is in memory.
func (f *File) ReadNow(p []byte, off int64) bool { return f.inner.ReadNow(p, off) }

// WriteAt writes to the inner file.
func (f *File) WriteAt(p []byte, off int64) (int, error) { return f.inner.WriteAt(p, off) }

// WriteLater begins a write to the inner file.
func (f *File) WriteLater(p []byte, off int64, to block.Later) bool {
	return f.inner.WriteLater(p, off, to)
}

// WriteAtSync writes to the inner file, durably.
func (f *File) WriteAtSync(p []byte, off int64) (int, error) { return f.inner.WriteAtSync(p, off) }

// WriteZeroes zeroes a range of the inner file.
func (f *File) WriteZeroes(off, n int64) error { return f.inner.WriteZeroes(off, n) }

// Discard hints the inner file. The space stays the volume's.
func (f *File) Discard(off, n int64) error { return f.inner.Discard(off, n) }

// WriteBack hints the inner file.
func (f *File) WriteBack(off, n int64) { f.inner.WriteBack(off, n) }

// Sync makes the inner file durable. Extensions are so before they are seen.
func (f *File) Sync() error { return f.inner.Sync() }

// Info describes the inner file.
func (f *File) Info() block.FileInfo { return f.inner.Info() }

// Size is what the pool has granted and the inner file has adopted.
func (f *File) Size() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}

// Grow tells how far the writer wants to come, and waits for the pool where it
// has overtaken the volume. See block.File.
func (f *File) Grow(ctx context.Context, need, want int64) (int64, error) {
	if need < 0 {
		return 0, fmt.Errorf("%s: grow to %d bytes: %w", f.o.Name, need, block.ErrRange)
	}
	if f.inner.Info().ReadOnly {
		return 0, fmt.Errorf("%s: grow to %d bytes: %w", f.o.Name, need, block.ErrReadOnly)
	}
	w, size, err := f.enter(ctx, need, want)
	f.decideAgain()
	if w == nil {
		return size, err
	}
	return f.wait(ctx, w)
}

// enter answers a Grow that needs no wait, or registers one that does.
func (f *File) enter(ctx context.Context, need, want int64) (*waiter, int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, 0, fmt.Errorf("%s: grow: %w", f.o.Name, block.ErrClosed)
	case need <= f.size && !f.shrinking:
		f.reachedLocked(need)
		return nil, f.size, nil
	case f.o.Bound > 0 && need > f.o.Bound:
		return nil, 0, boundError(f.o.Name, need, f.o.Bound)
	case ctx.Err() != nil:
		return nil, f.size, block.SpaceError(ctx) // it asks for what is there, and waits for nothing
	}
	w := &waiter{need: need, want: want, since: f.o.Now(), done: make(chan struct{})}
	f.waiters[w] = struct{}{}
	f.resting = false
	f.replanLocked()
	return w, 0, nil
}

func boundError(name string, need, bound int64) error {
	return Final(fmt.Errorf("%s: grow to %d bytes: its bound is %d bytes, so nothing larger is ever asked for: %w",
		name, need, bound, block.ErrNoSpace))
}

// RaiseBound lets the volume be extended up to bound bytes, if that is more than
// before: its image may have become larger.
func (f *File) RaiseBound(bound int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.o.Bound > 0 {
		f.o.Bound = max(f.o.Bound, bound)
		f.resting = false
	}
}

// Shrink gives space back to the pool, if the inner file can do that. What is left
// may be more than to, as the pool's grain is. It is refused, with an error that
// wraps ErrInUse and ErrUnsupported, while a Grow waits or an extension is in flight:
// who closes an image need not care. Afterwards no headroom is asked for
// until the writer goes on.
func (f *File) Shrink(ctx context.Context, from, to int64) error {
	if err := f.beginShrink(from, to); err != nil {
		return fmt.Errorf("%s: shrink from %d to %d bytes: %w", f.o.Name, from, to, err)
	}
	err := f.inner.Shrink(ctx, from, to)
	f.mu.Lock()
	f.shrinking = false
	if err == nil {
		f.size, f.end, f.given = f.inner.Size(), min(f.end, to), true
	}
	f.serveLocked()
	size := f.size
	f.mu.Unlock()
	f.decideAgain()
	if err != nil {
		return fmt.Errorf("%s: give space back to the pool: %w", f.o.Name, err)
	}
	f.o.Log.Info("space was given back to the pool", "volume", f.o.Name, "from", from, "to", size)
	return nil
}

// beginShrink lets nothing be asked for until the shrinking is over.
func (f *File) beginShrink(from, to int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return block.ErrClosed
	case f.inner.Info().ReadOnly:
		return block.ErrReadOnly
	case f.size != from:
		return fmt.Errorf("it has %d bytes: %w", f.size, block.ErrStale)
	case to < 0 || to > from:
		return block.ErrRange
	case f.shrinking || f.inflight != nil || len(f.waiters) > 0:
		return fmt.Errorf("it is about to grow: %w: %w", block.ErrInUse, block.ErrUnsupported)
	}
	f.shrinking = true
	return nil
}

// Close ends every Grow that waits with ErrClosed, ends the extension in flight,
// and closes the inner file.
func (f *File) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return fmt.Errorf("%s: close: %w", f.o.Name, block.ErrClosed)
	}
	f.closed = true
	f.failLocked(fmt.Errorf("%s: grow: %w", f.o.Name, block.ErrClosed))
	f.mu.Unlock()
	f.cancel()
	<-f.done
	return f.inner.Close()
}

// reachedLocked notes that the writer has come to end.
func (f *File) reachedLocked(end int64) {
	now := f.o.Now()
	if end > f.end {
		f.end, f.given, f.moved = end, false, now
	}
	f.rate.note(now, f.end)
}

// decideAgain wakes the goroutine that asks the pool.
func (f *File) decideAgain() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}
