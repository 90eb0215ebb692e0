//go:build linux

package main_test

import (
	"crypto/sha1" //nolint:gosec // VDSM's seal
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
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
	require.Contains(t, w.shows(), "c(INTERNAL COW SPARSE 64M) f(LEAF COW SPARSE 64M)=fba")
	w.consistent()
}

// sealed seals the lines of a domain's metadata, as VDSM does.
func sealed(lines []string) []string {
	lines = slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return l == "" || strings.HasPrefix(l, "_SHA_CKSUM=") })
	slices.Sort(lines)
	h := sha1.New() //nolint:gosec // VDSM's seal
	for _, l := range lines {
		h.Write([]byte(l))
	}
	return append(lines, "_SHA_CKSUM="+fmt.Sprintf("%x", h.Sum(nil)))
}

// A spoiling makes a domain one that nobody can use.
type spoiling struct {
	name   string
	change func(lines []string) []string // of its metadata
	code   spm.Code
	says   string
}

func set(key, value string, seal bool) func([]string) []string {
	return func(lines []string) []string {
		for i, l := range lines {
			if strings.HasPrefix(l, key+"=") {
				lines[i] = key + "=" + value
			}
		}
		if seal {
			return sealed(lines)
		}
		return lines
	}
}

var spoilings = []spoiling{
	{"torn metadata", set("DESCRIPTION", "torn", false), spm.CodeDamaged, "damaged"},
	{"newer version", set("VERSION", "6", true), spm.CodeNewerVersion, "newer"},
	{"older version", set("VERSION", "4", true), spm.CodeUnsupported, "version 4"},
	{"another type", set("TYPE", "NFS", true), spm.CodeForeign, "NFS"},
	{"another class", set("CLASS", "Iso", true), spm.CodeForeign, "Iso"},
}

// A domain that is not whole, of another version or another's is not touched, and why
// is told.
func TestVDSMForeignDomain(t *testing.T) {
	h := newVDSMHost(t)
	w := newWorld(t, h, h.newDir("domain"))
	w.volume("i", "a", "", "aa", nil)
	h.proc.Kill()
	metadata := filepath.Join(w.places[0].where(), w.domains[0], "dom_md", "metadata")
	text, err := os.ReadFile(metadata)
	require.NoError(t, err)
	for _, s := range spoilings {
		t.Run(s.name, func(t *testing.T) {
			lines := s.change(strings.Split(strings.TrimRight(string(text), "\n"), "\n"))
			require.NoError(t, os.WriteFile(metadata, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
			before := treeOf(t, w.places[0].where())
			h.t = t
			requireUntouched(t, h, w, s)
			require.Equal(t, before, treeOf(t, w.places[0].where()))
		})
	}
	require.NoError(t, os.WriteFile(metadata, text, 0o600))
	h.t = t
	h.start() // with its state: it is what it was
	require.Equal(t, "0/i: a(LEAF COW SPARSE 64M)=aa", w.shows())
}

// requireUntouched starts the manager, with what it remembers and without, and asks for
// what must be refused.
func requireUntouched(t *testing.T, h *vdsmHost, w *world, s spoiling) {
	t.Helper()
	state := filepath.Join(h.dir, "state")
	require.NoError(t, os.RemoveAll(state+".kept"))
	require.NoError(t, os.Rename(state, state+".kept"))
	defer func() {
		require.NoError(t, os.RemoveAll(state))
		require.NoError(t, os.Rename(state+".kept", state))
	}()
	testenv.Run(t, "cp", "-a", state+".kept", state)
	h.start() // it was the SPM, and cannot be
	h.lose()
	h.start()
	defer h.proc.Kill()
	require.NoError(t, h.connect(w.places...))
	refused := func(verb string, a arguments, code spm.Code, says string) {
		t.Helper()
		err := h.ask(verb, a, nil)
		require.ErrorContains(t, err, says, verb)
		require.Equal(t, code, spm.CodeOf(err), "%s: %v", verb, err)
	}
	domain := arguments{"sdUUID": w.domains[0]}
	refused("getStorageDomainInfo", domain, s.code, s.says)
	refused("formatStorageDomain", domain, s.code, s.says)
	refused("connectStoragePool", arguments{"spUUID": h.pool, "hostID": 1, "scsiKey": "", "msdUUID": w.domains[0], "masterVersion": 1}, spm.CodeUnknownPool, s.says)
	kind, _ := w.places[0].connection()
	refused("createStorageDomain", arguments{"storageType": kind, "sdUUID": "11111111-1111-4111-8111-111111111111", "domainName": "new",
		"typeSpecificArg": w.places[0].where(), "domClass": "Data"}, s.code, s.says)
}

// treeOf is everything below a directory, with the hash of its content.
func treeOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			all[path] = "directory"
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		text, err := os.ReadFile(path)
		all[path] = fmt.Sprintf("%s %d %x", st.ModTime(), st.Size(), sha256.Sum256(text))
		return err
	}))
	return all
}
