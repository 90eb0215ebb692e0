package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
)

// clients is how many ask at once where nothing is timed.
const clients = 8

var blank = uuid.Nil.String()

// fill makes volumes until there are n.
func (c *client) fill(ctx context.Context, have []disk, n int, size, initial int64) ([]disk, error) {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	made := have
	places := make(chan struct{}, clients)
	for range n - len(have) {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			d := newDisk()
			_, err := c.create(ctx, d, blank, size, initial)
			mu.Lock()
			defer mu.Unlock()
			if made = append(made, d); err != nil && first == nil {
				first = err
			}
		})
	}
	wg.Wait()
	return made, first
}

// churn times the verbs in domains of more and more volumes.
func churn(ctx context.Context, s *site, o options, pool string) ([]cell, error) {
	var cells []cell
	var besides []disk
	for _, n := range o.volumes {
		var err error
		if besides, err = s.client.fill(ctx, besides, n, s.small, s.initial); err != nil {
			return nil, fmt.Errorf("make %d volumes: %w", n, err)
		}
		if _, err := s.lvmSince(lvmTime{}, 0); err != nil {
			return nil, err
		}
		times := map[string][]time.Duration{}
		own := map[string]lvmTime{}
		for range o.verbs {
			if err := s.cycle(ctx, times, own); err != nil {
				return nil, err
			}
		}
		for _, op := range []string{opCreate, opSnapshot, opDeleteSnapshot, opDeleteVolume} {
			cells = append(cells, own[op].in(newCell(pool, op, n, times[op])))
		}
		fmt.Fprintf(os.Stderr, "%s, %d volumes: createVolume p50 %v\n", pool, n, quantile(times[opCreate], 0.5))
	}
	return cells, nil
}

// cycle times each verb once, and leaves the domain as it was.
func (s *site) cycle(ctx context.Context, times map[string][]time.Duration, own map[string]lvmTime) error {
	base := newDisk()
	leaf := disk{base.image, uuid.NewString()}
	for _, v := range []struct {
		op string
		do func() (time.Duration, error)
	}{
		{opCreate, func() (time.Duration, error) { return s.client.create(ctx, base, blank, s.small, s.initial) }},
		{opSnapshot, func() (time.Duration, error) { return s.client.create(ctx, leaf, base.volume, s.small, s.initial) }},
		{opDeleteSnapshot, func() (time.Duration, error) { return s.client.remove(ctx, leaf) }},
		{opDeleteVolume, func() (time.Duration, error) { return s.client.remove(ctx, base) }},
	} {
		took, err := v.do()
		if err != nil {
			return fmt.Errorf("%s: %w", v.op, err)
		}
		times[v.op] = append(times[v.op], took)
		if own[v.op], err = s.lvmSince(own[v.op], 1); err != nil {
			return err
		}
	}
	return nil
}
