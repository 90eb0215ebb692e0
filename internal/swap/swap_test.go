package swap_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/swap"
	"tidemark/internal/testenv"
)

func TestDeviceConforms(t *testing.T) {
	blocktest.TestDevice(t, func(_ *testing.T, size int64) block.Device { return swap.New(blocktest.NewMemDevice(size)) })
}

func TestMirrorConforms(t *testing.T) {
	blocktest.TestDevice(t, func(_ *testing.T, size int64) block.Device {
		return swap.NewMirror(blocktest.NewMemDevice(size), blocktest.NewMemDevice(size), cell)
	})
}

const cell = 4096

// An overlay is the simplest disk over another: cells of its own, and what is below
// where it has none. It can be told to fail.
type overlay struct {
	*blocktest.MemDevice
	below block.Device
	mu    sync.RWMutex // guards own
	own   []bool
}

func newOverlay(below block.Device) *overlay {
	n := below.Info().Size
	return &overlay{MemDevice: blocktest.NewMemDevice(n), below: below, own: make([]bool, (n+cell-1)/cell)}
}

func (o *overlay) ReadAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if err := o.MemDevice.ReadAt(ctx, p, off, f); err != nil {
		return err
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	for at := off; at < off+int64(len(p)); {
		next := min(at-at%cell+cell, off+int64(len(p)))
		src := block.Device(o.MemDevice)
		if !o.own[at/cell] {
			src = o.below
		}
		if err := src.ReadAt(ctx, p[at-off:next-off], at, 0); err != nil {
			return err
		}
		at = next
	}
	return nil
}

// claim makes the cells of a range the overlay's own, with their content.
func (o *overlay) claim(ctx context.Context, off, n int64) error {
	for c := off / cell; c*cell < off+n; c++ {
		if o.own[c] {
			continue
		}
		p := make([]byte, min(cell, o.Info().Size-c*cell))
		if err := o.below.ReadAt(ctx, p, c*cell, 0); err != nil {
			return err
		}
		if err := o.MemDevice.WriteAt(ctx, p, c*cell, 0); err != nil {
			return err
		}
		o.own[c] = true
	}
	return nil
}

func (o *overlay) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return o.change(ctx, off, int64(len(p)), func() error { return o.MemDevice.WriteAt(ctx, p, off, f) })
}

func (o *overlay) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	return o.change(ctx, off, n, func() error { return o.MemDevice.WriteZeroes(ctx, off, n, f&^block.MayUnmap) })
}

func (o *overlay) Discard(ctx context.Context, off, n int64, _ block.Flags) error {
	return o.WriteZeroes(ctx, off, n, 0)
}

func (o *overlay) change(ctx context.Context, off, n int64, do func() error) error {
	if err := block.CheckRange(off, n, o.Info().Size); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.claim(ctx, off, n); err != nil {
		return err
	}
	return do()
}

