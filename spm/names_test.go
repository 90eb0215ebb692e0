package spm

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// called is a description that names an image.
func called(name string) string { return fmt.Sprintf(`{"DiskAlias":%q}`, name) }

// No image is given a name that another image of the pool has, in whatever domain, by a
// new volume, a copy or a template. What belongs to the image itself keeps it.
func TestNamesAreUniqueInThePool(t *testing.T) {
	w := newWorld(t, 2, false)
	web := w.newVolume(uuid.New(), uuid.New())
	web.Description = called("web")
	kind, args, err := w.ops.createVolume(t.Context(), web)
	w.must(kind, args, err)

	for n, m := range w.m {
		to := VolumeAt{Domain: m.ident.domain, Image: uuid.New(), Volume: uuid.New()}
		r := web
		r.VolumeAt = to
		_, _, err = w.ops.createVolume(t.Context(), r)
		requireCode(t, CodeExists, err)
		require.ErrorContains(t, err, "has the name web already: choose another")
		for _, volType := range []string{Leaf, Shared} {
			_, _, err = w.ops.copyImage(t.Context(), CopyImage{From: web.VolumeAt, To: to, Type: volType, Description: called("web")})
			requireCode(t, CodeExists, err)
		}
		kind, args, err = w.ops.copyImage(t.Context(), CopyImage{From: web.VolumeAt, To: to, Type: Shared, Description: called(fmt.Sprint("copy", n))})
		w.must(kind, args, err)
	}

	for _, description := range []string{"", called("web")} { // a snapshot is the image's
		up := w.newVolume(web.Image, uuid.New())
		up.Parent, _ = w.leaf(w.m[0], web.Image)
		up.Description = description
		kind, args, err = w.ops.createVolume(t.Context(), up)
		w.must(kind, args, err)
	}
	up := w.newVolume(web.Image, uuid.New())
	up.Parent, _ = w.leaf(w.m[0], web.Image)
	up.Description = called("copy1")
	_, _, err = w.ops.createVolume(t.Context(), up)
	requireCode(t, CodeExists, err)
}

// Two who are given the same name at once do not both get it: the second looks when the
// first has it.
func TestNameIsTakenByWhoMakesIt(t *testing.T) {
	h, base, _, reached, goOn := storedImages(t, "copy")
	ask := CopyImage{From: base, To: base, Type: Leaf, Description: called("web")}
	ask.To.Image, ask.To.Volume = uuid.New(), uuid.New()
	first, err := h.CopyImage(t.Context(), ask)
	require.NoError(t, err)
	<-reached
	var elsewhere uuid.UUID
	for d := range h.pool.meta.members {
		if d != base.Domain {
			elsewhere = d
		}
	}
	_, err = h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web", Size: gib, DomainUUID: elsewhere.String()})
	requireCode(t, CodeExists, err)
	goOn()
	waitTask(t, h, first)
	_, err = h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web", Size: gib, DomainUUID: elsewhere.String()})
	requireCode(t, CodeExists, err)
	require.ErrorContains(t, err, "image "+ask.To.Image.String()+" in domain "+base.Domain.String()+" has that name already")

	kind, args, err := h.ops.createVolume(t.Context(), NewVolume{
		VolumeAt: VolumeAt{Pool: base.Pool, Domain: elsewhere, Image: uuid.New(), Volume: uuid.New()},
		Size:     gib, Format: Cow, Alloc: Sparse, Type: Leaf, Description: called("db"),
	})
	require.NoError(t, err)
	require.Contains(t, h.ops.planCreate(args.(createArgs)).Locks, nameLock("db"), kind)
}

// Of a name that two domains know the UUID tells which is meant, unless it is one image
// that is in both.
func TestAmbiguousName(t *testing.T) {
	h, base, leaf, _, _ := storedImages(t, "")
	var elsewhere uuid.UUID
	for d := range h.pool.meta.members {
		if d != base.Domain {
			elsewhere = d
		}
	}
	id, err := h.MoveImage(t.Context(), MoveImage{Pool: base.Pool, From: base.Domain, To: elsewhere, Image: base.Image, Copy: true})
	require.NoError(t, err)
	waitTask(t, h, id)
	_, err = h.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: leaf.Volume.String()}})
	requireCode(t, CodeInvalid, err)
	require.ErrorContains(t, err, "both have its UUID: name the domain as well")
	require.NotContains(t, err.Error(), "name it by its UUID")
}
