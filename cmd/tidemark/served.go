package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"tidemark/internal/block"
	"tidemark/internal/swap"
	"tidemark/spm"
)

// A served is a disk that a front end has. With a control socket, what it is made of
// may change while it is served:
//
//	front -> leaf -> seat -> volume below -> seat -> ...
//
// The front shows the leaf; a snapshot puts a new one there, with the old one, now
// for reading only, in a seat below it. A merge opens the volume below the leaf for
// writing, in its seat, and shows a mirror of both; at its end that volume is shown
// alone. See package swap for why the content is the same at every moment.
type served struct {
	disk  atomic.Pointer[disk] // the leaf
	front *swap.Device         // nil: nothing is ever exchanged

	working chan struct{} // capacity 1: held by whoever changes something

	mu    sync.Mutex // guards merge
	merge *merge     // nil: there is none
}

// A merge is the leaf's into the volume below it.
type merge struct {
	leaf   string
	mirror *swap.Mirror
	base   *disk // open for writing; what is below it is the leaf's still
	stop   context.CancelFunc
	done   chan struct{} // closed when the copying has ended
}

// switchLimit bounds how long requests in progress are waited for before something is
// exchanged; those that come meanwhile wait for as long. One that waits for space may
// take its whole patience.
const switchLimit = 30 * time.Second

// openLimit bounds how long it takes to open what is exchanged, and how long it is
// tried to open again what was closed: the manager may be restarting, and guests are
// better off waiting than without their disk.
const (
	openLimit = 60 * time.Second
	openAgain = 200 * time.Millisecond
)

// The kinds of requests that cannot be done.
var (
	errConflict = errors.New("not possible now")
	errNoVolume = fmt.Errorf("only the leaf of a pool's volumes that is served for writing: %w", block.ErrUnsupported)
)

func newServed(d *disk) *served {
	s := &served{working: make(chan struct{}, 1)}
	s.disk.Store(d)
	if d.spec.Exchanged {
		s.front = swap.New(d.Device())
	}
	return s
}

// Device is the disk for a front end. It stays the served's.
func (s *served) Device() block.Device {
	if s.front != nil {
		return s.front
	}
	return s.disk.Load().Device()
}

// Stats returns the figures of the leaf.
func (s *served) Stats() diskStats { return s.disk.Load().Stats() }

// work begins a change. What is begun is completed, even if who has asked for it goes
// away.
func (s *served) work(ctx context.Context) (context.Context, func(), error) {
	select {
	case s.working <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	long, cancel := context.WithTimeout(context.WithoutCancel(ctx), switchLimit)
	return long, func() { cancel(); <-s.working }, nil
}

// current is the leaf, if what is below it can be exchanged.
func (s *served) current() (*disk, error) {
	d := s.disk.Load()
	if s.front == nil || d.volume == nil || d.spec.ReadOnly {
		return nil, errNoVolume
	}
	return d, nil
}

func (s *served) merging() *merge {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.merge
}

func (s *served) setMerge(m *merge) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.merge = m
}

// Snapshot lets the disk write to a new leaf, which the pool has made on the present
// one. If it does so already, nothing happens. First what a writer that died had reserved
// in the present leaf is given back, for as long as that takes: nobody writes to it any
// more afterwards.
func (s *served) Snapshot(ctx context.Context, leaf string) error {
	if d, err := s.current(); err == nil {
		if err := awaitSettled(ctx, d.device); err != nil {
			return err
		}
	}
	ctx, end, err := s.work(ctx)
	if err != nil {
		return err
	}
	defer end()
	old, err := s.current()
	switch {
	case err != nil:
		return err
	case old.volume.Info().VolumeUUID == leaf:
		return nil
	case s.merging() != nil:
		return s.merging().inTheWay()
	}
	spec := old.spec
	spec.Image = leaf
	next := &disk{spec: spec}
	if next.volume, err = asked(ctx, func() (*spm.VolumeHandle, error) { return next.lookUp(ctx, leaf) }); err != nil {
		return err
	}
	if err := next.openFile(ctx); err != nil {
		return err
	}
	if on := next.volume.Info().ParentUUID; on != old.volume.Info().VolumeUUID || next.spec.Raw {
		return errors.Join(fmt.Errorf("%w: volume %s is based on %q, and the leaf is %s", errConflict, leaf, on, old.volume.Info().VolumeUUID), next.file.Close())
	}
	if _, err := next.lookUp(ctx, leaf); err != nil { // who gave it up has not seen that it is open
		return errors.Join(fmt.Errorf("the leaf that was just opened: %w", err), next.file.Close())
	}
	err = s.front.Switch(ctx, func(block.Device) (block.Device, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), openLimit)
		defer cancel()
		return s.putOn(ctx, next, old)
	})
	if s.disk.Load() != next {
		return errors.Join(err, next.file.Close())
	}
	return err
}

