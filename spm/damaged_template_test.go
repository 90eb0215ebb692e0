package spm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// tear makes the metadata of a volume unreadable, and returns what mends them.
func (w *world) tear(id uuid.UUID) (mend func()) {
	if w.group != nil {
		l := w.group.State().Volumes[find(w.group.State(), id.String())]
		tags, _ := parseVolumeTags(l.Tags)
		at, whole := slotBase+int64(tags.slot)*slotSize, make([]byte, volumeMetaMaxSize)
		_, err := w.group.content[lvMetadata].ReadAt(whole, at)
		require.NoError(w.t, err)
		put := func(b []byte) {
			_, err := w.group.content[lvMetadata].WriteAt(b, at)
			require.NoError(w.t, err)
		}
		put(make([]byte, volumeMetaMaxSize))
		return func() { put(whole) }
	}
	path := w.m[0].info(id).Path + extMeta
	whole, err := os.ReadFile(path)
	require.NoError(w.t, err)
	require.NoError(w.t, os.WriteFile(path, whole[:100], 0o600))
	return func() { require.NoError(w.t, os.WriteFile(path, whole, 0o600)) }
}

// template makes a template, and a volume of another image that is based on it.
func (w *world) template() (image, template, other, child uuid.UUID) {
	image, template, other, child = uuid.New(), uuid.New(), uuid.New(), uuid.New()
	r := w.newVolume(image, template)
	r.Type = Shared
	kind, args, err := w.ops.createVolume(w.t.Context(), r)
	w.must(kind, args, err)
	r = w.newVolume(other, child)
	r.Parent, r.ParentImage, r.Size = template, image, 0
	kind, args, err = w.ops.createVolume(w.t.Context(), r)
	w.must(kind, args, err)
	w.write(child, "c")
	return image, template, other, child
}

// A template on which a damaged volume of another image is based goes by force only: its
// tag says so, or the header of its image.
func TestTemplateOfADamagedVolume(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image, template, _, child := w.template()
		unused, _, gone, gone2 := w.template()
		kind, args, err := w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: gone})
		w.must(kind, args, err)
		require.NotContains(t, w.m[0].family().all, gone2)
		mend := w.tear(child)
		w.restart()

		refused := third(w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image}))
		requireCode(t, CodeDamaged, refused)
		require.ErrorContains(t, refused, child.String())
		refused = second(w.m[0].RemoveVolume(t.Context(), VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: image.String()}}))
		requireCode(t, CodeDamaged, refused)
		f := w.m[0].family()
		to := newFamily(nil)
		move := moveArgs{Image: image, Volumes: []uuid.UUID{template}}
		requireCode(t, CodeDamaged, mayMove(f, to, move))
		move.Copy = true
		require.NoError(t, mayMove(f, to, move))

		kind, args, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: unused})
		w.must(kind, args, err) // nothing damaged is based on that one
		mend()
		w.restart()
		w.consistent()
		require.Equal(t, "c", w.shows(w.m[0], child))

		w.tear(child)
		w.restart()
		kind, args, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image, Force: true})
		w.must(kind, args, err)
	})
}

// Of a damaged volume whose header cannot be read either any template may be below.
func TestTemplateOfALostVolume(t *testing.T) {
	w := newWorld(t, 1, false)
	image, _, other, child := w.template()
	plain := uuid.New()
	w.volume(plain, uuid.Nil, "a")
	path := w.m[0].info(child).Path
	w.tear(child)
	require.NoError(t, os.Truncate(path, 0))
	w.restart()
	requireCode(t, CodeDamaged, third(w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})))
	kind, args, err := w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: plain})
	w.must(kind, args, err)
	kind, args, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: other, Force: true})
	w.must(kind, args, err)
	kind, args, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})
	w.must(kind, args, err)
	require.NoDirExists(t, filepath.Dir(path))
}
