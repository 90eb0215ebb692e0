package spm

import (
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// copied is a host that has an image of the same volume in its first two domains.
func copied(t *testing.T, change ...func(*HostOptions)) (h *Host, first, other VolumeAt) {
	h, pool, domains := managed(t, t.TempDir(), change...)
	first = VolumeAt{Pool: pool, Domain: domains[0], Image: uuid.New(), Volume: uuid.New()}
	other = first
	other.Domain = domains[1]
	for _, at := range []VolumeAt{first, other} {
		id, err := h.CreateImageVolume(t.Context(), NewVolume{VolumeAt: at, Size: gib, Format: Raw, Alloc: Sparse, Type: Leaf, Initial: 128 * mib})
		require.NoError(t, err)
		waitTask(t, h, id)
	}
	return h, first, other
}

// Who has a volume open goes on when a copy of it comes to another domain, and each copy
// is found by its domain. Only who names none is told that there are two.
func TestCopiesOfAVolume(t *testing.T) {
	h, pool, domains := managed(t, t.TempDir())
	v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: 4 * gib})
	require.NoError(t, err)
	open, err := h.Volume(t.Context(), VolumeRef{Volume: "web1"})
	require.NoError(t, err)
	at := VolumeAt{Pool: pool, Domain: domains[1], Image: uuid.New(), Volume: uuid.MustParse(v.VolumeUUID)}
	id, err := h.CreateImageVolume(t.Context(), NewVolume{VolumeAt: at, Size: 4 * gib, Format: Cow, Alloc: Sparse, Type: Leaf})
	require.NoError(t, err)
	waitTask(t, h, id)

	size, err := open.Extend(t.Context(), 200*mib, 0)
	require.NoError(t, err)
	require.EqualValues(t, 200*mib, size)
	_, err = open.Look(t.Context())
	require.NoError(t, err)
	_, err = h.Volume(t.Context(), VolumeRef{Volume: v.VolumeUUID})
	requireCode(t, CodeInvalid, err)
	require.ErrorContains(t, err, "name the domain as well")

	other, err := h.Volume(t.Context(), VolumeRef{Volume: v.VolumeUUID, DomainUUID: domains[1].String()})
	require.NoError(t, err)
	require.Equal(t, domains[1].String(), other.Info().DomainUUID)
	size, err = other.Extend(t.Context(), 300*mib, 0)
	require.NoError(t, err)
	require.EqualValues(t, 300*mib, size)
	require.EqualValues(t, 200*mib, h.active(domains[0]).info(at.Volume).Granted)

	for domain, code := range map[string]Code{uuid.NewString(): CodeUnknownDomain, domains[2].String(): CodeNotFound, "second": CodeInvalid} {
		_, err = h.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: v.VolumeUUID, DomainUUID: domain}})
		requireCode(t, code, err)
	}
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, domains[1], uuid.Nil, 0))
	_, err = other.Look(t.Context())
	requireCode(t, CodeNotActive, err)
}

// What is served of one domain is not served of another, and in nobody's way there.
func TestCopyOfAServedImage(t *testing.T) {
	servers := &fakeServers{byKey: map[string]*Server{}}
	h, first, other := copied(t, func(o *HostOptions) { o.Servers = servers })
	_, err := h.PrepareImage(t.Context(), first, PrepareOptions{})
	require.NoError(t, err)
	for at, served := range map[VolumeAt]bool{first: true, other: false} {
		i, err := h.VolumeInfo(t.Context(), at)
		require.NoError(t, err)
		require.Equal(t, served, i.Served)
		all, err := h.VolumesOf(t.Context(), at.Domain, at.Image)
		require.NoError(t, err)
		require.Equal(t, served, all[0].Served)
	}
	requireCode(t, CodeInUse, second(h.PrepareImage(t.Context(), other, PrepareOptions{})))
	require.NoError(t, h.TeardownImage(t.Context(), other))
	_, err = servers.Find(t.Context(), first.Image.String())
	require.NoError(t, err, "it was not what is served")
	id, err := h.DeleteImage(t.Context(), DeleteImage{Pool: other.Pool, Domain: other.Domain, Image: other.Image})
	require.NoError(t, err)
	waitTask(t, h, id)
	require.NoError(t, h.TeardownImage(t.Context(), first))
}
