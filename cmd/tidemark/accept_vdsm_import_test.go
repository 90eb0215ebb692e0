//go:build linux

package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// The daemon of a pool, its state and everything that it keeps while the host is up are
// gone, and its domains lie elsewhere. Another host finds them, and serves the same.
func TestVDSMImport(t *testing.T) {
	testenv.Tool(t, "qemu-io")
	t.Run("directory", func(t *testing.T) {
		old := newVDSMHost(t)
		w := newWorld(t, old, old.newDir("a"), old.newDir("b"))
		before := fillWorld(t, w)
		runQEMUIO(t, leafFile(t, w, "i"), "qcow2", "read -P 99 0 64k", fmt.Sprintf("read -P 98 %d 64k", storyStep))
		old.lose()

		h := newVDSMHost(t)
		var moved []place
		for i, p := range w.places {
			dir := dirPlace(filepath.Join(h.root, fmt.Sprint("moved", i)))
			require.NoError(t, os.Rename(p.where(), string(dir)))
			moved = append(moved, dir)
		}
		require.NoError(t, os.RemoveAll(old.root))
		requireImported(t, h, w, before, moved...)
	})
	t.Run("group", func(t *testing.T) {
		g := newGroup(t, 1, 4*gib)
		old := newVDSMHost(t, g.paths()...)
		w := newWorld(t, old, g)
		before := fillWorld(t, w)
		old.lose()
		uuid := g.field(t, "vgs", "vg_uuid")
		require.DirExists(t, filepath.Join(testRunDir(), "vg-"+uuid))
		require.NoError(t, os.RemoveAll(filepath.Join(testRunDir(), "vg-"+uuid)))

		first := g.devices[0]
		placeholder := testenv.Loop(t, 64*mib) // takes a number, so that the device gets another one
		require.NoError(t, first.Detach())
		second := testenv.Loop(t, 64*mib)
		g.devices = []*testenv.LoopDevice{testenv.LoopOver(t, first.File)}
		require.NotEqual(t, first.Path, g.devices[0].Path, "%s %s", placeholder.Path, second.Path)
		h := newVDSMHost(t, g.paths()...)
		requireImported(t, h, w, before, g)
		g.lvm(t, "vgck", g.name)
	})
}

// lose kills the manager, and removes what it has kept for itself.
func (h *vdsmHost) lose() {
	h.t.Helper()
	h.proc.Kill()
	require.NoError(h.t, os.RemoveAll(filepath.Join(h.dir, "state")))
	require.NoError(h.t, os.RemoveAll(h.socket))
}

// fillWorld makes images of every sort, and tells what they show.
func fillWorld(t *testing.T, w *world) string {
	t.Helper()
	w.template()
	threeVolumes(w)
	w.run("createVolume", w.create("j", "d", "t", arguments{"srcImgUUID": w.id("template")}))
	w.volume("k", "e", "", "ee", arguments{"volFormat": "RAW", "preallocate": "PREALLOCATED"})
	w.run("extendVolumeSize", w.extendOf("j", "d"))
	before := w.shows()
	require.Contains(t, before, threeLeaves)
	return before
}

func (w *world) extendOf(image, volume string) arguments {
	a := w.at(w.domains[0], w.id(image), w.id(volume))
	a["newSize"] = fmt.Sprint(96 * mib)
	return a
}

// leafFile is a file that QEMU opens as the leaf of an image.
func leafFile(t *testing.T, w *world, image string) string {
	t.Helper()
	all := w.volumes(w.domains[0])
	i := slices.IndexFunc(all, func(v vdsmVolume) bool { return v.Image == w.id(image) && v.Type == "LEAF" })
	require.GreaterOrEqual(t, i, 0)
	return chainFile(t, w.places[0], all, all[i].ID)
}

// requireImported connects the places to a host that knows nothing, and requires that
// the pool is there and shows what it did; and that it can be worked with.
func requireImported(t *testing.T, h *vdsmHost, old *world, before string, places ...place) {
	t.Helper()
	require.NoError(t, h.connect(places...))
	var list struct {
		Domains []string `json:"domlist"`
	}
	require.NoError(t, h.ask("getStorageDomainsList", nil, &list))
	require.ElementsMatch(t, old.domains, list.Domains)
	var info struct {
		Info struct {
			Pool []string `json:"pool"`
			Role string   `json:"role"`
		} `json:"info"`
	}
	require.NoError(t, h.ask("getStorageDomainInfo", arguments{"sdUUID": old.domains[0]}, &info))
	require.Equal(t, "Master", info.Info.Role)
	require.Equal(t, []string{old.pool}, info.Info.Pool)
	h.pool = old.pool
	h.manage(old.domains[0])
	w := *old
	w.vdsmHost, w.places = h, places
	require.Equal(t, before, w.shows())
	w.consistent()
	uri, _ := h.prepare(w.domains[0], w.id("i"))
	runQEMUIO(t, uri, "raw", "read -P 99 0 64k", fmt.Sprintf("read -P 98 %d 64k", storyStep), fmt.Sprintf("read -P 97 %d 64k", 2*storyStep))
	w.run("createVolume", w.create("i", "f", "c", nil))
	runQEMUIO(t, uri, "raw", "write -P 102 0 64k", "flush")
	h.teardown(w.domains[0], w.id("i"))
	require.Contains(t, w.shows(), "c(INTERNAL COW SPARSE 64M: cba) f(LEAF COW SPARSE 64M)=fba")
	w.consistent()
}