func (o *overlay) AppendExtents(ctx context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	all, err := o.MemDevice.AppendExtents(ctx, nil, off, n)
	if err != nil {
		return dst, err
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	for at, end := off, all[len(all)-1].End(); at < end; {
		e := block.Extent{Off: at, Len: min(at-at%cell+cell, end) - at, Host: -1, Depth: 1}
		if o.own[at/cell] {
			e.State, e.Depth = block.Allocated|block.Data, 0
		}
		dst, at = append(dst, e), e.End()
	}
	return dst, nil
}

// contentOf reads a disk.
func contentOf(t *testing.T, d block.Device) []byte {
	t.Helper()
	b := make([]byte, d.Info().Size)
	require.NoError(t, d.ReadAt(context.Background(), b, 0, 0))
	return b
}

// writers change a disk from several goroutines until they are stopped: each a part
// that is its own, of which it knows what must be there, and all together another part.
type writers struct {
	stop atomic.Bool
	wg   sync.WaitGroup
	part int64
	want [][]byte
	errs atomic.Int64 // requests that failed
}

func startWriters(t *testing.T, d block.Device, rng *rand.Rand, n int) *writers {
	w := &writers{part: d.Info().Size / int64(n+1)}
	w.want = make([][]byte, n)
	for i := range n {
		w.want[i] = make([]byte, w.part)
		require.NoError(t, d.ReadAt(context.Background(), w.want[i], int64(i)*w.part, 0))
		own := rand.New(rand.NewPCG(rng.Uint64(), 0))
		w.wg.Go(func() { w.run(t, d, own, i, n) })
	}
	return w
}

func (w *writers) run(t *testing.T, d block.Device, rng *rand.Rand, i, n int) {
	for !w.stop.Load() {
		from, want := int64(i)*w.part, w.want[i]
		if rng.IntN(2) == 0 {
			from, want = int64(n)*w.part, make([]byte, w.part) // everybody's
		}
		length := 1 + rng.Int64N(min(40<<10, w.part))
		off := rng.Int64N(w.part - length + 1)
		if from == int64(n)*w.part {
			off = rng.Int64N(32 << 10) // so that they meet
		}
		var err error
		f := block.Flags(rng.IntN(2)) * block.NoWait
		for tries := 0; tries < 2; tries, f = tries+1, 0 {
			switch rng.IntN(8) {
			case 0:
				if err = d.WriteZeroes(t.Context(), from+off, length, f|block.MayUnmap); err == nil {
					clear(want[off : off+length])
				}
			case 1:
				got := make([]byte, length)
				if err = d.ReadAt(t.Context(), got, from+off, f); err == nil && from == int64(i)*w.part && !bytes.Equal(got, want[off:off+length]) {
					t.Errorf("%d bytes at %d are not what was written", length, from+off)
				}
			case 2:
				if err = d.Discard(t.Context(), from+off, length, f); err == nil { // old or zero: see which
					err = d.ReadAt(t.Context(), want[off:off+length], from+off, 0)
				}
			case 3:
				err = d.Flush(t.Context())
			default:
				p := bytes.Repeat([]byte{byte(rng.Uint32()) | 1}, int(length))
				if err = d.WriteAt(t.Context(), p, from+off, f); err == nil {
					copy(want[off:], p)
				}
			}
			if !errors.Is(err, block.ErrWouldBlock) {
				break
			}
		}
		if err != nil {
			w.errs.Add(1)
		}
	}
}

// end stops the writers; d must have what they wrote.
func (w *writers) end(t *testing.T, d block.Device) {
	t.Helper()
	w.stop.Store(true)
	w.wg.Wait()
	got := contentOf(t, d)
	for i, want := range w.want {
		require.True(t, bytes.Equal(want, got[int64(i)*w.part:int64(i+1)*w.part]), "the part of writer %d", i)
	}
}

// Under writers that never stop, a disk gets a new top, is merged into its base, and
// goes on with that alone, again and again.
func TestMergeUnderLoad(t *testing.T) {
	seed, rng := testenv.Seed(t)
	t.Log("seed", seed)
	const size = 6<<20 + 12345
	base := block.Device(&yielding{blocktest.NewMemDevice(size)})
	front := swap.New(base)
	w := startWriters(t, front, rng, 3)
	rounds := 60
	if testing.Short() {
		rounds = 20
	}
	for range rounds {
		var top *overlay
		require.NoError(t, front.Switch(t.Context(), func(old block.Device) (block.Device, error) {
			require.Equal(t, base, old)
			top = newOverlay(base)
			return top, nil
		}))
		for range rng.IntN(50) {
			require.NoError(t, front.Flush(t.Context()))
		}
		var m *swap.Mirror
		require.NoError(t, front.Switch(t.Context(), func(block.Device) (block.Device, error) {
			m = swap.NewMirror(top, base, cell)
			return m, nil
		}))
		require.Equal(t, swap.Copying, m.Progress().State)
		if rng.IntN(3) == 0 { // it is cancelled, and the top is what counts
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			require.ErrorIs(t, m.Copy(ctx), context.Canceled)
			require.NoError(t, front.Switch(t.Context(), func(block.Device) (block.Device, error) { return top, nil }))
			require.NoError(t, front.Switch(t.Context(), func(block.Device) (block.Device, error) {
				m = swap.NewMirror(top, base, cell)
				return m, nil
			}))
		}
		require.NoError(t, m.Copy(t.Context()))
		p := m.Progress()
		require.Equal(t, swap.Progress{State: swap.Ready, Done: size, Total: size}, p)
		require.NoError(t, front.Switch(t.Context(), func(block.Device) (block.Device, error) {
			require.True(t, bytes.Equal(contentOf(t, top), contentOf(t, base)), "the base alone shows the same")
			return base, nil
		}))
	}
	w.end(t, front)
	require.Zero(t, w.errs.Load())
}

// A yielding lets others go first now and then, as a disk that takes its time does.
type yielding struct{ block.Device }

func (y *yielding) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	y.pause()
	defer y.pause()
	return y.Device.WriteAt(ctx, p, off, f)
}

