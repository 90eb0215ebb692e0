package main

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/spm"
)

// A gated file lets whole L2 tables be read when its gate is open: what settles does that,
// and the disk itself reads slices of them.
type gated struct {
	block.File
	gate chan struct{}
}

func (g gated) ReadAt(p []byte, off int64) (int, error) {
	if len(p) == 64<<10 && off >= 1<<20 {
		<-g.gate
	}
	return g.File.ReadAt(p, off)
}

// A leaf that has been opened after its writer had died is not closed for a snapshot, and
// the next leaf not opened, before what that writer had reserved is given back.
func TestSnapshotWaitsUntilTheLeafHasSettled(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "a", size: manyTables * tableCovers}, chainSpec{name: "b", size: manyTables * tableCovers, parent: "a"})
	p.killWriter(t, "a", 0)
	gate, opened := make(chan struct{}), make(chan struct{}, 8)
	open := func(ctx context.Context, h *spm.VolumeHandle, a volumeAccess) (block.File, *hostfile.File, error) {
		f, host, err := openVolumeFile(ctx, h, a)
		if h.Info().VolumeUUID == p.id("b") {
			opened <- struct{}{}
		}
		if err == nil {
			return gated{f, gate}, host, nil
		}
		return f, host, err
	}
	d, err := openDisk(t.Context(), diskSpec{Image: p.id("a"), Pool: p, Exchanged: true, Opener: open})
	require.NoError(t, err)
	s := newServed(d)
	done := make(chan error, 1)
	go func() { done <- s.Snapshot(context.Background(), p.id("b")) }()
	select {
	case <-opened:
		t.Error("it has gone over to the next leaf")
	case <-time.After(100 * time.Millisecond): // which it would have done long since
	}
	close(gate)
	require.NoError(t, <-done)
	require.Equal(t, p.id("b"), s.disk.Load().volume.Info().VolumeUUID)
	require.NoError(t, s.Close())
	require.Zero(t, p.check(t, "a"))
}

// A leaf that is given up and removed after the server has opened its file, and before that
// is locked, is not written to.
func TestSnapshotOnALeafThatHasGone(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "a", size: 1 << 20}, chainSpec{name: "b", size: 1 << 20, parent: "a"})
	open := func(ctx context.Context, h *spm.VolumeHandle, a volumeAccess) (block.File, *hostfile.File, error) {
		if h.Info().VolumeUUID != p.id("b") {
			return openVolumeFile(ctx, h, a)
		}
		f, err := hostfile.Open(h.Path(), hostfile.Options{Fixed: true, Lock: hostfile.LockNone})
		require.NoError(t, err)
		_, err = p.RemoveVolume(ctx, spm.VolumeRemoveRequest{VolumeRef: h.Ref()})
		require.NoError(t, err)
		return f, f, nil
	}
	d, err := openDisk(t.Context(), diskSpec{Image: p.id("a"), Pool: p, Exchanged: true, Opener: open})
	require.NoError(t, err)
	s := newServed(d)
	require.ErrorContains(t, s.Snapshot(t.Context(), p.id("b")), "the leaf that was just opened")
	require.Equal(t, p.id("a"), s.disk.Load().volume.Info().VolumeUUID)
	require.NoError(t, s.Device().WriteAt(t.Context(), make([]byte, 512), 0, 0))
	require.NoError(t, s.Close())
}

// A manager that is not there yet is asked again; what it answers counts, whatever that is.
func TestAskedUntilThereIsAManager(t *testing.T) {
	away, no := &spm.Error{Code: spm.CodeStopping, Message: "there is no such socket"}, &spm.Error{Code: spm.CodeNotFound, Message: "no volume"}
	for _, answer := range []error{nil, no} {
		n := 0
		_, err := asked(t.Context(), func() (int, error) {
			if n++; n < 3 {
				return 0, away
			}
			return n, answer
		})
		require.Equal(t, answer, err)
		require.Equal(t, 3, n)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := asked(gone, func() (int, error) { return 0, away })
	require.Equal(t, away, err)
}
