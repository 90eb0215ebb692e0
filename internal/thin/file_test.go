package thin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// A fakePool is an Extender with a free space, a latency and errors at will.
type fakePool struct {
	mu       sync.Mutex
	size     int64 // of the volume
	free     int64
	latency  time.Duration
	err      error // returned instead of an answer
	lose     int   // answers that are lost after the pool has granted
	short    int64 // answers are so much less than what was granted
	changed  chan struct{}
	calls    []call
	inflight atomic.Int32
	most     atomic.Int32 // in flight at a time
}

type call struct{ need, want int64 }

func newPool(size, free int64) *fakePool {
	return &fakePool{size: size, free: free, changed: make(chan struct{})}
}

func (p *fakePool) Extend(ctx context.Context, need, want int64) (int64, error) {
	p.most.Store(max(p.most.Load(), p.inflight.Add(1)))
	defer p.inflight.Add(-1)
	p.mu.Lock()
	p.calls = append(p.calls, call{need, want})
	latency := p.latency
	p.mu.Unlock()
	if err := pause(ctx, latency); err != nil {
		return 0, err
	}
	for {
		size, changed, err := p.try(need, want)
		if changed == nil {
			return size, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *fakePool) try(need, want int64) (int64, chan struct{}, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, nil, p.err
	}
	if need > p.size+p.free {
		return 0, p.changed, nil
	}
	if more := min(want, p.size+p.free) - p.size; more > 0 {
		p.size += more
		p.free -= more
	}
	if p.lose > 0 {
		p.lose--
		return 0, nil, errors.New("the answer was lost")
	}
	return p.size - p.short, nil, nil
}

// set changes the pool and lets what waits look again.
func (p *fakePool) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *fakePool) seen() []call {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]call(nil), p.calls...)
}

// A poolFile is the inner file: its Grow only re-reads the size that the pool
// has granted.
type poolFile struct {
	block.File // nil: what the tests do not call
	pool       *fakePool
	mu         sync.Mutex
	size       int64
	closed     bool
	readOnly   bool
	keeps      bool  // Shrink is refused
	refuse     error // what Grow returns
	late       int64 // bytes of what was granted that are not to be seen yet
}

func (f *poolFile) Size() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}

func (f *poolFile) Grow(context.Context, int64, int64) (int64, error) {
	f.pool.mu.Lock()
	granted := f.pool.size
	f.pool.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		return 0, f.refuse
	}
	f.size = max(f.size, granted-f.late)
	return f.size, nil
}

func (f *poolFile) Shrink(_ context.Context, from, to int64) error {
	if f.keeps {
		return block.ErrUnsupported
	}
	to = roundUp(to, mib) // the pool's grain
	f.pool.set(func() {
		f.pool.size = to
		f.pool.free += from - to
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.size = to
	return nil
}

func (f *poolFile) Info() block.FileInfo { return block.FileInfo{ReadOnly: f.readOnly} }

func (f *poolFile) Close() error {
	f.closed = true
	return nil
}

// thinTest runs a test of a File over a pool in a bubble of fake time.
func thinTest(t *testing.T, size, free int64, o Options, test func(*testing.T, *File, *fakePool)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		pool := newPool(size, free)
		inner := &poolFile{pool: pool, size: size}
		f := New(inner, pool, o)
		test(t, f, pool)
		require.NoError(t, f.Close())
		require.True(t, inner.closed)
		require.LessOrEqual(t, pool.most.Load(), int32(1), "one extension in flight")
	})
}

func grow(t *testing.T, f *File, need int64) {
	t.Helper()
	size, err := f.Grow(t.Context(), need, need)
	require.NoError(t, err)
	require.GreaterOrEqual(t, size, need)
	require.GreaterOrEqual(t, f.Size(), need)
}

// growLater grows in a goroutine and returns where its error arrives.
func growLater(ctx context.Context, f *File, need int64) chan error {
	done := make(chan error, 1)
	go func() {
		_, err := f.Grow(ctx, need, need)
		done <- err
	}()
	synctest.Wait()
	return done
}

func waiting(t *testing.T, done chan error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-done:
		t.Fatalf("Grow has returned (%v), expected it to wait", err)
	default:
	}
}

