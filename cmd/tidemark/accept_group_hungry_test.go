//go:build linux

package main_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// What the nine others must keep of their speed while the tenth waits, in the
// median of pairs that are measured one after the other.
const (
	keptSpeed   = 0.75
	speedRounds = 9
	speedWindow = 700 * time.Millisecond
)

// Ten disks in a group that is full. One of them wants more, and its writes wait;
// the others read and overwrite as fast as if nobody waited.
func TestGroupFullOneIsHungry(t *testing.T) {
	workspace(t)
	g := newGroupPool(t, 1, 3*gib)
	var others []*nbd.Client
	for i := range 9 {
		name := fmt.Sprintf("disk%d", i)
		g.create(name, 4*gib)
		c := serve(t, t.TempDir(), "--spm", g.socket, name).dial()
		fill(t, c, 1, 0, 16*mib)
		require.NoError(t, c.Flush(t.Context()))
		others = append(others, c)
	}
	g.create("hungry", 10*gib)
	s := serve(t, t.TempDir(), "--spm", g.socket, "--patience", "120s", "hungry")
	c := s.dial()
	ended := make(chan error, 1)
	go func() {
		var err error
		for at := int64(0); err == nil; at += mib {
			err = c.WriteAt(t.Context(), patterned(2, at, mib), at, 0)
		}
		ended <- err
	}()
	// The headroom of the others is recalled first.
	testenv.Eventually(t, time.Minute, "the group is full, and nobody else has headroom", func() bool {
		p := g.info()
		return len(p.Waiting) == 1 && p.HostFree == 0 && p.Granted-g.volume("hungry").Granted == 9*chunk
	})
	requireWaiting(t, g.testPool, "hungry")
	require.NoError(t, c.Close())
	<-ended

	var ratios []float64
	for round := range speedRounds {
		alone := func() float64 { return speedOf(t, others) }
		waiting := func() float64 {
			c := s.dial()
			held := make(chan error, 4)
			for i := range int64(4) {
				go func() { held <- c.WriteAt(t.Context(), patterned(3, i*mib, mib), 9*gib+i*mib, 0) }()
			}
			testenv.Eventually(t, 5*time.Second, "hungry waits", func() bool { return len(g.info().Waiting) == 1 })
			v := speedOf(t, others)
			require.Len(t, g.info().Waiting, 1, "it still does")
			require.NoError(t, c.Close())
			for range 4 {
				require.Error(t, <-held)
			}
			testenv.Eventually(t, 5*time.Second, "hungry waits no more", func() bool { return len(g.info().Waiting) == 0 })
			return v
		}
		var a, w float64
		if round%2 == 0 {
			a, w = alone(), waiting()
		} else {
			w, a = waiting(), alone()
		}
		ratios = append(ratios, w/a)
		t.Logf("%.0f MB/s alone, %.0f MB/s while hungry waits", a/1e6, w/1e6)
	}
	slices.Sort(ratios)
	t.Logf("measured: kept speed while another disk waits, of %d pairs: median %.2f, from %.2f to %.2f", len(ratios), ratios[len(ratios)/2], ratios[0], ratios[len(ratios)-1])
	require.Greater(t, ratios[len(ratios)/2], keptSpeed)
	g.requireAgrees(t)
}

// speedOf lets all of them read and overwrite what they have, and returns bytes a
// second.
func speedOf(t *testing.T, clients []*nbd.Client) float64 {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var bytes atomic.Int64
	var wg sync.WaitGroup
	errs := make(chan error, len(clients))
	began := time.Now()
	for _, c := range clients {
		wg.Go(func() {
			p := make([]byte, 64<<10)
			for n := int64(0); time.Since(began) < speedWindow; n++ {
				off := n * int64(len(p)) % (16 * mib)
				var err error
				if n%2 == 0 {
					err = c.WriteAt(ctx, p, off, 0)
				} else {
					err = c.ReadAt(ctx, p, off, 0)
				}
				if err != nil {
					errs <- err
					return
				}
				bytes.Add(int64(len(p)))
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
	return float64(bytes.Load()) / took.Seconds()
}
