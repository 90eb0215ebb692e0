package spm

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// slowServers say nothing of a merge that they have been asked for by a manager that died: it
// is about to begin.
type slowServers struct{ *fakeServers }

func (s slowServers) Find(ctx context.Context, image string) (Server, error) {
	have, err := s.fakeServers.Find(ctx, image)
	have.Merge = ""
	return have, err
}

// A rollback ends a merge that begins behind its back, or nobody could end it any more but
// by hand.
func TestMergeLiveThatBeginsLateIsCancelled(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image, a, b := w.mergeLiveUntil(7) // in "mirror"
		w.restart()
		w.ops.servers = slowServers{w.servers}
		require.False(t, w.recover())
		w.ops.servers = w.servers
		s, err := w.servers.Find(t.Context(), image.String())
		require.NoError(t, err)
		require.Empty(t, s.Merge)
		kind, args, err := w.merge(image, a, b)
		w.must(kind, args, err)
		w.consistent()
	})
}

// pivotingServers let go of a leaf, which a manager that died has asked them for, before they
// do what is asked next.
type pivotingServers struct{ *fakeServers }

func (s pivotingServers) MergeCancel(ctx context.Context, image, leaf string) error {
	if err := s.MergePivot(ctx, image, leaf); err != nil {
		return err
	}
	return s.fakeServers.MergeCancel(ctx, image, leaf)
}

// A merge that is given up while the server lets go of the leaf has succeeded: what is written
// to the ancestor from then on is what the image shows.
func TestMergeLiveIsGivenUpWhenItIsDone(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image, a, _ := w.mergeLiveUntil(10) // before "pivot"
		w.restart()
		w.ops.servers = pivotingServers{w.servers}
		w.giveUp()
		w.ops.servers = w.servers
		require.NoError(t, w.servers.write(image.String(), 2, 'c'))
		id, shows := w.leaf(w.m[0], image)
		require.Equal(t, a, id)
		require.Equal(t, "abca", shows)
		w.consistent()
	})
}
