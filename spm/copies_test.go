package spm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// A domain that is in two places is used in neither until one of them is disconnected,
// and whoever asks for it is told both.
func TestDomainInTwoPlaces(t *testing.T) {
	root := t.TempDir()
	h, pool, domains := managed(t, root)
	a, copied := filepath.Join(root, "a"), filepath.Join(root, "0a")
	require.NoError(t, os.CopyFS(copied, os.DirFS(a)))
	require.NoError(t, os.Remove(filepath.Join(copied, "spm.lock")))

	err := connectError(t, h, copied)
	requireCode(t, CodeActive, err)
	require.ErrorContains(t, err, a+":")
	require.ErrorContains(t, err, copied)
	require.NoError(t, second(h.DomainInfo(t.Context(), domains[0])), "what is active goes on")

	require.NoError(t, h.StopSPM(t.Context(), pool))
	require.NoError(t, h.DisconnectPool(t.Context(), pool))
	connect(t, h, DomainLocal, copied)
	for what, err := range map[string]error{
		"info":    second(h.DomainInfo(t.Context(), domains[0])),
		"format":  h.FormatDomain(t.Context(), domains[0]),
		"create":  h.CreateDomain(t.Context(), CreateDomain{Type: DomainLocal, ID: domains[0], Name: "x", Where: copied}),
		"connect": h.ConnectPool(t.Context(), pool, uuid.Nil, 0),
		"detach":  h.DetachDomain(t.Context(), pool, domains[1]), // nobody's, if its master were in no place
		"pool":    h.CreatePool(t.Context(), CreatePool{ID: pool, Name: "x", Master: domains[1], Domains: domains[1:2], MasterVersion: 1}),
	} {
		require.Error(t, err, what)
		if what == "info" || what == "format" || what == "connect" {
			require.ErrorContains(t, err, a+", "+copied, what)
		}
	}
	requireCode(t, CodeForeign, second(h.DomainInfo(t.Context(), domains[0])))
	all, err := h.Domains(t.Context(), uuid.Nil)
	require.NoError(t, err)
	require.NotContains(t, all, domains[0])
	require.Contains(t, all, domains[1])

	disconnect(t, h, a)
	info, err := h.DomainInfo(t.Context(), domains[0])
	require.NoError(t, err)
	require.Equal(t, copied, info.Where)
	require.NoError(t, h.ConnectPool(t.Context(), pool, domains[0], 1))
	startSPM(t, h, pool)
	requireCode(t, CodeActive, connectError(t, h, a))
}

// A copy that appears beside a domain that is active does not stop that, and is not used.
func TestCopyOfAnActiveDomain(t *testing.T) {
	root := t.TempDir()
	h, pool, domains := managed(t, root)
	copied := makeDir(t, h, root, "0b")
	require.NoError(t, os.CopyFS(filepath.Join(copied, domains[1].String()), os.DirFS(filepath.Join(root, "b", domains[1].String()))))
	v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib, DomainUUID: domains[1].String()})
	require.NoError(t, err)
	require.Contains(t, v.Path, filepath.Join(root, "b")+"/")
	err = h.DeactivateDomain(t.Context(), pool, domains[1], uuid.Nil, 0)
	requireCode(t, CodeForeign, err)
	require.ErrorContains(t, err, copied)
	disconnect(t, h, copied)
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, domains[1], uuid.Nil, 0))
}
