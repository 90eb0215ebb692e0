package spm

import (
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// Before a volume gets a snapshot it is settled, unless somebody serves it who does that
// himself, and not if it is raw, or a template. Where that fails there is no snapshot.
func TestSnapshotSettlesWhatItIsMadeOn(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "aa")
		require.Empty(t, w.jobs.settled)
		snapshot := func(parent uuid.UUID) (uuid.UUID, error) {
			r := w.newVolume(image, uuid.New())
			r.Parent, r.Size = parent, 0
			kind, args, err := w.ops.createVolume(t.Context(), r)
			require.NoError(t, err)
			return r.Volume, w.run(kind, args, -1)
		}

		w.jobs.fail["settle"] = errors.New("I/O error")
		_, err := snapshot(a)
		require.ErrorContains(t, err, "give back what a process that died had reserved in volume "+a.String())
		require.ErrorContains(t, err, "I/O error")
		require.Equal(t, "LEAF", w.types(w.m[0], image))
		delete(w.jobs.fail, "settle")
		w.jobs.settled = nil
		b, err := snapshot(a)
		require.NoError(t, err)
		require.Equal(t, []string{a.String()}, w.jobs.settled)
		require.Equal(t, "INTERNAL LEAF", w.types(w.m[0], image))

		w.jobs.settled = nil
		_, err = w.ops.prepare(t.Context(), w.at(image, b), PrepareOptions{})
		require.NoError(t, err)
		c, err := snapshot(b)
		require.NoError(t, err)
		require.Empty(t, w.jobs.settled, "its server has")
		require.NoError(t, w.ops.teardown(t.Context(), w.at(image, uuid.Nil)))
		_, err = w.ops.prepare(t.Context(), w.at(image, c), PrepareOptions{ReadOnly: true})
		require.NoError(t, err)
		_, err = snapshot(c)
		require.NoError(t, err)
		require.Contains(t, w.jobs.settled, c.String(), "who serves it for reading only has not")
		w.consistent()
	})
}

// calmImages are those of whose writers none has died.
type calmImages struct{ contentImages }

func (calmImages) WriterDied(block.File) (bool, error) { return false, nil }

// Whether there is something to settle the manager sees itself: a job takes a process.
func TestSnapshotOfWhatIsSettledNeedsNoJob(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "aa")
		w.m[0].o.Images = calmImages{}
		w.jobs.fail["settle"] = errors.New("there is nothing to settle")
		w.volume(image, a, "b")
		require.Equal(t, "INTERNAL LEAF", w.types(w.m[0], image))
	})
}
