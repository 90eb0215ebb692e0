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