func TestGrowAsksInTheBackground(t *testing.T) {
	thinTest(t, 128*mib, 1<<40, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		pool.latency = 100 * time.Millisecond
		began := time.Now()
		grow(t, f, 10*mib)
		require.Zero(t, time.Since(began), "a need that is met does not wait")
		require.EqualValues(t, 128*mib, f.Size(), "the size grows only when the pool has answered")
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		require.EqualValues(t, 256*mib, f.Size())
		require.Equal(t, []call{{128 * mib, 256 * mib}}, pool.seen())
		s := f.Stats()
		require.EqualValues(t, 1, s.Extensions)
		require.EqualValues(t, 10*mib, s.End)
		require.EqualValues(t, 246*mib, s.Headroom)
		require.Equal(t, 100*time.Millisecond, s.LastLatency)
	})
}

func TestGrowWaitsWhenOvertaken(t *testing.T) {
	thinTest(t, 128*mib, 1<<40, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		pool.latency = 20 * time.Millisecond
		began := time.Now()
		grow(t, f, 200*mib)
		require.Equal(t, 20*time.Millisecond, time.Since(began))
		require.EqualValues(t, 384*mib, f.Size())
	})
}

func TestGrowStaysWithinTheHeadroom(t *testing.T) {
	thinTest(t, 128*mib, 1<<40, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		pool.latency = 30 * time.Millisecond
		for end := int64(0); end < 3<<30; end += mib {
			grow(t, f, end)
			time.Sleep(time.Second / 1000) // 1 GB/s
			require.LessOrEqual(t, f.Size()-end, int64(512*mib))
		}
		require.Less(t, f.Stats().Extensions, int64(30))
	})
}

func TestGrowDeadlineIsNoSpace(t *testing.T) {
	thinTest(t, 128*mib, 0, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		began := time.Now()
		_, err := f.Grow(ctx, 200*mib, 200*mib)
		require.ErrorIs(t, err, block.ErrNoSpace)
		require.Equal(t, 2*time.Second, time.Since(began))
		require.Zero(t, f.Stats().End, "a Grow that failed is not an end")
		synctest.Wait()
		require.Zero(t, pool.inflight.Load(), "nobody waits, so nothing is asked for")
	})
}

// A deadline that has passed asks for what is there, and the pool for nothing.
func TestGrowWithoutWaiting(t *testing.T) {
	thinTest(t, 128*mib, 0, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		calls := len(pool.calls)
		ctx, cancel := context.WithDeadline(t.Context(), time.Now())
		defer cancel()
		_, err := f.Grow(ctx, 200*mib, 200*mib)
		require.ErrorIs(t, err, block.ErrNoSpace)
		synctest.Wait()
		require.Len(t, pool.calls, calls)
		size, err := f.Grow(ctx, mib, 200*mib)
		require.NoError(t, err)
		require.EqualValues(t, 128*mib, size)
	})
}

func TestGrowCancelStaysACancellation(t *testing.T) {
	thinTest(t, 128*mib, 0, Options{}, func(t *testing.T, f *File, _ *fakePool) {
		ctx, cancel := context.WithCancel(t.Context())
		done := growLater(ctx, f, 200*mib)
		waiting(t, done)
		cancel()
		err := <-done
		require.ErrorIs(t, err, context.Canceled)
		require.NotErrorIs(t, err, block.ErrNoSpace)
	})
}

func TestGrowResumesWhenThereIsSpace(t *testing.T) {
	thinTest(t, 128*mib, 0, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		done := growLater(t.Context(), f, 200*mib)
		time.Sleep(time.Hour)
		waiting(t, done)
		s := f.Stats()
		require.True(t, s.Waiting)
		require.EqualValues(t, 72*mib, s.WaitingBytes)
		require.Equal(t, time.Hour, time.Since(s.WaitingSince))
		pool.set(func() { pool.free = 72 * mib })
		require.NoError(t, <-done)
		require.EqualValues(t, 200*mib, f.Size(), "it lives with what there is")
		require.False(t, f.Stats().Waiting)
	})
}

