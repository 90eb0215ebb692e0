package spm

import (
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
)

// TestRestartedManagerRemovesNoServedVolume (design review 3.1, 4.7): sessions die with
// the manager, and the data server goes on. A manager that starts with an empty list
// must find the volume held and leave it alone.
func TestRestartedManagerRemovesNoServedVolume(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	v := create(t, m, "web1", gib)
	served, err := hostfile.Open(v.Path, hostfile.Options{Fixed: true})
	require.NoError(t, err)
	kill(t, m)
	m = openPool(t, dir, testOptions())
	_, err = m.RemoveVolume(t.Context(), VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: "web1"}})
	requireCode(t, CodeInUse, err)
	require.ErrorIs(t, err, block.ErrInUse)
	require.FileExists(t, v.Path)
	_, err = served.WriteAt([]byte("still mine"), 0)
	require.NoError(t, err)
	require.NoError(t, served.Close())
	remove(t, m, "web1")
}