func (y *yielding) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	y.pause()
	defer y.pause()
	return y.Device.WriteZeroes(ctx, off, n, f)
}

func (y *yielding) pause() {
	for range rand.IntN(20) { // no decision depends on it
		runtime.Gosched()
	}
}

// failing fails changes and flushes from the one with the number at on.
type failing struct {
	block.Device
	at, n atomic.Int64
}

var errBroken = errors.New("broken")

func (f *failing) step() error {
	if n := f.n.Add(1); n > f.at.Load() {
		return errBroken
	}
	return nil
}

func (f *failing) WriteAt(ctx context.Context, p []byte, off int64, fl block.Flags) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Device.WriteAt(ctx, p, off, fl)
}

func (f *failing) WriteZeroes(ctx context.Context, off, n int64, fl block.Flags) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Device.WriteZeroes(ctx, off, n, fl)
}

func (f *failing) Flush(ctx context.Context) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Device.Flush(ctx)
}

// A base that fails before the merge is ready ends it, and nobody else notices.
func TestBaseFailsWhileCopying(t *testing.T) {
	seed, rng := testenv.Seed(t)
	t.Log("seed", seed)
	for at := range int64(40) {
		mem := blocktest.NewMemDevice(1 << 20)
		base := &failing{Device: mem}
		base.at.Store(at)
		top := newOverlay(base)
		require.NoError(t, top.WriteAt(t.Context(), bytes.Repeat([]byte{5}, 300<<10), 100<<10, 0))
		m := swap.NewMirror(top, base, cell)
		w := startWriters(t, m, rng, 2)
		for base.n.Load() <= at+1 && m.Progress().State != swap.Failed {
			if err := m.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		require.Error(t, m.Copy(t.Context()))
		require.Equal(t, swap.Failed, m.Progress().State)
		require.ErrorIs(t, m.Progress().Err, errBroken)
		w.end(t, top)
		require.Zero(t, w.errs.Load())
	}
}

// Who was told that a disk can discard, and goes on with one that cannot, as a raw volume
// of a group is, is told no error.
func TestDiscardOfWhatCannot(t *testing.T) {
	front := swap.New(blocktest.NewMemDevice(1 << 20))
	require.True(t, front.Info().CanDiscard)
	require.NoError(t, front.WriteAt(t.Context(), []byte{7}, 0, 0))
	require.NoError(t, front.Switch(t.Context(), func(old block.Device) (block.Device, error) { return keeping{old}, nil }))
	require.NoError(t, front.Discard(t.Context(), 0, 4096, 0))
	require.EqualValues(t, 7, contentOf(t, front)[0])
	require.ErrorIs(t, front.Discard(t.Context(), 1<<20, 1, 0), block.ErrRange)
}

// A keeping cannot discard.
type keeping struct{ block.Device }

func (k keeping) Info() block.DeviceInfo {
	i := k.Device.Info()
	i.CanDiscard = false
	return i
}

func (k keeping) Discard(_ context.Context, off, n int64, _ block.Flags) error {
	if err := block.CheckRange(off, n, k.Info().Size); err != nil {
		return err
	}
	return block.ErrUnsupported
}

// Once it is ready, what does not reach the base is not acknowledged.
func TestBaseFailsWhenReady(t *testing.T) {
	base := &failing{Device: blocktest.NewMemDevice(1 << 20)}
	base.at.Store(1 << 40)
	m := swap.NewMirror(newOverlay(base), base, cell)
	require.NoError(t, m.Copy(t.Context()))
	base.at.Store(0)
	require.ErrorIs(t, m.WriteAt(t.Context(), []byte{1}, 0, 0), errBroken)
	require.ErrorIs(t, m.WriteZeroes(t.Context(), 0, 1, 0), errBroken)
	require.ErrorIs(t, m.Flush(t.Context()), errBroken)
	require.Equal(t, swap.Ready, m.Progress().State)
	require.ErrorIs(t, m.WriteAt(t.Context(), []byte{1}, 0, block.NoWait), block.ErrWouldBlock)
}

// A Switch that does not come to its turn changes nothing, and lets everybody in again.
func TestSwitchGivesUp(t *testing.T) {
	hang := &hanging{Device: blocktest.NewMemDevice(1 << 20), in: make(chan struct{}), out: make(chan struct{})}
	front := swap.New(hang)
	done := make(chan error, 1)
	go func() { done <- front.WriteAt(context.Background(), []byte{1}, 0, 0) }()
	<-hang.in
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan error, 1)
	go func() {
		gaveUp <- front.Switch(ctx, func(block.Device) (block.Device, error) {
			t.Error("a request was in progress")
			return nil, nil
		})
	}()
	testenv.Eventually(t, time.Minute, "the entrance is shut", func() bool {
		return errors.Is(front.ReadAt(t.Context(), make([]byte, 1), 0, block.NoWait), block.ErrWouldBlock)
	})
	read := make(chan error, 1)
	go func() { read <- front.ReadAt(context.Background(), make([]byte, 1), 0, 0) }()
	cancel()
	require.ErrorIs(t, <-gaveUp, context.Canceled)
	require.NoError(t, <-read, "it came meanwhile")
	close(hang.out)
	require.NoError(t, <-done)
	next := blocktest.NewMemDevice(1 << 20)
	require.NoError(t, front.Switch(t.Context(), func(block.Device) (block.Device, error) { return next, nil }))
	require.Same(t, next, front.Shown())
}

