//go:build linux

package main_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
)

// The leaf of an image is damaged, and so is a volume on a template. Nobody is served what
// is below, for writing, nor gives it a child, nor merges, extends, deletes or moves it; and
// when they are mended all shows what it did.
func TestVDSMTornLeaf(t *testing.T) {
	testenv.Tool(t, "qemu-io")
	t.Run("directory", func(t *testing.T) {
		h := newVDSMHost(t)
		w := newWorld(t, h, h.newDir("domain"), h.newDir("other"))
		requireNothingBelowTorn(t, w, map[string]func(id string) (mend func()){
			"torn":        tear(t, w.slotInDir),
			"no metadata": func(id string) func() { return takeAway(t, w.slotInDir(id).path) },
			"no file":     func(id string) func() { return takeAway(t, strings.TrimSuffix(w.slotInDir(id).path, ".meta")) },
		})
	})
	t.Run("group", func(t *testing.T) {
		g := newGroup(t, 1, 3*gib)
		h := newVDSMHost(t, g.paths()...)
		w := newWorld(t, h, g, h.newDir("other"))
		requireNothingBelowTorn(t, w, map[string]func(id string) (mend func()){"torn": tear(t, g.slotOf(t))})
	})
}

// tear makes the metadata of a volume unreadable.
func tear(t *testing.T, of func(id string) metaSlot) func(id string) (mend func()) {
	return func(id string) func() {
		slot := of(id)
		whole := slot.read(t)
		torn := slices.Clone(whole)
		clear(torn)
		slot.write(t, torn)
		return func() { slot.write(t, whole) }
	}
}

func takeAway(t *testing.T, path string) (bringBack func()) {
	aside := filepath.Join(t.TempDir(), "aside")
	testenv.Run(t, "cp", "-a", "--sparse=always", path, aside)
	require.NoError(t, os.Remove(path))
	return func() { testenv.Run(t, "cp", "-a", "--sparse=always", aside, path) }
}

func requireNothingBelowTorn(t *testing.T, w *world, spoil map[string]func(id string) (mend func())) {
	w.template()
	threeVolumes(w)
	w.volume("j", "d", "t", "  d", arguments{"srcImgUUID": w.id("template")})
	before := w.shows()
	for what, damage := range spoil {
		mend := []func(){damage(w.id("c")), damage(w.id("d"))}
		w.proc.Kill()
		w.start()
		for _, v := range w.volumes(w.domains[0]) {
			name := w.names[v.ID]
			require.Equal(t, name == "c" || name == "d", v.Damaged != "", "%s, %s: %s", what, name, v.Damaged)
		}
		below := w.image("i")
		below["volumes"] = []string{w.id("b")}
		template := w.move()
		template["imgUUID"] = w.id("template")
		for _, r := range []struct {
			verb string
			of   arguments
		}{
			{"prepareImage", w.at(w.domains[0], w.id("i"), "")},
			{"prepareImage", w.at(w.domains[0], w.id("i"), w.id("b"))},
			{"createVolume", w.create("i", "f", "b", nil)},
			{"mergeSnapshots", w.merge("a", "b")},
			{"extendVolumeSize", w.extendOf("i", "b")},
			{"deleteVolume", below},
			{"moveImage", w.move()},
			{"moveImage", template},
			{"deleteImage", w.image("template")},
		} {
			err := w.ask(r.verb, r.of, nil)
			require.Equal(t, spm.CodeDamaged, spm.CodeOf(err), "%s: %s %v: %v", what, r.verb, r.of, err)
			require.Regexp(t, w.id("c")+"|"+w.id("d"), err.Error())
		}
		for _, m := range mend {
			m()
		}
		w.proc.Kill()
		w.start()
		require.Equal(t, before, w.shows(), what)
		w.consistent()
	}
	all := spoil["torn"]
	all(w.id("d"))
	w.proc.Kill()
	w.start()
	for _, name := range []string{"template", "j"} {
		a := w.image(name)
		a["force"] = true
		w.run("deleteImage", a)
	}
	w.consistent()
}
