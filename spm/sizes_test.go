package spm

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// asked is a request that has been accepted, and whose task waits for its locks yet.
func (w *world) asked(kind string, args any, err error) func() error {
	w.t.Helper()
	require.NoError(w.t, err)
	return func() error { return w.run(kind, args, -1) }
}

// A snapshot has the size that its parent has when it is made, and not when it was asked
// for: another task may have made that larger since, served or not.
func TestSnapshotHasTheSizeOfItsParent(t *testing.T) {
	for _, served := range []bool{false, true} {
		both(t, 1, func(t *testing.T, w *world) {
			image := uuid.New()
			a := w.volume(image, uuid.Nil, "a")
			if served {
				_, err := w.ops.prepare(t.Context(), w.at(image, a), PrepareOptions{})
				require.NoError(t, err)
			}
			r := w.newVolume(image, uuid.New())
			r.Parent, r.Size = a, 0
			snapshot := w.asked(w.ops.createVolume(t.Context(), r))
			r.Size = gib
			sized := w.asked(w.ops.createVolume(t.Context(), r))
			kind, args, err := w.ops.extendVolumeSize(t.Context(), w.at(image, a), 2*gib)
			w.must(kind, args, err)

			err = sized()
			requireCode(t, CodeInvalid, err)
			require.ErrorContains(t, err, "size is 1073741824 bytes, less than the 2147483648 of the volume that it is to be based on")
			require.NoError(t, snapshot())
			require.Equal(t, "2147483648", w.sizes(r.Volume))
			require.NoError(t, w.servers.Stop(t.Context(), image.String()))
			w.consistent()
		})
	}
}

// A larger one of a served image is made of an image that is not.
func TestSnapshotOfAServedImageHasItsSize(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "a")
	r := w.newVolume(image, uuid.New())
	r.Parent, r.Size = a, 2*gib
	snapshot := w.asked(w.ops.createVolume(t.Context(), r))
	_, err := w.ops.prepare(t.Context(), w.at(image, a), PrepareOptions{})
	require.NoError(t, err)
	err = snapshot()
	requireCode(t, CodeInUse, err)
	require.ErrorContains(t, err, "its snapshot has its size, 1073741824 bytes: ask for that, or for 0")
	require.NoError(t, w.servers.Stop(t.Context(), image.String()))
	require.NoError(t, snapshot())
	require.Equal(t, "2147483648", w.sizes(r.Volume))
}

// The metadata of a copy say the size that was copied.
func TestCopyHasTheSizeOfItsSource(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		cow := w.newVolume(uuid.New(), uuid.New())
		raw := w.newVolume(uuid.New(), uuid.New())
		raw.Format, raw.Alloc, raw.Size, cow.Size = Raw, Preallocated, 100*mib, 100*mib
		for _, r := range []NewVolume{cow, raw} {
			kind, args, err := w.ops.createVolume(t.Context(), r)
			w.must(kind, args, err)
			for _, c := range []CopyImage{{Format: Cow, Alloc: Sparse}, {Format: Raw, Alloc: Preallocated}, {Format: Cow, Alloc: Sparse, Type: Shared}} {
				c.From, c.To = r.VolumeAt, w.at(uuid.New(), uuid.New())
				size := w.m[0].info(r.Volume).Capacity + 100*mib
				copied := w.asked(w.ops.copyImage(t.Context(), c))
				kind, args, err := w.ops.extendVolumeSize(t.Context(), r.VolumeAt, size)
				w.must(kind, args, err)
				require.NoError(t, copied())
				require.Equal(t, size, w.m[0].info(c.To.Volume).Capacity)
				w.sizes(c.To.Volume)
			}
		}
		w.consistent()
	})
}