// A write that the device has begun is in until it has ended, and none begins while
// the entrance is shut.
func TestSwitchWaitsForWhatWasBegun(t *testing.T) {
	d := &beginning{Device: blocktest.NewMemDevice(1 << 20)}
	front := swap.New(d)
	told := make(later, 1)
	require.True(t, front.WriteLater([]byte{1}, 0, told))
	done := make(chan error, 1)
	go func() {
		done <- front.Switch(context.Background(), func(block.Device) (block.Device, error) {
			if len(told) == 0 {
				t.Error("a write was in progress")
			}
			return nil, nil
		})
	}()
	testenv.Eventually(t, time.Minute, "the entrance is shut", func() bool {
		return errors.Is(front.ReadAt(t.Context(), make([]byte, 1), 0, block.NoWait), block.ErrWouldBlock)
	})
	require.False(t, front.WriteLater([]byte{1}, 0, told))
	told <- true // before it is told: the writer is done when the write has left
	d.to.Ended(true)
	require.NoError(t, <-done)
	require.Len(t, told, 1)
}

type later chan bool

func (l later) Ended(bool) {}

// A beginning begins what it is asked to.
type beginning struct {
	block.Device
	to block.Later
}

func (b *beginning) WriteLater(_ []byte, _ int64, to block.Later) bool {
	b.to = to
	return true
}

type hanging struct {
	block.Device
	in, out chan struct{}
}

func (h *hanging) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	close(h.in)
	<-h.out
	return h.Device.WriteAt(ctx, p, off, f)
}
