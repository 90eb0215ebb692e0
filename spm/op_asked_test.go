package spm

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// Of servers that hang it is not known whether they serve; they are asked side by side, for
// a while, and who asks is told of all the others. What needs the answer is refused.
func TestServersThatHang(t *testing.T) {
	root := t.TempDir()
	// In a bubble nobody's patience ends while somebody is still on his way to ask.
	synctest.Test(t, func(t *testing.T) { serversThatHang(t, root) })
}

func serversThatHang(t *testing.T, root string) {
	servers := &fakeServers{byKey: map[string]*Server{}}
	h, pool, domains := managed(t, root, func(o *HostOptions) {
		o.Servers, o.ServerPatience = servers, 50*time.Millisecond
	})
	var all []VolumeAt
	for n := range 5 {
		v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: string(rune('a' + n)), Size: gib})
		require.NoError(t, err)
		at := VolumeAt{Pool: pool, Domain: domains[0], Image: uuid.MustParse(v.ImageUUID), Volume: uuid.MustParse(v.VolumeUUID)}
		all = append(all, at)
		if n < 4 {
			_, err = h.PrepareImage(t.Context(), at, PrepareOptions{})
			require.NoError(t, err)
		}
	}
	synctest.Wait() // the host asks, too, who serves what, since it has become the SPM
	hung, mute := map[uuid.UUID]bool{}, map[string]bool{}
	for _, at := range all[:3] {
		hung[at.Volume], mute[at.Image.String()] = true, true
	}
	servers.hush(mute)
	list, err := h.VolumesOf(t.Context(), domains[0], uuid.Nil)
	require.NoError(t, err)
	require.Len(t, list, 5)
	for _, i := range list {
		require.Equal(t, hung[i.Volume], i.ServedUnknown != "")
		require.Equal(t, i.Volume != all[4].Volume, i.Served)
	}
	require.Equal(t, 3, servers.most, "side by side")

	i, err := h.VolumeInfo(t.Context(), all[0])
	require.NoError(t, err)
	require.Contains(t, i.ServedUnknown, "does not answer within 50ms")
	for _, err := range []error{
		second(h.PrepareImage(t.Context(), all[0], PrepareOptions{})),
		h.TeardownImage(t.Context(), all[0]),
		second(h.DeleteImage(t.Context(), DeleteImage{Pool: pool, Domain: domains[0], Image: all[0].Image})),
	} {
		requireCode(t, CodeInternal, err)
		require.ErrorContains(t, err, "does not answer within 50ms: ask again")
	}
	servers.hush(nil)
	i, err = h.VolumeInfo(t.Context(), all[0])
	require.NoError(t, err)
	require.True(t, i.Served)
	require.Empty(t, i.ServedUnknown)
}
