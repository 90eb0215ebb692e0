package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"tidemark/internal/size"
	"tidemark/nbd"
)

func dialAll(ctx context.Context, socket string) ([]*nbd.Client, error) {
	var clients []*nbd.Client
	for range demoConnections {
		c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{})
		if err != nil {
			for _, c := range clients {
				c.Close() //nolint:errcheck // the first error counts
			}
			return nil, err
		}
		clients = append(clients, c)
	}
	return clients, nil
}

// write writes everything, flushes, and shows the growth.
func (d *demo) write(ctx context.Context, clients []*nbd.Client, disk *disk) error {
	d.say("writing %s with seed %d over %d connections", size.Format(int64(d.o.size)), d.o.seed, len(clients))
	began := time.Now()
	stop := d.observe(disk)
	err := each(ctx, clients, int64(d.o.size), func(ctx context.Context, c *nbd.Client, p []byte, off int64) error {
		pattern(p, d.o.seed, off)
		return c.WriteAt(ctx, p, off, 0)
	})
	if err == nil {
		err = clients[0].Flush(ctx)
	}
	stop()
	if err != nil {
		return fmt.Errorf("demo: write: %w", err)
	}
	d.writing = time.Since(began)
	d.say("written and flushed: %s", perSecond(int64(d.o.size), d.writing))
	return nil
}

// observeEvery is short enough to see every extension of its own on any storage
// that has to do something for one.
const observeEvery = 2 * time.Millisecond

// observe says when the disk has grown, until stop is called.
func (d *demo) observe(disk *disk) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(observeEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				d.note(statusOf("demo", disk.Stats()))
			case <-quit:
				d.note(statusOf("demo", disk.Stats()))
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}

func (d *demo) note(s status) {
	d.headroomMax = max(d.headroomMax, s.headroom)
	if s.extensions == d.extensions {
		return
	}
	d.extensions = s.extensions
	d.latency += s.latency
	d.latencyMax = max(d.latencyMax, s.latency)
	d.say("extension %2d: granted %4d, used %4d, headroom %3d MiB, latency %s", s.extensions,
		s.granted>>20, s.used>>20, s.headroom>>20, s.lastExtension())
}

// compare reads everything back.
func (d *demo) compare(ctx context.Context, clients []*nbd.Client) error {
	began := time.Now()
	err := each(ctx, clients, int64(d.o.size), func(ctx context.Context, c *nbd.Client, p []byte, off int64) error {
		if err := c.ReadAt(ctx, p, off, 0); err != nil {
			return err
		}
		want := make([]byte, len(p))
		pattern(want, d.o.seed, off)
		return firstDifference(p, want, off)
	})
	if err != nil {
		return fmt.Errorf("demo: read back: %w", err)
	}
	d.reading = time.Since(began)
	d.say("read back, every byte is what was written: %s", perSecond(int64(d.o.size), d.reading))
	return nil
}

var errMismatch = errors.New("the data read is not what was written")

// firstDifference compares what was read at off with what was written there.
func firstDifference(got, want []byte, off int64) error {
	if bytes.Equal(got, want) {
		return nil
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("%w: first at byte %d: expected %#02x, found %#02x", errMismatch, off+int64(i), want[i], got[i])
		}
	}
	return nil
}

// each does something with every block of [0, n), on all connections, and
// returns the first error. Requests on their way are not cancelled by it, which
// would cost their connection.
func each(ctx context.Context, clients []*nbd.Client, n int64, do func(context.Context, *nbd.Client, []byte, int64) error) error {
	going, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for i := range demoDepth * len(clients) {
		wg.Go(func() {
			p := make([]byte, demoBlock)
			for off := next.Add(demoBlock) - demoBlock; off < n && going.Err() == nil; off = next.Add(demoBlock) - demoBlock {
				if err := do(ctx, clients[i%len(clients)], p, off); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(going)
}

// pattern fills p with what belongs at off, a multiple of 8: every word is a
// function of the seed and of its place (SplitMix64), so that a block in the
// wrong place is found like a wrong byte.
func pattern(p []byte, seed uint64, off int64) {
	state := seed + uint64(off/8)*0x9e3779b97f4a7c15
	for i := 0; i+8 <= len(p); i += 8 {
		state += 0x9e3779b97f4a7c15
		z := (state ^ state>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(p[i:], z^z>>31)
	}
}
