package spm

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// A volume that has given back all that it does not need is granted the room for a
// larger disk also while it is served.
func TestResizeServedReduced(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "a")
		kind, args, err := w.ops.reduceVolume(t.Context(), w.at(image, a))
		w.must(kind, args, err)
		_, err = w.ops.prepare(t.Context(), w.at(image, a), PrepareOptions{})
		require.NoError(t, err)
		kind, args, err = w.ops.extendVolumeSize(t.Context(), w.at(image, a), 2*gib)
		require.Equal(t, kindResizeLive, kind)
		w.must(kind, args, err)
		require.EqualValues(t, "2147483648", w.sizes(a))
		w.consistent()
	})
}

// A served image behind whose end there is no room, for what its server has reserved has
// it all, is refused a larger disk before anything has changed: the server would wait for
// the space when the task cannot go back any more.
func TestResizeServedInFullPool(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "a")
		_, err := w.ops.prepare(t.Context(), w.at(image, a), PrepareOptions{})
		require.NoError(t, err)
		i := w.m[0].info(a)
		w.servers.ahead = i.Granted - 2*mib
		w.m[0].capacity = w.m[0].granted
		kind, args, err := w.ops.extendVolumeSize(t.Context(), w.at(image, a), 2*gib)
		require.NoError(t, err)
		require.Equal(t, kindResizeLive, kind)
		requireCode(t, CodePoolFull, w.run(kind, args, -1))
		require.Nil(t, w.record, "it is rolled back")
		require.EqualValues(t, "1073741824", w.sizes(a))
		require.Equal(t, i.Capacity, w.m[0].info(a).Capacity)
	})
}
