package spm

import (
	"os"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
)

// Nobody's volume is taken from under him: only a server of the manager's goes over to a
// snapshot, so whoever else has the leaf open is in its way, also if he came after the check.
func TestSnapshotOfAVolumeHeldByOthers(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "a")
	r := w.newVolume(image, uuid.New())
	r.Parent, r.Size = a, 0
	kind, args, err := w.ops.createVolume(t.Context(), r)
	require.NoError(t, err)

	path := w.m[0].info(a).Path
	f, err := hostfile.Open(path, hostfile.Options{Fixed: true})
	require.NoError(t, err)
	_, _, refused := w.ops.createVolume(t.Context(), r)
	requireCode(t, CodeInUse, refused)
	requireCode(t, CodeInUse, w.run(kind, args, -1))
	require.NoError(t, f.Close())

	w.moment = func() { // while the new leaf is made
		if f == nil {
			f, err = hostfile.Open(path, hostfile.Options{Fixed: true})
			require.NoError(t, err)
		}
	}
	f = nil
	requireCode(t, CodeInUse, w.run(kind, args, -1))
	w.moment = nil
	require.NoError(t, f.Close())
	require.Len(t, w.m[0].family().images[image], 1)
	w.must(kind, args, nil)
}

// Nor is a snapshot made of what is damaged, although its manager has not known that: the
// leaf stays the leaf.
func TestSnapshotOfADamagedLeaf(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "a")
		snapshot := func() error {
			r := w.newVolume(image, uuid.New())
			r.Parent, r.Size = a, 0
			kind, args, err := w.ops.createVolume(t.Context(), r)
			if err != nil {
				return err
			}
			return w.run(kind, args, -1)
		}
		path := w.m[0].info(a).Path
		if w.group != nil {
			_, err := w.group.content[a.String()].WriteAt(make([]byte, 4096), 0)
			require.NoError(t, err)
		} else {
			require.NoError(t, os.WriteFile(path, make([]byte, mib), 0o600))
		}
		err := snapshot()
		requireCode(t, CodeDamaged, err)
		require.ErrorContains(t, err, a.String())
		require.Equal(t, "LEAF", w.types(w.m[0], image))
		if w.group == nil {
			require.NoError(t, os.Remove(path))
			requireCode(t, CodeDamaged, snapshot())
			require.Equal(t, "LEAF", w.types(w.m[0], image))
			kind, args, err := w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})
			w.must(kind, args, err) // what is not there is in nobody's way
			w.consistent()
		}
	})
}
