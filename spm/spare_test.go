package spm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
)

// A spare gives way until what is written has space, and takes it back.
func TestSpare(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "spare")
	s := &spare{tree: hostfile.Tree(dir), sync: func(*os.File) error { return nil }}
	s.at(path)
	s.refill()
	size := func() int64 { return lengthOf(path, -1) }
	require.EqualValues(t, spareSize, size())

	var sizes []int64
	full := func(until int64, err error) error {
		sizes = nil
		return s.write(func() error {
			sizes = append(sizes, size())
			if size() > until {
				return err
			}
			return nil
		})
	}
	require.NoError(t, full(spareSize-2*sparePiece, syscall.ENOSPC))
	require.Equal(t, []int64{spareSize, spareSize - sparePiece, spareSize - 2*sparePiece}, sizes)
	require.EqualValues(t, spareSize, size(), "it has it back")

	require.ErrorIs(t, full(-1, syscall.ENOSPC), syscall.ENOSPC)
	require.Len(t, sizes, 1+spareSize/sparePiece)
	require.Zero(t, size())
	require.NoError(t, full(spareSize, nil))
	require.EqualValues(t, spareSize, size())

	failed := errors.New("failed")
	require.ErrorIs(t, full(-1, failed), failed)
	require.Len(t, sizes, 1)
}

// On a file system that others have filled, what an administrator does about that works:
// tasks are written down, and so are the metadata that they change.
func TestRemoveOnFullFileSystem(t *testing.T) {
	root := t.TempDir()
	var full atomic.Pointer[string] // the spare without which there is no space; nil: there is
	var refused atomic.Int64
	h, pool, domains := managed(t, root, func(o *HostOptions) {
		o.Servers = &fakeServers{byKey: map[string]*Server{}}
		o.sync = func(f *os.File) error {
			spare := full.Load()
			info, err := f.Stat()
			if err != nil || spare == nil || info.IsDir() || strings.HasSuffix(f.Name(), fileSpare) || lengthOf(*spare, 0) < spareSize {
				return err
			}
			refused.Add(1)
			return syscall.ENOSPC
		}
	})
	v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib})
	require.NoError(t, err)
	at := VolumeAt{Pool: pool, Domain: domains[0], Image: uuid.MustParse(v.ImageUUID), Volume: uuid.MustParse(v.VolumeUUID)}
	path := domainDir(filepath.Join(root, "a", domains[0].String())).spare()
	full.Store(&path)
	require.NoError(t, h.SetPriority(t.Context(), at, 5))
	id, err := h.DeleteImage(t.Context(), DeleteImage{Pool: pool, Domain: at.Domain, Image: at.Image})
	require.NoError(t, err)
	waitTask(t, h, id)
	require.NoError(t, h.StopSPM(t.Context(), pool))
	require.Greater(t, refused.Load(), int64(2), "the test has filled nothing")
}

// What the host's file system cannot carry is not free, and a domain is critical there.
func TestStatsOfAFullFileSystem(t *testing.T) {
	o := testOptions()
	o.WarnAt, o.CriticalAt = 0.85, 0.95
	var free atomic.Int64
	free.Store(1 << 50)
	o.HostFree = func(string) (int64, error) { return free.Load(), nil }
	m := openPool(t, t.TempDir(), o)
	create(t, m, "a", gib)
	require.EqualValues(t, 2*gib-128*mib, m.stats().Free)
	require.Equal(t, LevelOK, m.stats().Level)
	free.Store(128*mib + 512*mib)
	s := m.stats()
	require.InDelta(t, 512*mib, s.Free, 64<<10, "but for what the volume has allocated")
	require.Equal(t, LevelOK, s.Level)
	free.Store(0)
	s = m.stats()
	require.Zero(t, s.Free)
	require.Equal(t, LevelCritical, s.Level)
}
