package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/nbd"
	"tidemark/spm"
)

// A modelled pool is asked through spm.Storage, with real workers and servers.
type modelled struct {
	t            *testing.T
	p            *pool
	pool, domain uuid.UUID
	image        uuid.UUID
}

func newModelled(t *testing.T, o *poolOptions) *modelled {
	t.Helper()
	t.Setenv(asMain, "1") // of the processes that the manager starts
	p, err := openPool(o, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	m := &modelled{t: t, p: p, image: uuid.New()}
	pools, err := p.Pools(t.Context())
	require.NoError(t, err)
	m.pool = pools[0]
	info, err := p.PoolInfo(t.Context(), m.pool)
	require.NoError(t, err)
	m.domain = info.Master
	t.Cleanup(func() {
		require.NoError(t, p.TeardownImage(context.Background(), m.at(uuid.Nil)))
		require.NoError(t, p.Close())
	})
	return m
}

func (m *modelled) at(volume uuid.UUID) spm.VolumeAt {
	return spm.VolumeAt{Pool: m.pool, Domain: m.domain, Image: m.image, Volume: volume}
}

// done waits for a task, which must succeed.
func (m *modelled) done(id uuid.UUID, err error) {
	m.t.Helper()
	require.NoError(m.t, err)
	testenv.Eventually(m.t, serveLimit, "the task ends", func() bool {
		s, err := m.p.TaskStatus(m.t.Context(), id)
		require.NoError(m.t, err)
		if s.State == "finished" {
			require.True(m.t, s.Success, "%+v", s)
		}
		return s.State == "finished"
	})
}

func (m *modelled) create(size int64, format string, parent uuid.UUID) uuid.UUID {
	m.t.Helper()
	id := uuid.New()
	v := spm.NewVolume{VolumeAt: m.at(id), Size: size, Format: format, Alloc: spm.Sparse, Type: spm.Leaf, Parent: parent}
	if format == spm.Raw {
		v.Alloc = spm.Preallocated
	}
	if parent != uuid.Nil {
		v.ParentImage = m.image
	}
	m.done(m.p.CreateImageVolume(m.t.Context(), v))
	return id
}

func (m *modelled) prepare() *nbd.Client {
	m.t.Helper()
	p, err := m.p.PrepareImage(m.t.Context(), m.at(uuid.Nil), spm.PrepareOptions{})
	require.NoError(m.t, err)
	return dialNBD(m.t, p.Socket, "")
}

func (m *modelled) merge(ancestor, successor uuid.UUID) {
	m.t.Helper()
	m.done(m.p.MergeVolumes(m.t.Context(), spm.MergeVolumes{Pool: m.pool, Domain: m.domain, Image: m.image, Ancestor: ancestor, Successor: successor}))
}

// groupOfLoops is a volume group that is to be made.
func groupOfLoops(t *testing.T) *poolOptions {
	t.Helper()
	testenv.Tool(t, "lvm")
	name := fmt.Sprintf("tidemarkmodel%d", os.Getpid())
	t.Cleanup(func() { _ = os.Remove(filepath.Join("/run/lock/lvm", "V_"+name)) })
	return &poolOptions{
		group:  groupOptions{name: name, devices: []string{testenv.Loop(t, 4<<30).Path}, create: true, noDM: true},
		socket: filepath.Join(shortPath(t), "s"),
	}
}

// The life of an image with the manager, workers and servers as they are: snapshots
// and merges, live and cold, and a copy; and nothing is left of it.
func TestModelWithRealTools(t *testing.T) {
	for _, format := range []string{spm.Cow, spm.Raw, spm.Cow + " on a group", spm.Raw + " on a group"} {
		t.Run(format, func(t *testing.T) {
			format, onGroup := strings.CutSuffix(format, " on a group")
			o := &poolOptions{dir: shortPath(t), capacity: 4 << 30}
			if onGroup {
				o = groupOfLoops(t)
			}
			m := newModelled(t, o)
			const size = 16 << 20
			want := make([]byte, size)
			base := m.create(size, format, uuid.Nil)
			c := m.prepare()
			write := func(c *nbd.Client, b byte, off, n int) {
				t.Helper()
				require.NoError(t, c.WriteAt(t.Context(), bytes.Repeat([]byte{b}, n), int64(off), 0))
				fillBytes(want, b, off, n)
			}
			requireContent := func(c *nbd.Client) {
				t.Helper()
				got := make([]byte, size)
				require.NoError(t, c.ReadAt(t.Context(), got, 0, 0))
				require.True(t, bytes.Equal(want, got))
			}
			write(c, 1, 0, 1<<20)
			one := m.create(0, spm.Cow, base) // live
			write(c, 2, 512<<10, 1<<20)
			m.merge(base, one) // live
			write(c, 3, 700<<10, 100<<10)
			requireContent(c)
			require.NoError(t, c.Close())
			require.NoError(t, m.p.TeardownImage(t.Context(), m.at(uuid.Nil)))

			two := m.create(0, spm.Cow, base)
			three := m.create(0, spm.Cow, two)
			c = m.prepare()
			write(c, 4, 2<<20, 3<<20)
			requireContent(c)
			require.NoError(t, c.Close())
			require.NoError(t, m.p.TeardownImage(t.Context(), m.at(uuid.Nil)))
			r, err := m.p.MeasureVolume(t.Context(), m.at(three), spm.Cow)
			require.NoError(t, err)
			require.Positive(t, r.Required)
			m.merge(two, three)
			m.merge(base, two)
			all, err := m.p.VolumesOf(t.Context(), m.domain, m.image)
			require.NoError(t, err)
			require.Len(t, all, 1)
			require.Equal(t, spm.Leaf, all[0].Type)
			c = m.prepare()
			requireContent(c)
			require.NoError(t, c.Close())
			require.NoError(t, m.p.TeardownImage(t.Context(), m.at(uuid.Nil)))

			copied := *m
			copied.image = uuid.New()
			m.done(m.p.CopyImage(t.Context(), spm.CopyImage{From: m.at(base), To: copied.at(uuid.New()), Format: spm.Cow, Alloc: spm.Sparse, Type: spm.Leaf}))
			c = copied.prepare()
			requireContent(c)
			require.NoError(t, c.Close())
			require.NoError(t, m.p.TeardownImage(t.Context(), copied.at(uuid.Nil)))
		})
	}
}
