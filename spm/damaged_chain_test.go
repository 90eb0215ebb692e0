package spm

import (
	"os"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// What a damaged volume is based on nobody knows: it may be any of its image. So none of
// these is written to, merged or removed without it.
func TestWhatADamagedVolumeMayBeBasedOn(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "a")
	b := w.volume(image, a, " b")
	c := w.volume(image, b, "  c")
	path := w.m[0].info(c).Path + extMeta
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text[:100], 0o600))
	w.restart()
	one := func(ids ...uuid.UUID) DeleteVolumes {
		return DeleteVolumes{Domain: w.domain(), Image: image, Volumes: ids, Force: true}
	}
	for what, do := range map[string]func() error{
		"prepare the image": func() error { return second(w.ops.prepare(t.Context(), w.at(image, uuid.Nil), PrepareOptions{})) },
		"prepare":           func() error { return second(w.ops.prepare(t.Context(), w.at(image, b), PrepareOptions{})) },
		"snapshot": func() error {
			r := w.newVolume(image, uuid.New())
			r.Parent = b
			return third(w.ops.createVolume(t.Context(), r))
		},
		"merge":  func() error { return third(w.merge(image, a, b)) },
		"delete": func() error { return third(w.ops.deleteVolumes(t.Context(), one(b))) },
		"extend": func() error { return third(w.ops.extendVolumeSize(t.Context(), w.at(image, b), 2*gib)) },
	} {
		err := do()
		require.Error(t, err, what)
		require.Equal(t, CodeDamaged, CodeOf(err), "%s: %v", what, err)
	}
	require.Contains(t, volumeOf(t, w.m[0], b.String()).ReadOnly, "damaged")
	_, err = w.ops.prepare(t.Context(), w.at(image, b), PrepareOptions{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, w.servers.Stop(t.Context(), image.String()))

	kind, args, err := w.ops.deleteVolumes(t.Context(), one(c))
	w.must(kind, args, err)
	leaf, shows := w.leaf(w.m[0], image)
	require.Equal(t, b, leaf)
	require.Equal(t, "ab", shows)
	_, err = w.ops.prepare(t.Context(), w.at(image, uuid.Nil), PrepareOptions{})
	require.NoError(t, err)
}

// third is the error of three results.
func third(_, _ any, err error) error { return err }

// Who opens a volume is told whether others are based on it.
func TestVolumeThatOthersAreBasedOn(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "a")
	require.Empty(t, volumeOf(t, w.m[0], a.String()).ReadOnly)
	b := w.volume(image, a, " b")
	require.Contains(t, volumeOf(t, w.m[0], a.String()).ReadOnly, "based on it")
	require.Empty(t, volumeOf(t, w.m[0], b.String()).ReadOnly)
}

// Who names an image, or asks for it by its name, is not shown what is below a damaged
// volume of it.
func TestImageOfADamagedVolume(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		r := w.newVolume(image, uuid.New())
		r.Description = `{"DiskAlias":"web1"}`
		kind, args, err := w.ops.createVolume(t.Context(), r)
		w.must(kind, args, err)
		b := w.volume(image, r.Volume, "b")
		require.Equal(t, b.String(), volumeOf(t, w.m[0], "web1").VolumeUUID)
		mend := w.tear(b)
		w.restart()

		require.Equal(t, b.String(), volumeOf(t, w.m[0], image.String()).VolumeUUID)
		for what, err := range map[string]error{
			"by name": second(w.m[0].Volume(t.Context(), VolumeRef{Volume: "web1"})),
			"image":   second(w.m[0].Volume(t.Context(), VolumeRef{Volume: image.String()})),
			"prepare": second(w.ops.prepare(t.Context(), w.at(image, uuid.Nil), PrepareOptions{ReadOnly: true})),
			"measure": second(w.ops.measure(t.Context(), w.at(image, uuid.Nil), Raw)),
			"copy": third(w.ops.copyImage(t.Context(), CopyImage{
				From: w.at(image, uuid.Nil), To: w.at(uuid.New(), uuid.New()),
			})),
		} {
			require.Error(t, err, what)
			requireCode(t, CodeDamaged, err)
			require.ErrorContains(t, err, b.String(), what)
		}
		info, err := w.ops.volumeInfo(t.Context(), w.at(image, uuid.Nil))
		require.NoError(t, err)
		require.Equal(t, b, info.Volume)
		require.NotEmpty(t, info.Damaged)
		_, err = w.ops.prepare(t.Context(), w.at(image, r.Volume), PrepareOptions{ReadOnly: true})
		require.NoError(t, err, "who names a volume means that")
		require.NoError(t, w.servers.Stop(t.Context(), image.String()))
		mend()
		w.restart()
		require.Equal(t, b.String(), volumeOf(t, w.m[0], "web1").VolumeUUID)
		w.consistent()
	})
}
