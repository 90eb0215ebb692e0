package spm

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// A merge over several volumes that fails leaves all of them illegal but the successor:
// what is between shows a mixture, too. Nobody reads that, nothing lets it be the leaf, and
// the merge is repeated.
func TestMergeOverSeveralFails(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "aaaa")
		b := w.volume(image, a, " b")
		c := w.volume(image, b, "ccc")
		w.jobs.fail["commit"] = errors.New("I/O error")
		kind, args, err := w.merge(image, a, c)
		require.NoError(t, err)
		require.ErrorContains(t, w.run(kind, args, -1), "I/O error")
		delete(w.jobs.fail, "commit")
		require.Equal(t, "INTERNAL! INTERNAL! LEAF", w.types(w.m[0], image))
		w.consistent()
		_, shows := w.leaf(w.m[0], image)
		require.Equal(t, "ccca", shows)

		repeat := "the merge of " + c.String() + " into " + a.String() + " was not completed: repeat that"
		refused := func(err error) {
			t.Helper()
			requireCode(t, CodeIllegal, err)
			require.ErrorContains(t, err, repeat)
		}
		for _, torn := range []uuid.UUID{a, b} {
			_, err = w.ops.prepare(t.Context(), w.at(image, torn), PrepareOptions{ReadOnly: true})
			refused(err)
			_, _, err = w.ops.copyImage(t.Context(), CopyImage{From: w.at(image, torn), To: w.at(uuid.New(), uuid.New())})
			refused(err)
		}
		for _, gone := range [][]uuid.UUID{{c}, {b, c}} {
			for _, force := range []bool{false, true} {
				_, _, err = w.ops.deleteVolumes(t.Context(), DeleteVolumes{Domain: w.domain(), Image: image, Volumes: gone, Force: force})
				requireCode(t, CodeIllegal, err)
				if force || len(gone) == 1 {
					refused(err)
				}
			}
		}
		_, err = w.ops.prepare(t.Context(), w.at(image, c), PrepareOptions{})
		require.NoError(t, err)
		require.NoError(t, w.ops.teardown(t.Context(), w.at(image, uuid.Nil)))
		kind, args, err = w.ops.copyImage(t.Context(), CopyImage{From: w.at(image, c), To: w.at(uuid.New(), uuid.New())})
		w.must(kind, args, err)
		require.Equal(t, "ccca", w.shows(w.m[0], args.(copyArgs).To.Volume))

		kind, args, err = w.merge(image, a, c)
		w.must(kind, args, err)
		require.Equal(t, "ccca", w.shows(w.m[0], a))
		require.Equal(t, "LEAF", w.types(w.m[0], image))
		w.consistent()
	})
}

// A merge that failed may have made its ancestor larger than what is above that. It is
// repeated as a whole, or from above where that becomes no larger; and nothing that is
// refused makes more illegal than it was.
func TestMergeOverSeveralIsRepeatedInParts(t *testing.T) {
	for _, extended := range []bool{false, true} {
		t.Run(fmt.Sprint("extended ", extended), func(t *testing.T) {
			both(t, 1, func(t *testing.T, w *world) {
				image := uuid.New()
				a := w.volume(image, uuid.Nil, "aaaa")
				b := w.volume(image, a, " b")
				c := w.volume(image, b, "")
				if extended {
					kind, args, err := w.ops.extendVolumeSize(t.Context(), w.at(image, c), 2*gib)
					w.must(kind, args, err)
				}
				w.write(c, "ccc")
				w.jobs.fail["commit"] = errors.New("I/O error")
				kind, args, err := w.merge(image, a, c)
				require.NoError(t, err)
				require.ErrorContains(t, w.run(kind, args, -1), "I/O error")
				delete(w.jobs.fail, "commit")

				_, _, err = w.merge(image, a, b) // which is torn itself
				requireCode(t, CodeIllegal, err)
				kind, args, err = w.merge(image, b, c)
				if extended {
					requireCode(t, CodeIllegal, err)
					require.ErrorContains(t, err, "the merge of "+c.String()+" into "+a.String()+" was not completed: repeat that")
					require.Equal(t, "INTERNAL! INTERNAL! LEAF", w.types(w.m[0], image))
					kind, args, err = w.merge(image, a, c)
					w.must(kind, args, err)
				} else {
					w.must(kind, args, err)
					require.Equal(t, "INTERNAL! LEAF", w.types(w.m[0], image))
					require.Equal(t, "ccca", w.shows(w.m[0], b))
					kind, args, err = w.merge(image, a, b)
					w.must(kind, args, err)
				}
				require.Equal(t, "LEAF", w.types(w.m[0], image))
				require.Equal(t, "ccca", w.shows(w.m[0], a))
				w.consistent()
			})
		})
	}
}

