package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tidemark/internal/block"
)

// A cutGuest writes to a disk over which the power is cut, each of its writers to a part
// of its own, and knows what each sector may hold afterwards.
type cutGuest struct {
	wg    sync.WaitGroup
	part  int64       // sectors
	quiet atomic.Bool // it makes nothing durable any more
	small atomic.Bool // it changes little at a time, and half of its part, so that the rest stays as it is

	mu      sync.Mutex     // guards what follows
	sectors [][]cutVersion // what it was at the last flush, and everything after that
	version uint64
	wrong   error // what was read and may not be there
	done    int64 // requests
	flushes int64
}

// A cutVersion is what a request has left in a sector: zeroes if it is 0. One that is
// not certain may have left what was there.
type cutVersion struct {
	v       uint64
	certain bool
}

func newCutGuest(size int64, writers int) *cutGuest {
	g := &cutGuest{part: size / sectorBytes / int64(writers), sectors: make([][]cutVersion, size/sectorBytes)}
	for i := range g.sectors {
		g.sectors[i] = []cutVersion{{0, true}}
	}
	return g
}

const (
	sectorBytes    = 512
	clusterSectors = 128
)

// start lets writer i write until something fails, which is wrong while there is power.
func (g *cutGuest) start(ctx context.Context, d block.Device, power func() bool, rng *rand.Rand, i int) {
	flushOdds := []int{4, 30}[rng.IntN(2)]
	g.wg.Go(func() {
		var err error
		for err == nil {
			err = g.request(ctx, d, rng, int64(i)*g.part, flushOdds)
			time.Sleep(guestPause)
		}
		if power() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.wrong = fmt.Errorf("with power: %w", err)
		}
	})
}

// guestPause bounds how much is pending when the power is cut.
const guestPause = 300 * time.Microsecond

// request does one of them, and notes before what it may leave, and afterwards what is
// certain.
func (g *cutGuest) request(ctx context.Context, d block.Device, rng *rand.Rand, from int64, flushOdds int) error {
	dice, longest, part, small := rng.IntN(9), int64(300), g.part, g.small.Load()
	if small {
		longest, part = 24, g.part/2
	}
	n := 1 + rng.Int64N(min(1+rng.Int64N(longest), part))
	first := from + rng.Int64N(part-n+1)
	if dice < 2 && !small { // whole clusters, which become zero without data
		n = 2 * clusterSectors
		first = from + rng.Int64N((g.part-n)/clusterSectors+1)*clusterSectors
	}
	off, size := first*sectorBytes, n*sectorBytes
	quiet := g.quiet.Load()
	if rng.IntN(flushOdds) == 0 && !quiet {
		err := d.Flush(ctx)
		if err == nil {
			g.flushed(from, g.part)
		}
		return err
	}
	var f block.Flags
	if rng.IntN(16) == 0 && !quiet {
		f = block.FUA
	}
	var err error
	switch dice {
	case 0:
		g.begin(first, n, 0, true)
		err = d.WriteZeroes(ctx, off, size, f|block.MayUnmap)
	case 1:
		g.begin(first, n, 0, false)
		f = 0
		err = d.Discard(ctx, off, size, 0)
	case 2:
		p := make([]byte, size)
		if err = d.ReadAt(ctx, p, off, 0); err == nil {
			g.look(p, first)
		}
		return err
	default:
		v := g.begin(first, n, g.next(), true)
		err = d.WriteAt(ctx, stamped(v, first, n), off, f)
	}
	if err == nil && f.Has(block.FUA) {
		g.flushed(first, n)
	}
	return err
}

func (g *cutGuest) next() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.version++
	return g.version
}

func (g *cutGuest) begin(first, n int64, v uint64, certain bool) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.done++
	for s := first; s < first+n; s++ {
		g.sectors[s] = append(slices.Clip(g.sectors[s]), cutVersion{v, certain})
	}
	return v
}

// flushed notes that everything that was done to n sectors is durable.
func (g *cutGuest) flushed(first, n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.flushes++
	for s := first; s < first+n; s++ {
		g.sectors[s] = lastCertain(g.sectors[s])
	}
}

func lastCertain(all []cutVersion) []cutVersion {
	for i := len(all) - 1; ; i-- {
		if all[i].certain {
			return all[i:]
		}
	}
}

// look requires that what is read is what was written last.
func (g *cutGuest) look(p []byte, first int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := int64(0); i*sectorBytes < int64(len(p)); i++ {
		if err := allowed(p[i*sectorBytes:(i+1)*sectorBytes], first+i, lastCertain(g.sectors[first+i])); err != nil && g.wrong == nil {
			g.wrong = fmt.Errorf("with power: %w", err)
		}
	}
}

// snapshot is what may be there after a power cut at this moment.
func (g *cutGuest) snapshot() [][]cutVersion {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.sectors)
}

// judgeCut says what is wrong with the content of a disk.
func judgeCut(p []byte, legal [][]cutVersion) error {
	for s, all := range legal {
		if err := allowed(p[s*sectorBytes:(s+1)*sectorBytes], int64(s), all); err != nil {
			return err
		}
	}
	return nil
}

func allowed(p []byte, s int64, all []cutVersion) error {
	for _, v := range all {
		if slices.Equal(p, stamped(v.v, s, 1)) {
			return nil
		}
	}
	return fmt.Errorf("sector %d begins with %x, allowed are the versions %v", s, p[:16], all)
}

// stamped is what a write of a version writes to n sectors.
func stamped(v uint64, first, n int64) []byte {
	p := make([]byte, n*sectorBytes)
	for i := 0; v != 0 && i < len(p); i += 16 {
		binary.BigEndian.PutUint64(p[i:], v)
		binary.BigEndian.PutUint64(p[i+8:], uint64(first)+uint64(i/sectorBytes))
	}
	return p
}

// requests is how many it has made.
func (g *cutGuest) requests() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.done
}

// failed is what was wrong while there was power.
func (g *cutGuest) failed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.wrong
}
