package lvm

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// A volume that gives its end back is cut before its map is shorter, is not taken
// for one that somebody has reduced by hand, and grows again.
func TestSegmentFileShrinks(t *testing.T) {
	l := newLab(t, GroupOptions{MetadataSize: 256 * kib, ExtentSize: 64 * kib}, 64*mib, 64*mib)
	g := &grower{l: l, name: "v", m: scattered(t, l, "v", 8*mib)}
	refused := errors.New("no")
	var refuse error
	f := l.open(t, g.m, SegmentOptions{
		Newest: g.newest,
		Reduce: func(ctx context.Context, from, to int64) (Map, error) {
			if refuse != nil {
				return Map{}, refuse
			}
			m, err := l.Group.Reduce(ctx, "v", g.m.LV, from, roundUp(to, 64*kib))
			if err == nil {
				g.m = m
			}
			return m, err
		},
		Alarm: func(err error) { t.Errorf("alarm: %v", err) },
	})
	want := make([]byte, 8*mib)
	fillRandom(want, rand.New(rand.NewPCG(1, 2)))
	_, err := f.WriteAt(want, 0)
	require.NoError(t, err)
	old := g.m

	require.ErrorIs(t, f.Shrink(t.Context(), 4*mib, mib), block.ErrStale)
	require.ErrorIs(t, f.Shrink(t.Context(), 8*mib, 9*mib), block.ErrRange)
	refuse = refused
	require.ErrorIs(t, f.Shrink(t.Context(), 8*mib, mib), refused)
	require.EqualValues(t, 8*mib, f.Size())
	refuse = nil
	const to = 5*mib + 1
	require.NoError(t, f.Shrink(t.Context(), 8*mib, to))
	require.EqualValues(t, 5*mib+64*kib, f.Size())
	require.Empty(t, l.Lost(), "nothing was taken away by hand")
	_, err = f.WriteAt(want[:512], f.Size())
	require.ErrorIs(t, err, block.ErrRange)
	require.NoError(t, f.Adopt(old), "an answer that was late")
	require.EqualValues(t, 5*mib+64*kib, f.Size())

	// Its old extents are somebody else's now.
	l.create(t, "other", 100*mib)
	_, err = g.Extend(t.Context(), 6*mib, 0)
	require.NoError(t, err)
	_, err = f.Grow(t.Context(), 6*mib, 6*mib)
	require.NoError(t, err)
	got := make([]byte, to)
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want[:to], got))
	require.NoError(t, f.Sync())
	require.True(t, bytes.Equal(want[:to], l.bytesOf(t, "v")[:to]))
	require.NoError(t, l.Check(t.Context()))
}
