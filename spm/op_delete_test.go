package spm

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// An image that is about to be removed is opened by nobody any more, so that the removal
// does not wait for him, also after a crash.
func TestImageIsIllegalBeforeItGoes(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "a")
		b := w.volume(image, a, "b")
		kind, args, err := w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})
		require.NoError(t, err)
		require.ErrorIs(t, w.run(kind, args, 4), errCrash) // before "remove"
		for range 2 {
			require.Equal(t, "INTERNAL! LEAF!", w.types(w.m[0], image))
			for _, id := range []uuid.UUID{a, b} {
				for _, readOnly := range []bool{true, false} {
					requireCode(t, CodeIllegal, second(w.ops.prepare(t.Context(), w.at(image, id), PrepareOptions{ReadOnly: readOnly})))
				}
			}
			w.restart()
		}
		require.True(t, w.recover())
		require.Empty(t, w.m[0].family().images[image])
		w.consistent()
	})
}

// While it is being marked its leaf stays the leaf.
func TestImageDiesWhileItIsMarked(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "a")
		leaf := w.volume(image, a, "b")
		kind, args, err := w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})
		require.NoError(t, err)
		died := false
		w.moment = func() {
			if f := w.m[0].family(); !died && !f.all[a].legal() && f.all[leaf].legal() {
				died = true
				panic(errCrash)
			}
		}
		require.ErrorIs(t, w.run(kind, args, -1), errCrash)
		w.moment = nil
		w.restart()
		got, shows := w.leaf(w.m[0], image)
		require.Equal(t, leaf, got)
		require.Equal(t, "b", shows)
		require.True(t, w.recover())
		w.consistent()
	})
}
