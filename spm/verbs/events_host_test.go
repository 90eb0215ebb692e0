package verbs_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/spm"
)

// emptyImages makes images with nothing in them, which need a tenth more than their
// size at most.
type emptyImages struct{}

func (emptyImages) Create(context.Context, block.File, spm.CreateImage) error { return nil }
func (emptyImages) Backing(block.File) (string, error)                        { return "", nil }
func (emptyImages) WriterDied(block.File) (bool, error)                       { return false, nil }
func (emptyImages) Bound(o spm.CreateImage) int64                             { return o.Size + o.Size/10 }

// Every kind of event, by the name that the reference has for it, happens in a real
// pool, and arrives at who asks for that kind alone.
func TestEventsOfAHost(t *testing.T) {
	const mib = 1 << 20
	h, err := spm.OpenDir(t.TempDir(), spm.HostOptions{Options: spm.Options{
		Capacity: 1024 * mib, Reserve: -1, Images: emptyImages{}, Grace: time.Millisecond,
		HostFree: func(string) (int64, error) { return 1 << 40, nil },
	}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.Close()) })
	e := serve(t, h)
	ctx := t.Context()
	extend := func(to, wait int64) error {
		_, err := h.ExtendVolume(ctx, spm.VolumeExtendRequest{VolumeRef: spm.VolumeRef{Volume: "a"}, Need: to * mib, WaitMS: wait})
		return err
	}
	_, err = h.CreateVolume(ctx, spm.VolumeCreateRequest{Name: "a", Size: 4096 * mib})
	require.NoError(t, err)
	require.NoError(t, extend(900, 0))
	require.NoError(t, extend(1000, 0))
	require.ErrorIs(t, extend(1100, 0), block.ErrNoSpace)
	require.ErrorIs(t, extend(1100, 1), block.ErrNoSpace)
	domains, err := h.Domains(ctx, uuid.Nil)
	require.NoError(t, err)
	for domain := range domains {
		_, err = h.DeleteImage(ctx, spm.DeleteImage{Domain: domain, Image: imageOf(t, h, "a")})
		require.NoError(t, err)
	}
	for kind, holds := range map[string]func(spm.Event) bool{
		spm.EventTask:        func(e spm.Event) bool { return e.TaskUUID != "" && e.State != "" },
		spm.EventExtended:    func(e spm.Event) bool { return e.Bytes == 772*mib && e.Name == "a" },
		spm.EventLevel:       func(e spm.Event) bool { return e.Level == spm.LevelWarn && e.DomainUUID != "" && e.Bytes == 124*mib },
		spm.EventNoSpace:     func(e spm.Event) bool { return e.Bytes == 100*mib && e.Name == "a" },
		spm.EventWaits:       func(e spm.Event) bool { return e.Bytes == 100*mib },
		spm.EventWaitsNoMore: func(e spm.Event) bool { return !e.Granted },
		spm.EventTight:       func(e spm.Event) bool { return e.Bytes == 24*mib },
		spm.EventTightNoMore: func(e spm.Event) bool { return e.Bytes == 1024*mib },
	} {
		stream, end := e.watch(t, "?kinds="+kind, "")
		fields, got := event(t, stream)
		require.Equal(t, kind, fields["event"])
		require.True(t, holds(got), "%+v", got)
		end()
	}
}

// imageOf is the UUID of an image, by its name.
func imageOf(t *testing.T, h *spm.Host, name string) uuid.UUID {
	r, err := h.GetVolumeInfo(t.Context(), spm.VolumeInfoRequest{VolumeRef: spm.VolumeRef{Volume: name}})
	require.NoError(t, err)
	return uuid.MustParse(r.ImageUUID)
}
