package spm

import (
	"bytes"
	"cmp"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// retagByHand is lvchange --deltag OLD --addtag NEW.
func (g *fakeGroup) retagByHand(t *testing.T, volume, old, now string) {
	t.Helper()
	require.NoError(t, g.edit(func(s *GroupState) error {
		i := find(s, volume)
		require.Contains(t, s.Volumes[i].Tags, old)
		s.Volumes[i].Tags = retag(s.Volumes[i].Tags, []string{old}, []string{now})
		return nil
	}))
}

// A slot that two tags name is of the volume which it says, and stays that when the
// other one is removed and volumes are made.
func TestGroupSlotNamedTwice(t *testing.T) {
	for wrong := range 2 {
		t.Run(fmt.Sprint("volume ", wrong), func(t *testing.T) {
			g := newFakeGroup(t, 32)
			m := g.mustOpen(t)
			v := []Volume{create(t, m, "v0", 10*gib), create(t, m, "v1", 11*gib)}
			require.NoError(t, m.Close())
			right := 1 - wrong
			g.retagByHand(t, v[wrong].VolumeUUID, fmt.Sprint(tagSlot, wrong+1), fmt.Sprint(tagSlot, right+1))

			m = g.mustOpen(t)
			require.Contains(t, volumeOf(t, m, v[wrong].VolumeUUID).Damaged, v[right].VolumeUUID, "names the other one")
			require.Empty(t, volumeOf(t, m, v[right].VolumeUUID).Damaged)
			create(t, m, "new1", 3*gib)
			remove(t, m, v[wrong].VolumeUUID)
			create(t, m, "new2", 4*gib)
			require.NoError(t, m.Close())

			m = g.mustOpen(t)
			require.Equal(t, v[right].Size, volumeOf(t, m, v[right].Name).Size)
			for name, size := range map[string]int64{"new1": 3 * gib, "new2": 4 * gib} {
				require.Equal(t, size, volumeOf(t, m, name).Size)
			}
			require.NoError(t, m.Close())
		})
	}
}

// A tag that is changed while there is a manager lets nobody write to the slot of
// another volume, nor take one that it names.
func TestGroupSlotChangedUnderTheManager(t *testing.T) {
	g := newFakeGroup(t, 32)
	m := g.mustOpen(t)
	v0, v1 := create(t, m, "v0", 10*gib), create(t, m, "v1", 11*gib)
	g.retagByHand(t, v1.VolumeUUID, "MD_2", "MD_1")
	v := m.volumes[uuid.MustParse(v1.VolumeUUID)]
	require.ErrorContains(t, m.store.write(t.Context(), v, v.meta()), "changed by somebody else")
	g.retagByHand(t, v1.VolumeUUID, "MD_1", "MD_3")
	created := create(t, m, "v2", 12*gib)
	require.Contains(t, g.State().Volumes[find(g.State(), created.VolumeUUID)].Tags, "MD_4")
	require.NoError(t, m.Close())
	m = g.mustOpen(t)
	require.Equal(t, v0.Size, volumeOf(t, m, "v0").Size)
	require.NoError(t, m.Close())
}

func TestOwnerOfASlot(t *testing.T) {
	image, other, parent := uuid.New(), uuid.New(), uuid.New()
	m := volumeMeta{Image: image, Parent: parent}
	at := func(image, parent uuid.UUID) volumeTags {
		return volumeTags{image: image, parent: parent.String()}
	}
	for name, c := range map[string]struct {
		named map[string]volumeTags
		owner string
	}{
		"one":                            {map[string]volumeTags{"a": at(image, parent)}, "a"},
		"one, its tag PU_ is old":        {map[string]volumeTags{"a": at(image, other)}, "a"},
		"one of another image":           {map[string]volumeTags{"a": at(other, parent)}, ""},
		"two images":                     {map[string]volumeTags{"a": at(other, parent), "b": at(image, other)}, "b"},
		"one image, two parents":         {map[string]volumeTags{"a": at(image, parent), "b": at(image, other)}, "a"},
		"one image, and nobody knows":    {map[string]volumeTags{"a": at(image, parent), "b": at(image, parent)}, ""},
		"one image, and neither matches": {map[string]volumeTags{"a": at(image, other), "b": at(image, other)}, ""},
	} {
		require.Equal(t, c.owner, ownerOf(m, c.named), name)
	}
}

// A volume whose tag names no slot keeps its space, is shown and logged, may be removed,
// and is whole again when its tag is.
func TestGroupSlotLost(t *testing.T) {
	for _, tag := range []string{"", "MD_", "MD_0", "MD_x", "MD_-1", "MD_1920", "MD_999999", "MD_7"} {
		t.Run(cmp.Or(tag, "none"), func(t *testing.T) {
			g := newFakeGroup(t, 32)
			m := g.mustOpen(t)
			lost, good := create(t, m, "lost", 10*gib), create(t, m, "good", 11*gib)
			was := pool(t, m)
			require.NoError(t, m.Close())
			g.retagByHand(t, lost.VolumeUUID, "MD_1", tag)

			var log bytes.Buffer
			o := testOptions()
			o.Capacity, o.Poll, o.Log = 0, time.Hour, slog.New(slog.NewTextHandler(&log, nil))
			m, err := openGroupManager(g, o)
			require.NoError(t, err)
			require.Equal(t, was.Granted, pool(t, m).Granted)
			require.Equal(t, was.Capacity, pool(t, m).Capacity)
			require.Equal(t, was.Volumes, pool(t, m).Volumes)
			v := volumeOf(t, m, lost.VolumeUUID)
			require.Contains(t, v.Damaged, "MD_1", "where its metadata are")
			require.Regexp(t, `level=ERROR .*damaged.*`+lost.VolumeUUID, log.String())
			require.Empty(t, volumeOf(t, m, good.Name).Damaged)
			_, err = m.Volume(t.Context(), VolumeRef{Volume: lost.VolumeUUID})
			requireCode(t, CodeDamaged, err)
			third := create(t, m, "third", 12*gib)
			require.NoError(t, m.Close())

			g.retagByHand(t, lost.VolumeUUID, tag, "MD_1")
			m = g.mustOpen(t)
			for _, want := range []Volume{lost, good, third} {
				require.Equal(t, want.Size, volumeOf(t, m, want.Name).Size)
			}
			require.NoError(t, m.Close())

			g.retagByHand(t, lost.VolumeUUID, "MD_1", tag)
			m = g.mustOpen(t)
			remove(t, m, lost.VolumeUUID)
			require.Equal(t, was.Granted, pool(t, m).Granted, "that of the third")
			require.NoError(t, m.Close())
			m = g.mustOpen(t)
			created := create(t, m, "fourth", 10*gib)
			require.Contains(t, g.State().Volumes[find(g.State(), created.VolumeUUID)].Tags, "MD_1", "which is free now")
			require.NoError(t, m.Close())
		})
	}
}
