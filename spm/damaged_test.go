package spm

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// One volume whose metadata cannot be read keeps its space, is shown, and can be
// removed; the others are served.
func TestDamagedVolume(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	bad, good := create(t, m, "bad", 10*gib), create(t, m, "good", 10*gib)
	granted := pool(t, m).Granted
	require.NoError(t, m.Close())
	text, err := os.ReadFile(bad.Path + extMeta)
	require.NoError(t, err)
	for what, content := range map[string]string{
		"truncated": string(text[:100]),
		"empty":     "",
		"format":    "FORMAT=NIX\n" + string(text),
	} {
		if what == "format" {
			content = string(text[:len(text)-len("EOF\n")]) + "FORMAT=NIX\nEOF\n"
		}
		require.NoError(t, os.WriteFile(bad.Path+extMeta, []byte(content), 0o600))
		m, err := openManager(dir, testOptions())
		require.NoError(t, err, what)
		require.Equal(t, granted, pool(t, m).Granted, what)
		v := volumeOf(t, m, bad.VolumeUUID)
		require.Contains(t, v.Damaged, bad.Path+extMeta, what)
		require.Equal(t, bad.VolumeUUID, v.Name)
		require.Empty(t, v.Format)
		_, err = m.ExtendVolume(t.Context(), extendRequest(bad.VolumeUUID, gib, gib))
		requireCode(t, CodeDamaged, err)
		_, err = m.Volume(t.Context(), VolumeRef{Volume: bad.VolumeUUID})
		requireCode(t, CodeDamaged, err)
		var refusal *Error
		require.ErrorAs(t, err, &refusal)
		require.True(t, refusal.Final())
		extend(t, m, "good", good.Granted+chunkSize, 0)
		good = volumeOf(t, m, "good")
		granted = pool(t, m).Granted
		requireSum(t, m)
		require.NoError(t, m.Close())
	}
	m = openPool(t, dir, testOptions())
	remove(t, m, bad.VolumeUUID)
	require.Equal(t, good.Granted, pool(t, m).Granted)
	require.NoError(t, m.Close())
}

// Of two volumes with one name the second is shown as damaged.
func TestNameGivenTwice(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	a, b := create(t, m, "a", 10*gib), create(t, m, "b", 10*gib)
	require.NoError(t, m.Close())
	meta, err := os.ReadFile(a.Path + extMeta)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(b.Path+extMeta, meta, 0o600))
	m = openPool(t, dir, testOptions())
	volumeOf(t, m, "a")
	damaged := volumeOf(t, m, a.VolumeUUID).Damaged + volumeOf(t, m, b.VolumeUUID).Damaged
	require.Contains(t, damaged, "unique in a pool")
	require.NoError(t, m.Close())
}

// The same on a volume group.
func TestDamagedSlot(t *testing.T) {
	g := newFakeGroup(t, 32)
	m := g.mustOpen(t)
	bad := create(t, m, "bad", 10*gib)
	create(t, m, "good", 10*gib)
	require.NoError(t, m.Close())
	_, err := g.content[lvMetadata].WriteAt(make([]byte, volumeMetaMaxSize), slotBase+slotSize)
	require.NoError(t, err)
	m = g.mustOpen(t)
	require.Contains(t, volumeOf(t, m, bad.VolumeUUID).Damaged, "slot 1 of logical volume metadata")
	require.EqualValues(t, 2*fakeExtent, pool(t, m).Granted)
	extend(t, m, "good", 2*fakeExtent, 0)
	require.Empty(t, volumeOf(t, m, create(t, m, "third", 10*gib).Name).Damaged)
	remove(t, m, bad.VolumeUUID)
	require.NoError(t, m.Close())
}
