package spm

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
)

// How long one request to extend may be held by the manager before it is
// repeated, and the pauses between attempts while there is no manager.
const (
	extendPoll     = 30 * time.Second
	reconnectFirst = 20 * time.Millisecond
	reconnectLast  = 500 * time.Millisecond
)

// A VolumeHandle is a volume of a pool as its writer sees it: where its file is,
// and who makes it larger. It is a thin.Extender.
type VolumeHandle struct {
	api   API
	info  Volume
	epoch atomic.Int64 // the newest manager that has answered
	at    atomic.Pointer[Mapping]
	tight atomic.Bool // as the manager has last said
}

// Volume looks a volume up.
func (c *Client) Volume(ctx context.Context, r VolumeRef) (*VolumeHandle, error) {
	return openVolume(ctx, c, r)
}

// Volume looks a volume up.
func (m *Manager) Volume(ctx context.Context, r VolumeRef) (*VolumeHandle, error) {
	return openVolume(ctx, m, r)
}

func openVolume(ctx context.Context, api API, ref VolumeRef) (*VolumeHandle, error) {
	r, err := api.GetVolumeInfo(ctx, VolumeInfoRequest{VolumeRef: ref})
	if err != nil {
		return nil, err
	}
	if r.Damaged != "" {
		return nil, errorf(CodeDamaged, "volume %s is damaged: %s", r.Name, r.Damaged)
	}
	h := &VolumeHandle{api: api, info: r.Volume}
	h.epoch.Store(r.SPMEpoch)
	h.at.Store(r.Mapping)
	return h, nil
}

// Info is what the pool knew of the volume when it was looked up.
func (h *VolumeHandle) Info() Volume { return h.info }

// Ref names the volume, whichever other domains have a copy of it.
func (h *VolumeHandle) Ref() VolumeRef {
	return VolumeRef{Volume: h.info.VolumeUUID, DomainUUID: h.info.DomainUUID}
}

// Path is the volume's file. Who opens it does so by Tree.
func (h *VolumeHandle) Path() string { return h.info.Path }

// Tree is what the file lies in.
func (h *VolumeHandle) Tree() hostfile.Tree { return hostfile.Tree(h.info.Beneath) }

// Mapping is where a volume on a volume group lies, as the manager has last said;
// nil for a file.
func (h *VolumeHandle) Mapping() *Mapping { return h.at.Load() }

// Look asks the manager again where the volume lies. The error wraps
// fs.ErrNotExist if it is not there any more.
func (h *VolumeHandle) Look(ctx context.Context) (*Mapping, error) {
	r, err := h.api.GetVolumeInfo(ctx, VolumeInfoRequest{
		Header:    Header{SPMEpoch: h.epoch.Load()},
		VolumeRef: h.Ref(),
	})
	if err != nil {
		return nil, err
	}
	h.learn(r.Mapping)
	return r.Mapping, nil
}

// learn keeps a mapping, unless a newer one is known: answers may overtake each
// other.
func (h *VolumeHandle) learn(m *Mapping) {
	for m != nil {
		old := h.at.Load()
		if old != nil && old.Seqno > m.Seqno || h.at.CompareAndSwap(old, m) {
			return
		}
	}
}

// Bound is the size in bytes that the volume is never extended beyond.
func (h *VolumeHandle) Bound() int64 { return h.info.Bound }

// Patience is how long a write to the volume may wait for space, as the pool
// says; 0 if it says nothing.
func (h *VolumeHandle) Patience() time.Duration {
	return time.Duration(h.info.PatienceMS) * time.Millisecond
}