// Whoever is refused for what a merge has torn is told to repeat that, and not to delete
// what holds a part of the image.
func TestTornIsNotToBeDeleted(t *testing.T) {
	w := newWorld(t, 2, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "aaaa")
	b := w.volume(image, a, " b")
	c := w.volume(image, b, "ccc")
	w.jobs.fail["commit"] = errors.New("I/O error")
	kind, args, err := w.merge(image, a, c)
	require.NoError(t, err)
	require.ErrorContains(t, w.run(kind, args, -1), "I/O error")
	for name, ask := range map[string]func() error{
		"move": func() error {
			_, _, err := w.ops.moveImage(t.Context(), MoveImage{From: w.domain(), To: w.m[1].ident.domain, Image: image})
			return err
		},
		"copy to another domain": func() error {
			_, _, err := w.ops.moveImage(t.Context(), MoveImage{From: w.domain(), To: w.m[1].ident.domain, Image: image, Copy: true})
			return err
		},
		"delete all": func() error {
			_, _, err := w.ops.deleteVolumes(t.Context(), DeleteVolumes{Domain: w.domain(), Image: image, Volumes: []uuid.UUID{a, b, c}})
			return err
		},
		"delete the image": func() error {
			_, _, err := w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})
			return err
		},
		"merge a part": func() error {
			_, _, err := w.merge(image, a, b)
			return err
		},
		"serve": func() error {
			_, err := w.ops.prepare(t.Context(), w.at(image, b), PrepareOptions{ReadOnly: true})
			return err
		},
		"copy": func() error {
			_, _, err := w.ops.copyImage(t.Context(), CopyImage{From: w.at(image, b), To: w.at(uuid.New(), uuid.New())})
			return err
		},
		"extend": func() error {
			_, _, err := w.ops.extendVolumeSize(t.Context(), w.at(image, b), 2*gib)
			return err
		},
	} {
		err := ask()
		requireCode(t, CodeIllegal, err)
		require.ErrorContains(t, err, "the merge of "+c.String()+" into "+a.String()+" was not completed: repeat that", name)
		require.NotContains(t, err.Error(), "delete", name)
		require.NotContains(t, err.Error(), "force", name)
	}
}

// Who is about to delete what a merge has torn, with all that is whole above it, is told
// what is lost with it before that is possible by force.
func TestDeletingWhatIsTornSaysWhatIsLost(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "aaaa")
	b := w.volume(image, a, "bb")
	w.jobs.fail["commit"] = errors.New("I/O error")
	kind, args, err := w.merge(image, a, b)
	require.NoError(t, err)
	require.ErrorContains(t, w.run(kind, args, -1), "I/O error")
	lost := "volume " + a.String() + " has a part of what " + b.String() + " shows, which would be lost with it"
	both := DeleteVolumes{Domain: w.domain(), Image: image, Volumes: []uuid.UUID{b, a}}
	_, _, err = w.ops.deleteVolumes(t.Context(), both)
	requireCode(t, CodeIllegal, err)
	require.ErrorContains(t, err, lost)
	_, _, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})
	requireCode(t, CodeIllegal, err)
	require.ErrorContains(t, err, lost)
	both.Force = true
	kind, args, err = w.ops.deleteVolumes(t.Context(), both)
	w.must(kind, args, err)
	require.Empty(t, w.m[0].family().images[image])
}

// A merge that ends before it has written anything leaves what was legal legal, and
// nothing else.
func TestMergeThatHasNotBegunIsUndone(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "aaaa")
		b := w.volume(image, a, " b")
		c := w.volume(image, b, "ccc")
		for _, step := range []struct {
			dieAt int
			after string
		}{
			{2 * tearStep, "INTERNAL INTERNAL LEAF"},
			{2*tearStep + 1, "INTERNAL INTERNAL LEAF"},
			{2*tearStep + 2, "INTERNAL! INTERNAL! LEAF"}, // perhaps it has written
			{2*tearStep + 1, "INTERNAL! INTERNAL! LEAF"}, // it had, the time before
		} {
			kind, args, err := w.merge(image, a, c)
			require.NoError(t, err)
			require.ErrorIs(t, w.run(kind, args, step.dieAt), errCrash)
			w.restart()
			require.False(t, w.recover())
			require.Equal(t, step.after, w.types(w.m[0], image), "died at %d", step.dieAt)
			w.consistent()
		}
	})
}