func TestShortPoolIsNotAskedForHeadroomAllTheTime(t *testing.T) {
	thinTest(t, 128*mib, 10*mib, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		for end := int64(0); end <= 138*mib; end += 64 << 10 {
			grow(t, f, end)
		}
		require.LessOrEqual(t, len(pool.seen()), 3)
		pool.set(func() { pool.free = 1 << 40 })
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		require.GreaterOrEqual(t, f.Stats().Headroom, int64(128*mib), "headroom is restored without a Grow")
	})
}

func TestGrowNeverAsksBeyondTheBound(t *testing.T) {
	thinTest(t, 128*mib, 1<<40, Options{Bound: 300 * mib}, func(t *testing.T, f *File, pool *fakePool) {
		grow(t, f, 300*mib)
		_, err := f.Grow(t.Context(), 300*mib+1, 300*mib+1)
		require.ErrorIs(t, err, block.ErrNoSpace)
		require.True(t, IsFinal(err))
		synctest.Wait()
		for _, c := range pool.seen() {
			require.LessOrEqual(t, c.want, int64(300*mib))
		}
		f.RaiseBound(200 * mib) // it is never lowered
		f.RaiseBound(400 * mib)
		grow(t, f, 400*mib)
		_, err = f.Grow(t.Context(), 400*mib+1, 400*mib+1)
		require.ErrorIs(t, err, block.ErrNoSpace)
	})
}

func TestFinalErrorEndsTheWait(t *testing.T) {
	thinTest(t, 128*mib, 0, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		grow(t, f, 1) // from now on the headroom is too small
		done := growLater(t.Context(), f, 200*mib)
		waiting(t, done)
		gone := errors.New("the volume is gone")
		pool.set(func() { pool.err = fmt.Errorf("extend: %w", Final(gone)) })
		err := <-done
		require.ErrorIs(t, err, gone)
		require.ErrorIs(t, err, block.ErrNoSpace)
		n := len(pool.seen())
		time.Sleep(time.Hour)
		require.Len(t, pool.seen(), n, "no headroom is asked for after that")

		pool.set(func() { pool.err, pool.free = nil, 1<<40 })
		grow(t, f, 200*mib)
		grow(t, f, 380*mib)
		synctest.Wait()
		require.GreaterOrEqual(t, f.Stats().Headroom, int64(128*mib), "it is asked for again when a write has brought the pool back")
	})
}

// An answer that is less than what was needed is a failure, not a size.
func TestAnswerThatIsTooSmall(t *testing.T) {
	thinTest(t, 128*mib, 1<<40, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		pool.set(func() { pool.short = 1 << 30 })
		done := growLater(t.Context(), f, 200*mib)
		time.Sleep(time.Minute)
		waiting(t, done)
		require.EqualValues(t, 128*mib, f.Size())
		require.Greater(t, f.Stats().FailedRequests, 10)
		require.Less(t, len(pool.seen()), 200, "attempts have pauses")
		pool.set(func() { pool.short = 0 })
		require.NoError(t, <-done)
	})
}

// What the pool has granted and the file below does not show yet is not there.
func TestFileThatShowsLessThanWasGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := newPool(128*mib, 1<<40)
		inner := &poolFile{pool: pool, size: 128 * mib, late: 200 * mib}
		f := New(inner, pool, Options{})
		done := growLater(t.Context(), f, 200*mib)
		time.Sleep(time.Second)
		waiting(t, done)
		require.Positive(t, f.Stats().FailedRequests)
		require.LessOrEqual(t, f.Size(), inner.Size())
		inner.mu.Lock()
		inner.late = 0
		inner.mu.Unlock()
		require.NoError(t, <-done)
		require.NoError(t, f.Close())
	})
}

// A writer that is too fast for the floor is met by more headroom.
func TestFastWriterIsNotOvertaken(t *testing.T) {
	thinTest(t, 128*mib, 1<<40, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		pool.latency = 110 * time.Millisecond // 113 MiB are written meanwhile
		for end := int64(0); end < 8<<30; end += mib {
			began := time.Now()
			grow(t, f, end)
			if end > 2<<30 { // it has been seen for two seconds
				require.Zero(t, time.Since(began), "at %d MiB", end/mib)
			}
			time.Sleep(time.Second / 1024)
		}
	})
}

