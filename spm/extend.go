package spm

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// ExtendVolume makes a volume larger, or holds the request while the pool is
// full.
func (m *Manager) ExtendVolume(ctx context.Context, r VolumeExtendRequest) (VolumeExtendReply, error) {
	v, err := m.find(r.Header, r.VolumeRef)
	if err != nil {
		return VolumeExtendReply{}, err
	}
	if err := m.whole(v); err != nil {
		return VolumeExtendReply{}, err
	}
	if r.Need < 0 || r.Want < 0 || r.WaitMS < 0 {
		return VolumeExtendReply{}, errorf(CodeInvalid,
			"extend %s: need %d, want %d, wait_ms %d: expected numbers that are not negative", v.name(), r.Need, r.Want, r.WaitMS)
	}
	w := wait{m: m, v: v, r: r}
	size, err := w.run(ctx)
	if err != nil {
		return VolumeExtendReply{}, err
	}
	var d Volume
	m.store.describe(v, &d)
	m.mu.Lock() // a task may raise the bound
	bound := v.bound
	m.mu.Unlock()
	return VolumeExtendReply{
		Header: m.header(r.Header), VolumeUUID: v.id.String(), Generation: v.meta().Generation,
		Size: size, Bound: bound, Mapping: d.Mapping,
	}, nil
}

// A wait is one request to extend, from admission to answer.
type wait struct {
	m     *Manager
	v     *volume
	r     VolumeExtendRequest
	place *place // nil: it has not had to wait yet
}

// run looks, and looks again whenever something has changed, until there is an
// answer.
func (w *wait) run(ctx context.Context) (int64, error) {
	var patience <-chan time.Time
	if w.r.WaitMS > 0 {
		timer := time.NewTimer(time.Duration(w.r.WaitMS) * time.Millisecond)
		defer timer.Stop()
		patience = timer.C
	}
	for {
		size, changed, err := w.look(ctx)
		if changed == nil {
			return size, err
		}
		if patience == nil {
			return 0, w.leave(timedOut, w.fullError())
		}
		poll := time.NewTimer(w.m.o.Poll)
		select {
		case <-changed:
		case <-poll.C:
		case <-patience:
			poll.Stop()
			return 0, w.leave(timedOut, w.fullError())
		case <-ctx.Done():
			poll.Stop()
			return 0, w.leave(abandoned, context.Cause(ctx))
		case <-w.m.ctx.Done():
			poll.Stop()
			return 0, w.leave(abandoned, w.m.stopping())
		}
		poll.Stop()
	}
}

// look decides once. A request that has to wait gets the channel that is closed
// when it should look again.
func (w *wait) look(ctx context.Context) (int64, <-chan struct{}, error) {
	if err := w.m.take(ctx, w.v); err != nil {
		return 0, nil, w.leave(abandoned, err)
	}
	defer func() { <-w.v.sem }()
	if err := w.m.store.confined(w.v); err != nil {
		return 0, nil, w.leave(abandoned, err)
	}
	before, target, most, changed, err := w.admit()
	if err != nil || changed != nil || target == before && !w.v.unsynced {
		return target, changed, err
	}
	size, err := w.m.grow(w.v, before, target, most)
	switch {
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, block.ErrNoSpace):
		return 0, w.again(), nil
	case err != nil:
		return 0, nil, w.leave(abandoned, err)
	}
	return size, nil, w.leave(served, nil)
}

