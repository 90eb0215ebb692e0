package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"tidemark/spm"
)

// large is the virtual size of a volume that grows: it does not come to its bound.
const large = 1 << 40

// alone is how many times as often one volume crosses alone.
const alone = 40

// A grower is a volume that asks for space.
type grower struct {
	client  *client
	volume  string
	granted int64
}

// cross asks for one step more, and for the answer that there is that.
func (g *grower) cross(ctx context.Context, step int64) error {
	r, err := g.client.ExtendVolume(ctx, spm.VolumeExtendRequest{
		VolumeRef: spm.VolumeRef{Volume: g.volume}, Need: g.granted + 1, Want: g.granted + step,
	})
	if err == nil && r.Size <= g.granted {
		err = fmt.Errorf("volume %s was granted %d bytes, expected more than %d", g.volume, r.Size, g.granted)
	}
	if err == nil {
		g.granted = r.Size
	}
	return err
}

// crossings times extensions of more and more volumes at once.
func crossings(ctx context.Context, s *site, o options, pool string) ([]cell, error) {
	made, err := s.client.fill(ctx, nil, slices.Max(o.crossing), large, s.initial)
	if err != nil {
		return nil, fmt.Errorf("make the volumes that grow: %w", err)
	}
	growers := make([]*grower, len(made))
	for i, d := range made {
		r, err := s.client.GetVolumeInfo(ctx, spm.VolumeInfoRequest{VolumeRef: spm.VolumeRef{Volume: d.volume}})
		if err != nil {
			return nil, err
		}
		growers[i] = &grower{s.client, d.volume, r.Granted}
	}
	var cells []cell
	for _, n := range o.crossing {
		rounds := o.rounds
		if n == 1 {
			rounds *= alone
		}
		if _, err := s.lvmSince(lvmTime{}, 0); err != nil {
			return nil, err
		}
		var t crossing
		var own lvmTime
		for round := range rounds {
			at := growers[:n]
			if n == 1 { // another one each time
				at = growers[round%len(growers):][:1]
			}
			if err := crossOnce(&t, at, func(g *grower) error { return g.cross(ctx, s.step) }); err != nil {
				return nil, fmt.Errorf("%d volumes cross at once: %w", n, err)
			}
			if own, err = s.lvmSince(own, n); err != nil {
				return nil, err
			}
		}
		c := own.in(t.cell(pool, n))
		fmt.Fprintf(os.Stderr, "%s, %d at once: p50 %v ms, p99 %v ms, all %v ms\n", pool, n, c.P50, c.P99, c.All)
		cells = append(cells, c)
	}
	return cells, nil
}

// A crossing is what was timed in rounds of volumes that cross at once.
type crossing struct {
	times   []time.Duration // of each volume in each round
	longest time.Duration   // until the last one of a round was answered
}

// crossOnce makes one more round of a crossing, in which all volumes do it at once.
func crossOnce[T any](t *crossing, volumes []T, do func(T) error) error {
	each, all, err := together(volumes, do)
	t.times, t.longest = append(t.times, each...), max(t.longest, all)
	return err
}

// cell is the cell of n volumes at once.
func (t crossing) cell(pool string, n int) cell {
	c := newCell(pool, opExtend, n, t.times)
	c.All = millis(t.longest)
	return c
}

// together does something for all at once, and says how long that took for each, and
// until it was done for the last one.
func together[T any](list []T, do func(T) error) (each []time.Duration, all time.Duration, err error) {
	each = make([]time.Duration, len(list))
	failed := make([]error, len(list))
	start := make(chan time.Time)
	var wg sync.WaitGroup
	for i, v := range list {
		wg.Go(func() {
			<-start
			began := time.Now()
			failed[i] = do(v)
			each[i] = time.Since(began)
		})
	}
	began := time.Now()
	close(start)
	wg.Wait()
	return each, time.Since(began), errors.Join(failed...)
}