// An extension that takes much longer than the ones before it is not noticed by a
// writer of 1 GiB/s either, and the granted size stays within 512 MiB of its end.
func TestFastWriterDoesNotNoticeASlowExtension(t *testing.T) {
	thinTest(t, 128*mib, 1<<40, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		for end := int64(0); end < 8<<30; end += mib {
			pool.set(func() {
				if pool.latency = 30 * time.Millisecond; len(pool.calls)%8 == 7 {
					pool.latency = 300 * time.Millisecond
				}
			})
			began := time.Now()
			grow(t, f, end)
			require.Zero(t, time.Since(began), "at %d MiB", end/mib)
			require.LessOrEqual(t, f.Stats().Headroom, int64(512*mib))
			time.Sleep(time.Second / 1024)
		}
		require.GreaterOrEqual(t, f.Stats().MaxLatency, 300*time.Millisecond)
	})
}

func TestExtenderDeadThenBack(t *testing.T) {
	thinTest(t, 128*mib, 1<<40, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		pool.set(func() { pool.err = fmt.Errorf("nobody answers: %w", block.ErrNoSpace) })
		done := growLater(t.Context(), f, 200*mib)
		time.Sleep(time.Minute)
		waiting(t, done)
		require.Less(t, len(pool.seen()), 200, "attempts have pauses")
		require.Greater(t, f.Stats().FailedRequests, 10)
		pool.set(func() { pool.err = nil })
		began := time.Now()
		require.NoError(t, <-done)
		require.LessOrEqual(t, time.Since(began), time.Second)
		require.Zero(t, f.Stats().FailedRequests)
	})
}

func TestHeadroomIsRetriedWithoutAGrow(t *testing.T) {
	thinTest(t, 128*mib, 1<<40, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		pool.set(func() { pool.err = errors.New("dead") })
		grow(t, f, 1)
		time.Sleep(time.Minute)
		pool.set(func() { pool.err = nil })
		time.Sleep(time.Second)
		synctest.Wait()
		require.EqualValues(t, 256*mib, f.Size())
	})
}

func TestLostAnswerIsAskedForAgain(t *testing.T) {
	thinTest(t, 128*mib, 1<<40, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		pool.set(func() { pool.lose = 3 })
		grow(t, f, 200*mib)
		require.EqualValues(t, 384*mib, pool.size, "nothing is extended twice")
		require.EqualValues(t, 384*mib, f.Size())
	})
}

func TestTwoWaitersGetWhatSuffices(t *testing.T) {
	thinTest(t, 128*mib, 0, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		large := growLater(t.Context(), f, 300*mib)
		small := growLater(t.Context(), f, 129*mib)
		require.Zero(t, f.Stats().FailedRequests, "a request that is decided again has not failed")
		began := time.Now()
		pool.set(func() { pool.free = 12 * mib })
		require.NoError(t, <-small, "what is left goes to the need that it meets")
		require.Zero(t, time.Since(began))
		waiting(t, large)
		pool.set(func() { pool.free = 1 << 40 })
		require.NoError(t, <-large)
	})
}

func TestLargeWaiterGoesAndLeavesTheSmallOne(t *testing.T) {
	thinTest(t, 128*mib, 0, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		large := growLater(ctx, f, 300*mib)
		small := growLater(t.Context(), f, 130*mib)
		require.ErrorIs(t, <-large, block.ErrNoSpace)
		waiting(t, small)
		pool.set(func() { pool.free = 2 * mib })
		require.NoError(t, <-small)
	})
}

func TestSizeGrowsOnlyWhenTheFileHasAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := newPool(128*mib, 1<<40)
		inner := &poolFile{pool: pool, size: 128 * mib, refuse: errors.New("no such device")}
		f := New(inner, pool, Options{})
		done := growLater(t.Context(), f, 200*mib)
		time.Sleep(time.Second)
		waiting(t, done)
		require.EqualValues(t, 128*mib, f.Size())
		inner.mu.Lock()
		inner.refuse = nil
		inner.mu.Unlock()
		require.NoError(t, <-done)
		require.NoError(t, f.Close())
	})
}

func TestCloseEndsWaitsAndTheGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := newPool(128*mib, 0)
		f := New(&poolFile{pool: pool, size: 128 * mib}, pool, Options{})
		done := growLater(t.Context(), f, 200*mib)
		require.NoError(t, f.Close())
		require.ErrorIs(t, <-done, block.ErrClosed)
		_, err := f.Grow(t.Context(), 1, 1)
		require.ErrorIs(t, err, block.ErrClosed)
		require.ErrorIs(t, f.Close(), block.ErrClosed)
	})
}

func TestShrinkAndReadOnly(t *testing.T) {
	thinTest(t, 128*mib, 0, Options{}, func(t *testing.T, f *File, _ *fakePool) {
		f.inner.(*poolFile).keeps = true
		require.ErrorIs(t, f.Shrink(t.Context(), 128*mib, 0), block.ErrUnsupported)
		require.EqualValues(t, 128*mib, f.Size())
		_, err := f.Grow(t.Context(), -1, 0)
		require.ErrorIs(t, err, block.ErrRange)
		f.inner.(*poolFile).readOnly = true
		_, err = f.Grow(t.Context(), 1, 1)
		require.ErrorIs(t, err, block.ErrReadOnly)
	})
}

// Headroom that was given back is asked for again when the writer goes on, and not
// before; nothing is given back while the volume is about to grow.
func TestShrinkGivesHeadroomBack(t *testing.T) {
	thinTest(t, 128*mib, 1<<40, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		grow(t, f, 100*mib)
		synctest.Wait()
		require.EqualValues(t, 256*mib, f.Size())
		moved := f.Stats().Moved
		time.Sleep(time.Minute)
		require.Equal(t, moved, f.Stats().Moved)
		require.ErrorIs(t, f.Shrink(t.Context(), 255*mib, 100*mib), block.ErrStale)
		require.ErrorIs(t, f.Shrink(t.Context(), 256*mib, 257*mib), block.ErrRange)
		require.NoError(t, f.Shrink(t.Context(), 256*mib, 100*mib+1))
		require.EqualValues(t, 101*mib, f.Size())
		require.ErrorIs(t, f.Shrink(t.Context(), 256*mib, 100*mib), block.ErrStale, "a late duplicate")
		calls := len(pool.seen())
		time.Sleep(time.Hour)
		grow(t, f, 100*mib)
		time.Sleep(time.Hour)
		require.Len(t, pool.seen(), calls, "nothing is asked for: the writer is where it was")
		grow(t, f, 101*mib)
		synctest.Wait()
		require.EqualValues(t, 256*mib, f.Size(), "the writer has gone on")

		pool.set(func() { pool.free = 0 })
		done := growLater(t.Context(), f, 300*mib)
		waiting(t, done)
		err := f.Shrink(t.Context(), 256*mib, 101*mib)
		require.ErrorIs(t, err, block.ErrInUse)
		require.ErrorIs(t, err, block.ErrUnsupported, "it keeps its space")
		pool.set(func() { pool.free = 1 << 30 })
		require.NoError(t, <-done)
	})
}

// A volume whose writer was told that there is no space asks for headroom until it
// has some, also when it has given some back before.
func TestHungry(t *testing.T) {
	thinTest(t, 256*mib, 0, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		grow(t, f, 100*mib)
		require.NoError(t, f.Shrink(t.Context(), 256*mib, 100*mib))
		pool.set(func() { pool.free = 0 })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := f.Grow(ctx, 200*mib, 200*mib)
		require.ErrorIs(t, err, block.ErrNoSpace)
		require.True(t, f.Stats().Hungry)
		time.Sleep(time.Hour)
		require.True(t, f.Stats().Hungry)
		pool.set(func() { pool.free = 1 << 30 })
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		require.False(t, f.Stats().Hungry)
		require.GreaterOrEqual(t, f.Stats().Headroom, int64(128*mib))
	})
}

// A Grow that comes while space is given back waits until that is over.
func TestGrowWhileHeadroomIsGivenBack(t *testing.T) {
	thinTest(t, 256*mib, 1<<40, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		grow(t, f, 100*mib)
		require.NoError(t, f.beginShrink(256*mib, 128*mib))
		done := growLater(t.Context(), f, 120*mib)
		waiting(t, done)
		require.Empty(t, pool.seen())
		f.mu.Lock()
		f.shrinking = false
		f.serveLocked()
		f.mu.Unlock()
		require.NoError(t, <-done)
	})
}

