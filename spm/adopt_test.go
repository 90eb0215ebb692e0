package spm

import (
	"testing"
	"testing/synctest"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// Who serves an image of a domain that this host manages is told so when the host becomes
// the SPM, and whenever it is found to ask another manager.
func TestServersOfAnotherManager(t *testing.T) {
	root := t.TempDir()
	// In a bubble it can be waited until the host, which asks in the background, has asked.
	synctest.Test(t, func(t *testing.T) { serversOfAnotherManager(t, root) })
}

func serversOfAnotherManager(t *testing.T, root string) {
	servers := &fakeServers{byKey: map[string]*Server{}}
	h, pool, domains := managed(t, root, func(o *HostOptions) { o.Servers = servers })
	v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib})
	require.NoError(t, err)
	at := VolumeAt{Pool: pool, Domain: domains[0], Image: uuid.MustParse(v.ImageUUID)}
	_, err = h.PrepareImage(t.Context(), at, PrepareOptions{})
	require.NoError(t, err)
	set := func(domain uuid.UUID) {
		servers.mu.Lock()
		defer servers.mu.Unlock()
		s := servers.byKey[v.ImageUUID]
		s.Domain, s.Foreign = domain.String(), true
	}
	foreign := func() bool {
		s, err := servers.Find(t.Context(), v.ImageUUID)
		require.NoError(t, err)
		return s.Foreign
	}

	set(domains[0])
	_, err = h.PrepareImage(t.Context(), at, PrepareOptions{})
	require.NoError(t, err)
	require.False(t, foreign())

	require.NoError(t, h.StopSPM(t.Context(), pool))
	set(domains[0])
	startSPM(t, h, pool)
	synctest.Wait()
	require.False(t, foreign())

	set(uuid.New())
	i, err := h.VolumesOf(t.Context(), domains[0], at.Image)
	require.NoError(t, err)
	require.False(t, i[0].Served)
	require.True(t, foreign(), "it serves a copy in a domain that is not ours")
}
