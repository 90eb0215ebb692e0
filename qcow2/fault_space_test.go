package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// A grower is storage whose at-th Grow meets something; the others go well. It is of
// a size that is not its own, as a volume of a pool.
type grower struct {
	*simdisk.Disk
	at    int
	meets func(g *grower, ctx context.Context, need, want int64) (int64, error)

	mu    sync.Mutex
	calls int // that make it larger
}

func (g *grower) Grow(ctx context.Context, need, want int64) (int64, error) {
	if need > g.Size() {
		g.mu.Lock()
		g.calls++
		here := g.calls == g.at
		g.mu.Unlock()
		if here {
			return g.meets(g, ctx, need, want)
		}
	}
	return g.Disk.Grow(ctx, need, want)
}

// What the i-th Grow meets, and whether a request with the patience of a second, one
// that waits for it, has to succeed all the same.
var growth = []struct {
	name     string
	succeeds bool
	meets    func(g *grower, ctx context.Context, need, want int64) (int64, error)
}{
	{"slow", true, func(g *grower, ctx context.Context, need, want int64) (int64, error) {
		return g.after(ctx, 900*time.Millisecond, need, want)
	}},
	{"too slow", false, func(g *grower, ctx context.Context, need, want int64) (int64, error) {
		return g.after(ctx, time.Minute, need, want)
	}},
	{"refused", false, func(g *grower, _ context.Context, need, _ int64) (int64, error) {
		return g.Size(), fmt.Errorf("injected into grow to %d: %w", need, block.ErrNoSpace)
	}},
	{"failed", false, func(g *grower, _ context.Context, need, _ int64) (int64, error) {
		return g.Size(), fmt.Errorf("injected into grow to %d: the manager is gone", need)
	}},
	{"reply lost", false, func(g *grower, ctx context.Context, need, want int64) (int64, error) {
		_, err := g.Disk.Grow(ctx, need, want)
		return 0, errors.Join(err, errors.New("injected: the reply was lost"))
	}},
	{"less than wanted", true, func(g *grower, ctx context.Context, need, _ int64) (int64, error) {
		return g.Disk.Grow(ctx, need, need)
	}},
}

// after grows later, whether anybody waits for it then or not.
func (g *grower) after(ctx context.Context, d time.Duration, need, want int64) (int64, error) {
	done := make(chan struct{})
	time.AfterFunc(d, func() {
		_, _ = g.Disk.Grow(context.Background(), need, want)
		close(done)
	})
	select {
	case <-done:
		return g.Size(), nil
	case <-ctx.Done():
		return g.Size(), block.SpaceError(ctx)
	}
}

// TestGrowFaults: the i-th Grow of the file is slow, too slow for the patience of
// requests, refused, fails, succeeds without saying so: nothing is corrupted, no
// request fails that need not, and the image goes on.
func TestGrowFaults(t *testing.T) {
	grown := 0
	for _, subject := range someSubjects(sweepSize) {
		m := subject.make(t)
		for _, kind := range growth {
			t.Run(subject.name+"/"+kind.name, func(t *testing.T) {
				s := newSweep(t, subject.make(t), true)
				dir := filepath.Join(t.TempDir(), "redo")
				for i := 1; ; i++ {
					met := false
					m.bubble(t, func(t *testing.T) {
						g := &grower{Disk: s.newDisk(), at: i, meets: kind.meets}
						writeFiles(t, dir, s.redo)
						s.runGrower(t, dir, g, kind.succeeds, fmt.Sprintf("grow %d", i))
						time.Sleep(2 * time.Minute) // what was too slow comes after all
						met = g.calls >= i
					})
					if !met {
						break
					}
					grown++
				}
			})
		}
	}
	require.Greater(t, grown, scaled(300), "calls of Grow")
}

func (s *sweep) newDisk() *simdisk.Disk {
	return simdisk.NewDisk(s.file, simdisk.Options{Foreign: !s.m.fresh, DiscardForeign: true})
}

func (s *sweep) runGrower(t *testing.T, dir string, g *grower, succeeds bool, what string) {
	o := &ordeal{s: s, t: t, disk: g.Disk}
	o.g = newGuest(nil, s.power.clone(), s.death.clone(), 100)
	im, err := s.m.tryOpen(t, g, s.options(dir))
	require.NoError(t, err, what)
	o.g.im = im
	o.g.work(s.m.fixed())
	for _, err := range o.g.errs {
		if !errors.Is(err, block.ErrNoSpace) {
			require.ErrorContains(t, err, "injected", what)
		}
	}
	if succeeds {
		require.Empty(t, o.g.errs, what)
	}
	require.NoError(t, im.Stats().Poisoned, what)
	// It goes on, and nothing is lost. The Grow in question may be one of these.
	o.g.write(1, 150, 0)
	o.g.errs = nil
	o.g.write(1, 150, 0)
	o.g.flush()
	require.Empty(t, o.g.errs, what)
	o.judgePowerCuts()
	<-im.Settled()
	require.NoError(t, im.Close(), what)
	left := g.Crash(simdisk.DropAll)
	o.judgeContent(left, o.g.death, what+", closed")
	leaks, problems := leaksOf(t, left)
	require.LessOrEqual(t, leaks, s.leaks, "%s, closed: %q", what, problems)
}

// TestAllocationFaults: the pool is full at the i-th cluster that the image takes.
// Requests that need it wait, and fail with "no space" when their patience ends; the
// others go on, and nobody stops the image. When there is space again all is well.
func TestAllocationFaults(t *testing.T) {
	_, rng := testenv.Seed(t)
	refused := 0
	for _, subject := range someSubjects(sweepSize) {
		s := newSweep(t, subject.make(t), rng.IntN(2) == 0)
		t.Run(subject.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "redo")
			for i := int64(0); ; i++ {
				met := false
				s.m.bubble(t, func(t *testing.T) { met = s.runFull(t, dir, i) })
				if !met {
					return
				}
				refused++
			}
		})
	}
	require.Greater(t, refused, scaled(100), "allocations")
}

// runFull does the scenario in a pool that has i clusters more than the image has at
// first, and reports whether anybody had to wait.
func (s *sweep) runFull(t *testing.T, dir string, i int64) bool {
	what := fmt.Sprintf("%d clusters", i)
	d := s.newDisk()
	h, err := qcow2.ReadHeader(d)
	require.NoError(t, err)
	p := newPool(d.Size() + i*h.ClusterSize())
	p.Disk = d
	writeFiles(t, dir, s.redo)
	im, err := s.m.tryOpen(t, p, s.options(dir))
	require.NoError(t, err, what)
	o := &ordeal{s: s, t: t, disk: d, g: newGuest(im, s.power.clone(), s.death.clone(), 100)}
	o.g.work(s.m.fixed())
	for _, err := range o.g.errs {
		require.ErrorIs(t, err, block.ErrNoSpace, what)
	}
	require.NoError(t, im.Stats().Poisoned, what)
	met := len(o.g.errs) > 0
	o.judgePowerCuts()

	o.g.errs = nil
	p.raise(1 << 40)
	o.g.work(true)
	require.Empty(t, o.g.errs, what)
	<-im.Settled()
	require.NoError(t, im.Close(), what)
	left := d.Crash(simdisk.DropAll)
	o.judgeContent(left, o.g.death, what+", closed")
	leaks, problems := leaksOf(t, left)
	require.LessOrEqual(t, leaks, s.leaks, "%s, closed: %q", what, problems)
	return met
}