// admit decides under the lock, and reserves what is granted: target. Up to most
// may be taken where that suits the store.
func (w *wait) admit() (before, target, most int64, changed <-chan struct{}, err error) {
	m, v := w.m, w.v
	m.mu.Lock()
	defer m.mu.Unlock()
	before = v.size
	if v.gone {
		return before, before, before, nil, w.leaveLocked(abandoned, goneError(v))
	}
	own, behind := m.placeOfLocked(v)
	others := len(m.queue)
	if own != nil {
		others--
	}
	d := demand{
		size: v.size, bound: v.bound, unit: m.unit(), need: w.r.Need, want: w.r.Want,
		behind: behind, waiting: others > 0,
	}
	if !behind && max(d.need, d.want) > d.size {
		d.free = m.freeLocked() - m.reserveOfLocked()
	}
	verdict, target := admit(d)
	switch verdict {
	case hold:
		if w.place == nil && w.r.WaitMS > 0 {
			w.place = m.enterLocked(v, w.r.Need)
		}
		return before, before, before, m.changed, nil
	case refuse:
		return before, before, before, nil, w.leaveLocked(abandoned, errorf(CodeBound,
			"extend %s to %d bytes: its bound is %d bytes, more than an image of %d bytes can ever use: check the image for leaks",
			v.name(), w.r.Need, v.bound, v.meta().Capacity))
	case grant:
		m.reserveLocked(v, target)
		return before, target, d.most(target), nil, nil
	}
	return before, before, before, nil, w.leaveLocked(served, nil)
}

// again queues a request whose grant the host's file system refused after all.
func (w *wait) again() <-chan struct{} {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if w.place == nil && w.r.WaitMS > 0 {
		w.place = w.m.enterLocked(w.v, w.r.Need)
	}
	return w.m.changed
}

// grow makes v as large as was reserved, durably, or up to most where that suits
// the store. The caller has v.sem. When it fails, the books keep what the volume
// may have, and nobody is told of a size before this has succeeded.
func (m *Manager) grow(v *volume, before, target, most int64) (int64, error) {
	began := m.o.Now()
	size, err := m.store.extend(m.ctx, v, target, most)
	took := m.o.Now().Sub(began)
	v.unsynced = err != nil
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.reserveLocked(v, max(before, m.store.length(v, target)))
		m.wakeLocked()
		m.o.Log.Error("extension failed", "volume", v.name(), "uuid", v.id, "from", before, "to", target, "error", err)
		return 0, internal(err, "extend %s to %d bytes", v.name(), target)
	}
	m.reserveLocked(v, size)
	if size == before { // it was only made sure of
		return size, nil
	}
	v.extensions++
	m.extensions++
	m.lastLatency, m.lastExtended, m.lastAt = took, v.name(), m.o.Now()
	m.noteLocked(Event{Kind: EventExtended, Name: v.name(), VolumeUUID: v.id.String(), Bytes: size - before})
	m.o.Log.Info("volume extended", "volume", v.name(), "uuid", v.id, "from", before, "to", size, "took", took,
		"granted", m.granted, "capacity", m.capacity)
	return size, nil
}

// leave gives up the place, if there is one, and returns err.
func (w *wait) leave(how leave, err error) error {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	return w.leaveLocked(how, err)
}

func (w *wait) leaveLocked(how leave, err error) error {
	if w.place != nil {
		w.m.leaveLocked(w.place, how)
		w.place = nil
	}
	return err
}

// fullError says what there is and what to do.
func (w *wait) fullError() error {
	m := w.m
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refuseLocked(w.v.id, w.v.name(), max(w.r.Need-w.v.size, 0),
		"extend %s from %d to %d bytes: the pool is full (capacity %d, granted %d, kept for merging and removing %d, the host can carry %d more; %d volumes wait)",
		w.v.name(), w.v.size, w.r.Need, m.capacity, m.granted, m.reserveOfLocked(), m.freeLocked(), len(m.queue))
}

// take takes v.sem, as long as ctx and the manager allow.
func (m *Manager) take(ctx context.Context, v *volume) error {
	select {
	case v.sem <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-m.ctx.Done():
		return m.stopping()
	}
}

func (m *Manager) stopping() error {
	return errorf(CodeStopping, "pool %s: its manager is stopping: repeat the request when it is back", m.store.name())
}

func goneError(v *volume) error {
	return errorf(CodeNotFound, "volume %s (%s) has been removed", v.name(), v.id)
}
