package spm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// addBase puts a second volume into v's image, below it, as VDSM does for a
// snapshot.
func addBase(t *testing.T, v Volume) (id string) {
	t.Helper()
	id = uuid.NewString()
	path := filepath.Join(filepath.Dir(v.Path), id)
	require.NoError(t, os.WriteFile(path, make([]byte, mib), 0o600))
	meta, err := os.ReadFile(v.Path + extMeta)
	require.NoError(t, err)
	text := strings.Replace(string(meta), "VOLTYPE=LEAF", "VOLTYPE=INTERNAL", 1)
	require.NoError(t, os.WriteFile(path+extMeta, []byte(text), 0o600))
	text = strings.Replace(string(meta), "PUUID="+uuid.Nil.String(), "PUUID="+id, 1)
	require.NoError(t, os.WriteFile(v.Path+extMeta, []byte(text), 0o600))
	return id
}

// A chain that somebody else has made: its image's name and UUID mean the leaf,
// all of it counts, and it is removed as a whole.
func TestChain(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	leaf := create(t, m, "web1", gib)
	kill(t, m)
	base := addBase(t, leaf)
	m = openPool(t, dir, testOptions())
	require.EqualValues(t, chunkSize+mib, pool(t, m).Granted)
	for name, want := range map[string]string{"web1": leaf.VolumeUUID, leaf.ImageUUID: leaf.VolumeUUID, base: base} {
		r, err := m.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: name}})
		require.NoError(t, err)
		require.Equal(t, want, r.VolumeUUID, name)
	}
	requireSum(t, m)
	remove(t, m, "web1")
	require.NoDirExists(t, filepath.Dir(leaf.Path))
	require.Zero(t, pool(t, m).Granted)
}

// An image without an alias has its UUID for a name.
func TestImageWithoutAlias(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	v := create(t, m, "web1", gib)
	kill(t, m)
	meta, err := os.ReadFile(v.Path + extMeta)
	require.NoError(t, err)
	text := strings.Replace(string(meta), `"DiskAlias":"web1"`, `"DiskAlias":""`, 1)
	require.NoError(t, os.WriteFile(v.Path+extMeta, []byte(text), 0o600))
	m = openPool(t, dir, testOptions())
	r, err := m.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: v.ImageUUID}})
	require.NoError(t, err)
	require.Equal(t, v.ImageUUID, r.Name)
	require.Equal(t, v.VolumeUUID, r.VolumeUUID)
}

// A volume that is larger than this manager's bound, which another version may
// have computed, keeps its size and stays usable.
func TestVolumeBeyondItsBound(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	v := create(t, m, "web1", gib)
	kill(t, m)
	require.NoError(t, os.Truncate(v.Path, v.Bound+mib))
	m = openPool(t, dir, testOptions())
	r, err := m.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: "web1"}})
	require.NoError(t, err)
	require.Equal(t, v.Bound+mib, r.Bound, "what is granted never exceeds it")
	require.EqualValues(t, v.Bound+mib, extend(t, m, "web1", v.Bound+mib, 0))
	_, err = m.ExtendVolume(t.Context(), extendRequest("web1", v.Bound+mib+1, 0))
	requireCode(t, CodeBound, err)
	requireSum(t, m)
}
