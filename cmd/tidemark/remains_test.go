package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm"
)

// dyingServers are those of a manager that dies when a volume has gone and before what was
// left of it is removed.
type dyingServers struct{ *imageServers }

func (d dyingServers) OfVolume(domain uuid.UUID, at spm.Place) (remove func()) {
	d.imageServers.OfVolume(domain, at)
	return func() {}
}

// The ring of a volume that went when its manager died is removed by the next one; those
// of a volume of the same domain that is there, of another pool's, and of an image of no
// pool stay, also where they have come into the place of the one that goes.
func TestRingsOfVolumesThatWentWithTheirManager(t *testing.T) {
	ring := func(path string) string {
		id := storageIDs(spm.Place{Path: path, Beneath: filepath.Dir(path)})
		require.Len(t, id, 1, path)
		return redoDirOf(redoDir(), id[0])
	}
	killed := func(p *chainPool, name string) (dir string) {
		proc, socket := startNBD(t, "-t", "--spm", p.socket, p.id(name))
		require.NoError(t, dialNBD(t, socket, "").WriteAt(t.Context(), bytes.Repeat([]byte{9}, 512), 0, 0))
		proc.Kill()
		require.Error(t, proc.Wait(t, serveLimit))
		dir = ring(p.volumes[name].Path)
		require.Len(t, filesIn(dir), 1)
		return dir
	}
	p := newChainPool(t, chainSpec{name: "goes", size: 1 << 20}, chainSpec{name: "stays", size: 1 << 20})
	other := newChainPool(t, chainSpec{name: "other", size: 1 << 20})
	image := newImage(t, "1M")
	proc, socket := startNBD(t, "-t", image)
	require.NoError(t, dialNBD(t, socket, "").WriteAt(t.Context(), bytes.Repeat([]byte{9}, 512), 0, 0))
	proc.Kill()
	require.Error(t, proc.Wait(t, serveLimit))
	goes, stays, others, plain := killed(p, "goes"), killed(p, "stays"), killed(other, "other"), ring(image)
	require.Len(t, filesIn(plain), 1)

	socketOf := p.socket
	require.NoError(t, p.Close())
	log := slog.New(slog.DiscardHandler)
	servers := &imageServers{spm: socketOf, dir: shortPath(t), log: log}
	open := func(r spm.Remains) *spm.Host {
		h, err := spm.OpenDir(p.dir, spm.HostOptions{Options: spm.Options{Images: images{}, Remains: r, Log: log}, Jobs: testJobs(), Servers: servers})
		require.NoError(t, err)
		return h
	}
	h := open(dyingServers{servers})
	_, err := h.RemoveVolume(t.Context(), spm.VolumeRemoveRequest{VolumeRef: spm.VolumeRef{Volume: "goes"}})
	require.NoError(t, err)
	require.NoError(t, h.Close())
	require.NoFileExists(t, p.volumes["goes"].Path)
	require.Len(t, filesIn(goes), 1, "the manager has died")
	news := filepath.Join(goes, "0123456789abcdef") // of a file that has got its inode since
	require.NoError(t, os.WriteFile(news, nil, 0o600))

	h = open(servers)
	require.NoError(t, h.Close())
	left := filesIn(goes)
	require.Len(t, left, 1)
	require.Equal(t, news, left[0].Path)
	for what, dir := range map[string]string{"of the domain": stays, "of another pool": others, "of no pool": plain} {
		require.Len(t, filesIn(dir), 1, what)
	}
	require.Empty(t, filesIn(goingDir()), "no note is left")
	p.open(t)
}