// A hold records what a front end is told.
type hold struct {
	refuse       error
	begun, ended atomic.Int32
}

func (h *hold) Begin() error {
	if h.refuse != nil {
		return h.refuse
	}
	h.begun.Add(1)
	return nil
}
func (h *hold) End() { h.ended.Add(1) }

func TestHold(t *testing.T) {
	thinTest(t, 128*mib, 1<<40, Options{}, func(t *testing.T, f *File, pool *fakePool) {
		h := &hold{}
		ctx := block.WithHold(t.Context(), h)
		pool.latency = 40 * time.Millisecond
		_, err := f.Grow(ctx, 200*mib, 200*mib)
		require.NoError(t, err)
		require.Zero(t, h.begun.Load(), "a pool that answers soon holds nobody")

		pool.set(func() { pool.free = 0 })
		done := growLater(ctx, f, 2<<30)
		time.Sleep(time.Second)
		synctest.Wait()
		require.EqualValues(t, 1, h.begun.Load())
		require.Zero(t, h.ended.Load())
		pool.set(func() { pool.free = 1 << 40 })
		require.NoError(t, <-done)
		synctest.Wait()
		require.EqualValues(t, 1, h.ended.Load())

		pool.set(func() { pool.free = 0 })
		full := &hold{refuse: fmt.Errorf("eight are held already: %w", block.ErrNoSpace)}
		_, err = f.Grow(block.WithHold(t.Context(), full), 4<<30, 4<<30)
		require.Equal(t, full.refuse, err)
		require.Zero(t, full.ended.Load())
	})
}

// passing is an inner file that records what arrives.
type passing struct {
	poolFile
	got []string
}

func (p *passing) note(s string) error { p.got = append(p.got, s); return nil }
func (p *passing) ReadAt(b []byte, off int64) (int, error) {
	p.note(fmt.Sprint("read ", len(b), off))
	return len(b), io.EOF
}
func (p *passing) WriteLater(b []byte, off int64, _ block.Later) bool {
	p.note(fmt.Sprint("write later ", len(b), off))
	return true
}

func (p *passing) ReadNow(b []byte, off int64) bool {
	return p.note(fmt.Sprint("now ", len(b), off)) == nil
}
func (p *passing) WriteAt(b []byte, off int64) (int, error) {
	return len(b), p.note(fmt.Sprint("write ", len(b), off))
}
func (p *passing) WriteAtSync(b []byte, off int64) (int, error) {
	return len(b), p.note(fmt.Sprint("fua ", len(b), off))
}
func (p *passing) WriteZeroes(off, n int64) error { return p.note(fmt.Sprint("zero ", off, n)) }
func (p *passing) Discard(off, n int64) error     { return p.note(fmt.Sprint("discard ", off, n)) }
func (p *passing) WriteBack(off, n int64)         { p.note(fmt.Sprint("write back ", off, n)) }
func (p *passing) Sync() error                    { return p.note("sync") }

func TestEverythingElsePassesThrough(t *testing.T) {
	pool := newPool(100, 0)
	inner := &passing{poolFile: poolFile{pool: pool, size: 100}}
	f := New(inner, pool, Options{})
	b := make([]byte, 3)
	n, err := f.ReadAt(b, 1)
	require.Equal(t, 3, n)
	require.Equal(t, io.EOF, err)
	require.True(t, f.ReadNow(b, 1))
	f.WriteAt(b, 2)
	f.WriteAtSync(b, 3)
	require.True(t, f.WriteLater(b, 4, nil))
	f.WriteZeroes(4, 5)
	f.Discard(6, 7)
	f.WriteBack(8, 9)
	f.Sync()
	require.Equal(t, []string{"read 3 1", "now 3 1", "write 3 2", "fua 3 3", "write later 3 4", "zero 4 5", "discard 6 7", "write back 8 9", "sync"}, inner.got)
	require.NoError(t, f.Close())
}