// putOn closes the leaf, opens it for reading, and the next one over it. If that does
// not succeed the leaf is opened again as it was.
func (s *served) putOn(ctx context.Context, next, old *disk) (block.Device, error) {
	if err := old.closeTop(); err != nil {
		return s.again(old, err)
	}
	l := old.volumeLayer(old.volume)
	err := l.openFile(ctx, true)
	if err == nil {
		err = l.open(ctx, old.below.device(), backingCacheBytes/2, old.spec.Log)
	}
	if err == nil {
		next.below = append(chain{l}, old.below...)
		err = next.openDevice(ctx, l.shown())
	}
	if err != nil {
		return s.again(old, errors.Join(err, chain{l}.Close()))
	}
	s.disk.Store(next)
	return next.device, nil
}

// again opens a leaf that was closed. If that is not possible any more, the disk fails
// every request.
func (s *served) again(old *disk, why error) (block.Device, error) {
	var d *disk
	err := persist(func(ctx context.Context) error {
		d = &disk{spec: old.spec, volume: old.volume, below: old.below}
		err := d.openFile(ctx)
		if err == nil {
			if err = d.openDevice(ctx, d.below.device()); err != nil {
				err = errors.Join(err, d.file.Close())
			}
		}
		return err
	})
	if err != nil {
		old.spec.Log.Error("ALARM: the disk cannot be opened again, and every request fails", "image", old.path, "error", err)
		return old.device, errors.Join(why, err)
	}
	s.disk.Store(d)
	return d.device, why
}

// persist tries until it succeeds, or for long enough.
func persist(try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), openLimit)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		pause(ctx, openAgain)
	}
}

// managerStarts is how long a manager is waited for that is not there: one that has found a
// task lets it ask for a change before it answers on its socket itself.
const managerStarts = 5 * time.Second

// asked asks the manager of the pool, again while it is not there.
func asked[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, managerStarts)
	defer cancel()
	for {
		answer, err := ask()
		if spm.CodeOf(err) != spm.CodeStopping || ctx.Err() != nil {
			return answer, err
		}
		pause(ctx, openAgain)
	}
}

// Resize makes the disk size bytes large. NBD clients see it when they connect again.
func (s *served) Resize(ctx context.Context, size int64) error {
	ctx, end, err := s.work(ctx)
	if err != nil {
		return err
	}
	defer end()
	d := s.disk.Load()
	switch have := d.device.Info().Size; {
	case s.merging() != nil:
		return s.merging().inTheWay()
	case size < have:
		return fmt.Errorf("%w: the disk has %d bytes, and does not become smaller", errConflict, have)
	case d.spec.ReadOnly:
		return fmt.Errorf("resize: %w", block.ErrReadOnly)
	}
	if d.volume != nil {
		// Its bound may be larger by now.
		h, err := asked(ctx, func() (*spm.VolumeHandle, error) { return d.spec.Pool.Volume(ctx, d.volume.Ref()) })
		if err != nil {
			return err
		}
		if d.thin != nil {
			d.thin.RaiseBound(h.Bound())
		}
	}
	return growDevice(ctx, d.device, size)
}

// Close ends a merge that is under way, and closes the disk. No request may be in
// progress in a front end.
func (s *served) Close() error {
	var errs []error
	d := s.disk.Load()
	m := s.merging()
	if m != nil {
		m.stop()
		<-m.done
	}
	errs = append(errs, d.closeTop())
	if m != nil {
		errs = append(errs, m.base.closeTop())
	}
	return errors.Join(append(errs, d.below.Close())...)
}

// clusterOf is the size of the clusters of a disk's image, 1 if it is raw.
func clusterOf(d *disk) int64 {
	if d.image == nil {
		return 1
	}
	h := d.image.Header()
	return h.ClusterSize()
}
