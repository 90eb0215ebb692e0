package spm

import (
	"bytes"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
)

// A volume gives back what it has beyond its data, and keeps what it needs.
func TestReduceVolume(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "abc")
		extend(t, w.m[0], a.String(), 5*fakeExtent, 0)
		kind, args, err := w.ops.reduceVolume(t.Context(), w.at(image, a))
		w.must(kind, args, err)
		i := w.m[0].info(a)
		require.Equal(t, roundUp(4*mib, w.m[0].unit()), i.Granted)
		require.Equal(t, 1, i.Generation)
		require.Equal(t, Legal, i.Legality)
		require.Equal(t, "abc", w.shows(w.m[0], a))
		w.consistent()
	})
}

// Who has a volume open, and is no server of ours, keeps it as it is.
func TestVolumeHeldByOthers(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "a")
	f, err := hostfile.Open(w.m[0].info(a).Path, hostfile.Options{Fixed: true})
	require.NoError(t, err)
	_, _, err = w.ops.reduceVolume(t.Context(), w.at(image, a))
	requireCode(t, CodeInUse, err)
	_, _, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image, Force: true})
	requireCode(t, CodeInUse, err)
	_, _, err = w.ops.extendVolumeSize(t.Context(), w.at(image, a), 2*gib)
	requireCode(t, CodeInUse, err)
	require.NoError(t, f.Close())
	kind, args, err := w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})
	w.must(kind, args, err)
}

// A served image is extended by its server, after its bound.
func TestResizeServed(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "a")
		before := w.m[0].info(a).Bound
		_, err := w.ops.prepare(t.Context(), w.at(image, a), PrepareOptions{})
		require.NoError(t, err)
		kind, args, err := w.ops.extendVolumeSize(t.Context(), w.at(image, a), 2*gib)
		require.NoError(t, err)
		require.Equal(t, kindResizeLive, kind)
		require.ErrorIs(t, w.run(kind, args, 6), errCrash) // before the server is told
		require.NoError(t, w.servers.Stop(t.Context(), image.String()))
		w.restart()
		require.True(t, w.recover())
		require.EqualValues(t, "2147483648", w.sizes(a), "without a server the image itself is extended")
		require.Greater(t, w.m[0].info(a).Bound, before)
		w.consistent()
	})
}

// A served image is not extended while its server has a merge, in whatever state: the
// server would refuse it when the task cannot go back any more.
func TestResizeDuringAMerge(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "a")
	_, err := w.ops.prepare(t.Context(), w.at(image, a), PrepareOptions{})
	require.NoError(t, err)
	for _, state := range []string{mergeReady, mergeFailed} {
		w.servers.byKey[image.String()].Merge = state
		_, _, err = w.ops.extendVolumeSize(t.Context(), w.at(image, a), 2*gib)
		requireCode(t, CodeUnfinished, err)
		require.ErrorContains(t, err, "is being merged ("+state+"): wait for its task, or stop it, and repeat the request")
	}
	w.servers.byKey[image.String()].Merge = ""
	kind, args, err := w.ops.extendVolumeSize(t.Context(), w.at(image, a), 2*gib)
	w.must(kind, args, err)
}

// A volume that has given back all that it does not need is granted the room for a
// larger disk.
func TestResizeReduced(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "abc")
		kind, args, err := w.ops.reduceVolume(t.Context(), w.at(image, a))
		w.must(kind, args, err)
		kind, args, err = w.ops.extendVolumeSize(t.Context(), w.at(image, a), 2*gib)
		w.must(kind, args, err)
		require.EqualValues(t, "2147483648", w.sizes(a))
		w.consistent()
	})
}

// One that cannot have it is refused before anything has changed.
func TestResizeInFullPool(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "abc")
	kind, args, err := w.ops.reduceVolume(t.Context(), w.at(image, a))
	w.must(kind, args, err)
	w.m[0].o.Reserve = 64 * mib
	w.m[0].capacity = w.m[0].granted + w.m[0].o.Reserve // which is for merging
	kind, args, err = w.ops.extendVolumeSize(t.Context(), w.at(image, a), 2*gib)
	require.NoError(t, err)
	requireCode(t, CodePoolFull, w.run(kind, args, -1))
	require.Nil(t, w.record, "it is rolled back")
	require.EqualValues(t, "1073741824", w.sizes(a))
}

// A raw volume is as large as it is long, or as short as it was.
func TestResizeRaw(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		r := w.newVolume(uuid.New(), uuid.New())
		r.Size, r.Format, r.Alloc = 100*mib, Raw, Preallocated
		kind, args, err := w.ops.createVolume(t.Context(), r)
		w.must(kind, args, err)
		granted := w.m[0].info(r.Volume).Granted
		kind, args, err = w.ops.extendVolumeSize(t.Context(), r.VolumeAt, 300*mib)
		require.NoError(t, err)
		require.ErrorIs(t, w.run(kind, args, 3), errCrash) // after "space"
		w.restart()
		require.False(t, w.recover())
		require.Equal(t, granted, w.m[0].info(r.Volume).Granted)
		require.EqualValues(t, 100*mib, w.m[0].info(r.Volume).Capacity)
		w.must(kind, args, nil)
		require.GreaterOrEqual(t, w.m[0].info(r.Volume).Granted, int64(300*mib))
		require.EqualValues(t, 300*mib, w.m[0].info(r.Volume).Capacity)
		if w.group != nil {
			b := make([]byte, 300*mib)
			_, err := w.group.content[r.Volume.String()].ReadAt(b, 0)
			require.NoError(t, err)
			require.Equal(t, len(b), bytes.Count(b, []byte{0}), "nothing shows of what was there")
		}
		w.consistent()
	})
}
