package spm

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

func reduceRequest(m *Manager, v Volume, to int64) VolumeReduceRequest {
	return VolumeReduceRequest{
		Header: Header{SPMEpoch: m.ident.epoch}, VolumeRef: VolumeRef{Volume: v.VolumeUUID}, From: v.Granted, To: to, Changes: v.Changes,
	}
}

// What is given back is free again, in whole units, and a request about another
// state of the volume changes nothing: also one that found the same size again.
func TestReduceIsCompareAndSet(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	create(t, m, "a", 10*gib)
	extend(t, m, "a", 300*mib, 0)
	before := volumeOf(t, m, "a")
	late := reduceRequest(m, before, 200*mib+1)
	r, err := m.ReduceVolume(t.Context(), late)
	require.NoError(t, err)
	require.EqualValues(t, 200*mib+sizeUnit, r.Granted)
	require.EqualValues(t, r.Granted, pool(t, m).Granted)
	st, err := os.Stat(r.Path)
	require.NoError(t, err)
	require.Equal(t, r.Granted, st.Size())

	extend(t, m, "a", before.Granted, 0)
	_, err = m.ReduceVolume(t.Context(), late)
	requireCode(t, CodeStale, err)
	require.ErrorIs(t, err, block.ErrStale)
	require.Equal(t, before.Granted, volumeOf(t, m, "a").Granted)

	now := volumeOf(t, m, "a")
	for name, change := range map[string]func(r *VolumeReduceRequest){
		"another size":  func(r *VolumeReduceRequest) { r.From-- },
		"another epoch": func(r *VolumeReduceRequest) { r.SPMEpoch = 0 },
		"earlier":       func(r *VolumeReduceRequest) { r.Changes-- },
	} {
		r := reduceRequest(m, now, mib)
		change(&r)
		_, err = m.ReduceVolume(t.Context(), r)
		requireCode(t, CodeStale, err)
		require.Equal(t, now.Granted, volumeOf(t, m, "a").Granted, name)
	}
	_, err = m.ReduceVolume(t.Context(), reduceRequest(m, now, now.Granted+1))
	requireCode(t, CodeInvalid, err)
	raw, err := m.CreateVolume(t.Context(), VolumeCreateRequest{Name: "raw", Size: mib, Format: FormatRaw})
	require.NoError(t, err)
	_, err = m.ReduceVolume(t.Context(), reduceRequest(m, raw.Volume, 0))
	requireCode(t, CodeInvalid, err)
	requireSum(t, m)
}

// A pool is tight when little is free, or somebody waits.
func TestTight(t *testing.T) {
	o := testOptions()
	o.Capacity, o.Warn = gib, 300*mib
	m := openPool(t, t.TempDir(), o)
	create(t, m, "a", 10*gib)
	require.False(t, pool(t, m).Tight)
	extend(t, m, "a", 800*mib, 0)
	require.True(t, pool(t, m).Tight)
	_, err := m.ReduceVolume(t.Context(), reduceRequest(m, volumeOf(t, m, "a"), 700*mib))
	require.NoError(t, err)
	require.False(t, pool(t, m).Tight)
}

// An unluckyAPI loses the answer of a request to reduce, or the request.
type unluckyAPI struct {
	API
	answered bool
	lost     int
}

func (u *unluckyAPI) ReduceVolume(ctx context.Context, r VolumeReduceRequest) (VolumeReply, error) {
	if u.lost--; u.lost < 0 {
		return u.API.ReduceVolume(ctx, r)
	}
	if u.answered {
		if _, err := u.API.ReduceVolume(ctx, r); err != nil {
			return VolumeReply{}, err
		}
	}
	return VolumeReply{}, errorf(CodeStopping, "the connection is gone")
}

// The holder finds out what became of its request, and nothing is given back twice.
func TestReduceOfUnknownOutcome(t *testing.T) {
	for _, answered := range []bool{false, true} {
		m := openPool(t, t.TempDir(), testOptions())
		create(t, m, "a", 10*gib)
		extend(t, m, "a", 300*mib, 0)
		h, err := openVolume(t.Context(), &unluckyAPI{API: m, answered: answered, lost: 1}, VolumeRef{Volume: "a"})
		require.NoError(t, err)
		size, err := h.Reduce(t.Context(), 300*mib, 200*mib)
		require.NoError(t, err)
		require.EqualValues(t, 200*mib, size)
		require.EqualValues(t, 3, volumeOf(t, m, "a").Changes, "created, extended, reduced once")
		_, err = h.Reduce(t.Context(), 300*mib, 200*mib)
		require.ErrorIs(t, err, block.ErrStale)
	}
}

// A manager that has just started takes space back, too, and durably.
func TestReduceAfterARestart(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	create(t, m, "a", 10*gib)
	extend(t, m, "a", 300*mib, 0)
	require.NoError(t, m.Close())
	m = openPool(t, dir, testOptions())
	_, err := m.ReduceVolume(t.Context(), reduceRequest(m, volumeOf(t, m, "a"), 200*mib))
	require.NoError(t, err)
	require.NoError(t, os.Truncate(volumeOf(t, m, "a").Path, 150*mib)) // by hand
	_, err = m.ReduceVolume(t.Context(), reduceRequest(m, volumeOf(t, m, "a"), 100*mib))
	require.ErrorIs(t, err, block.ErrStale)
}

// Who waits gets what an idle one gives back.
func TestReduceServesWhoWaits(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		done := extendLater(t.Context(), m, "a", chunkSize+mib, time.Hour)
		held(t, done)
		_, err := m.ReduceVolume(t.Context(), reduceRequest(m, volumeOf(t, m, "b"), chunkSize-2*mib))
		require.NoError(t, err)
		require.NoError(t, <-done)
	})
}

// While a volume becomes shorter nobody begins to write to it: its holder may have died over
// the request. Nothing is given back for one that has gone before its turn.
func TestReduceThatOutlivesItsHolder(t *testing.T) {
	o := testOptions()
	var m *Manager
	asked := ""
	watch := false
	o.sync = func(*os.File) error {
		if watch {
			asked = volumeOf(t, m, "a").ReadOnly
		}
		return nil
	}
	m = openPool(t, t.TempDir(), o)
	create(t, m, "a", 10*gib)
	extend(t, m, "a", 300*mib, 0)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 { // the volume is free, and who waits for it has gone: either may be seen first
		_, err := m.ReduceVolume(gone, reduceRequest(m, volumeOf(t, m, "a"), 200*mib))
		require.ErrorIs(t, err, context.Canceled)
	}
	watch = true
	_, err := m.ReduceVolume(t.Context(), reduceRequest(m, volumeOf(t, m, "a"), 200*mib))
	require.NoError(t, err)
	watch = false
	require.Contains(t, asked, "becomes shorter")
	require.Empty(t, volumeOf(t, m, "a").ReadOnly)
}