// Extend makes the volume at least need bytes long and, as far as the pool has
// the space, want bytes. While the pool is full, or its manager is dead or
// restarting, it waits as long as ctx allows. An error that is final says so by
// a method Final() bool.
func (h *VolumeHandle) Extend(ctx context.Context, need, want int64) (int64, error) {
	r := VolumeExtendRequest{
		Header:    Header{RequestID: uuid.NewString()},
		VolumeRef: h.Ref(),
		Need:      need, Want: want, WaitMS: extendPoll.Milliseconds(),
	}
	r.Generation = &h.info.Generation
	looked := false
	for pause := reconnectFirst; ; pause = min(2*pause, reconnectLast) {
		asked := time.Now()
		size, err := h.extendOnce(ctx, r)
		switch code := CodeOf(err); {
		case err == nil:
			return size, nil
		case ctx.Err() != nil:
			return 0, fmt.Errorf("extend %s to %d bytes: %w", h.info.Name, need, context.Cause(ctx))
		case code == CodeStale && !looked: // a merge into the volume counts its generation up
			now, err := h.api.GetVolumeInfo(ctx, VolumeInfoRequest{VolumeRef: h.Ref()})
			if err != nil {
				return 0, err
			}
			r.VolumeRef.Generation, looked, pause = &now.Volume.Generation, true, 0
		case code == CodePoolFull && time.Since(asked) > reconnectLast:
			pause = 0 // it has been held: come back at once, to keep its place
		case code != CodePoolFull && code != CodeStopping:
			return 0, err
		}
		if err := sleep(ctx, pause); err != nil {
			return 0, fmt.Errorf("extend %s to %d bytes: %w", h.info.Name, need, err)
		}
		pause = max(pause, reconnectFirst/2)
	}
}

// Tight reports whether the pool recalls headroom, as far as Watch knows.
func (h *VolumeHandle) Tight() bool { return h.tight.Load() }

// Watch waits until something has happened to the pool after what it has returned
// before, or for a while, and finds out whether the pool is tight.
func (h *VolumeHandle) Watch(ctx context.Context, after int64, wait time.Duration) (int64, error) {
	r, err := h.api.WatchPool(ctx, PoolWatchRequest{After: after, WaitMS: wait.Milliseconds()})
	if err != nil {
		return after, err
	}
	h.tight.Store(r.Tight)
	return r.Last, nil
}

// Reduce makes the volume shorter, from exactly from bytes to about to, and returns
// its size. Its holder calls it, and from then on uses nothing beyond to. An error
// says that it has from bytes as before, unless ctx has ended: a manager that dies
// over the request is waited for, for only the next one knows what became of it.
func (h *VolumeHandle) Reduce(ctx context.Context, from, to int64) (int64, error) {
	ref := h.Ref()
	var refused error
	for asked := false; ; {
		now, err := h.api.GetVolumeInfo(ctx, VolumeInfoRequest{VolumeRef: ref})
		switch {
		case err != nil && asked && CodeOf(err) == CodeStopping && ctx.Err() == nil:
			if err := sleep(ctx, reconnectLast); err != nil {
				return 0, err
			}
			continue
		case err != nil:
			return 0, err
		case asked && now.Granted < from:
			h.learn(now.Mapping)
			return now.Granted, nil
		case refused != nil:
			return 0, refused
		case now.Granted != from:
			return 0, fmt.Errorf("reduce %s from %d bytes: it has %d: %w", h.info.Name, from, now.Granted, block.ErrStale)
		}
		r, err := h.api.ReduceVolume(ctx, VolumeReduceRequest{
			Header: Header{SPMEpoch: now.SPMEpoch}, VolumeRef: ref, From: from, To: to, Changes: now.Changes,
		})
		if err == nil {
			h.learn(r.Mapping)
			return r.Granted, nil
		}
		if asked = true; CodeOf(err) != CodeStopping {
			refused = err
		}
	}
}

// extendOnce asks once. The answer of a manager that a newer one has replaced is
// dropped.
func (h *VolumeHandle) extendOnce(ctx context.Context, r VolumeExtendRequest) (int64, error) {
	r.SPMEpoch = h.epoch.Load()
	reply, err := h.api.ExtendVolume(ctx, r)
	if err != nil {
		return 0, err
	}
	for {
		seen := h.epoch.Load()
		switch {
		case reply.SPMEpoch < seen:
			return 0, errorf(CodeStopping, "extend %s: the answer is from epoch %d, and a manager of epoch %d has answered before",
				h.info.Name, reply.SPMEpoch, seen)
		case reply.SPMEpoch == seen || h.epoch.CompareAndSwap(seen, reply.SPMEpoch):
			h.learn(reply.Mapping)
			return reply.Size, nil
		}
	}
}

// sleep waits for d, or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
