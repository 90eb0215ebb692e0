//go:build linux

package main_test

import (
	"crypto/sha1" //nolint:gosec // VDSM's seal
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
)

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

// A disk is what lies in a place, for those who spoil it by hand while no manager runs.
type disk interface {
	domainLines(t *testing.T, domain string) []string
	setDomainLines(t *testing.T, domain string, lines []string)
	// bytes is what tells any change.
	bytes(t *testing.T) any
}

// A domain that is not whole, of another version or another's is not touched, and why
// is told.
func TestVDSMForeignDomain(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		h := newVDSMHost(t)
		requireLeftAlone(t, newWorld(t, h, h.newDir("domain")), spoilings)
	})
	t.Run("group", func(t *testing.T) {
		g := newGroup(t, 1, gib)
		ovirt := spoiling{"oVirt's", func(lines []string) []string { return append(lines, ovirtTag) }, spm.CodeForeign, "oVirt"}
		requireLeftAlone(t, newWorld(t, newVDSMHost(t, g.paths()...), g), append(slices.Clone(spoilings), ovirt))
	})
}

func requireLeftAlone(t *testing.T, w *world, all []spoiling) {
	w.volume("i", "a", "", "aa", nil)
	d := w.places[0].(disk)
	w.proc.Kill()
	lines := d.domainLines(t, w.domains[0])
	for _, s := range all {
		t.Run(s.name, func(t *testing.T) {
			d.setDomainLines(t, w.domains[0], s.change(slices.Clone(lines)))
			before := d.bytes(t)
			w.t = t
			requireUntouched(t, w.vdsmHost, w, s)
			require.Equal(t, before, d.bytes(t))
		})
	}
	w.t = t
	d.setDomainLines(t, w.domains[0], lines)
	w.start() // with its state: it is what it was
	require.Equal(t, oneLeaf+"=aa", w.shows())
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

func (d dirPlace) metadata(domain string) string {
	return filepath.Join(string(d), domain, "dom_md", "metadata")
}

func (d dirPlace) domainLines(t *testing.T, domain string) []string {
	t.Helper()
	text, err := os.ReadFile(d.metadata(domain))
	require.NoError(t, err)
	return strings.Split(strings.TrimRight(string(text), "\n"), "\n")
}

func (d dirPlace) setDomainLines(t *testing.T, domain string, lines []string) {
	t.Helper()
	require.NoError(t, os.WriteFile(d.metadata(domain), []byte(strings.Join(lines, "\n")+"\n"), 0o600))
}

func (d dirPlace) bytes(t *testing.T) any { return treeOf(t, string(d)) }

// What a tag of LVM cannot hold is there as the number of the character.
var (
	tagForbidden = regexp.MustCompile(`[^A-Za-z0-9_+.\-/=!:#]`)
	tagEscape    = regexp.MustCompile(`&(\d+)&`)
)

// ovirtTag is the one of oVirt's domains.
const ovirtTag = "RHAT_storage_domain"

// tags are those of the group that hold the metadata of a domain, or say whose it is.
func (g *groupPool) tags(t *testing.T) (all []string) {
	t.Helper()
	for tag := range strings.SplitSeq(g.field(t, "vgs", "vg_tags"), ",") {
		if strings.HasPrefix(tag, "MDT_") || tag == ovirtTag {
			all = append(all, tag)
		}
	}
	return all
}

func (g *groupPool) domainLines(t *testing.T, _ string) (lines []string) {
	t.Helper()
	for _, tag := range g.tags(t) {
		lines = append(lines, tagEscape.ReplaceAllStringFunc(strings.TrimPrefix(tag, "MDT_"), func(c string) string {
			n, err := strconv.Atoi(strings.Trim(c, "&"))
			require.NoError(t, err)
			return string(rune(n))
		}))
	}
	return lines
}

func (g *groupPool) setDomainLines(t *testing.T, _ string, lines []string) {
	t.Helper()
	args := []string{"vgchange", "-qq"}
	for _, tag := range g.tags(t) {
		args = append(args, "--deltag", tag)
	}
	g.lvm(t, append(args, g.name)...)
	args = []string{"vgchange", "-qq"}
	for _, line := range lines {
		if line != ovirtTag {
			line = "MDT_" + tagForbidden.ReplaceAllStringFunc(line, func(c string) string { return fmt.Sprintf("&%d&", c[0]) })
		}
		args = append(args, "--addtag", line)
	}
	g.lvm(t, append(args, g.name)...)
}

// bytes are the state of the group and the metadata of its volumes.
func (g *groupPool) bytes(t *testing.T) any {
	t.Helper()
	f, at := g.slots(t)
	defer f.Close()
	text := make([]byte, 16*mib)
	_, err := f.ReadAt(text, at)
	require.NoError(t, err)
	return fmt.Sprintf("%d %x", g.seqno(t), sha256.Sum256(text))
}

// slots is the file below the device of the logical volume metadata, and where in it
// that begins. Nobody may have it open.
func (g *groupPool) slots(t *testing.T) (f *os.File, at int64) {
	t.Helper()
	s := g.segments(t, "metadata")[0]
	i := slices.IndexFunc(g.devices, func(d *testenv.LoopDevice) bool { return d.Path == s.device })
	testenv.Run(t, "blockdev", "--flushbufs", s.device)
	f, err := os.OpenFile(g.devices[i].File, os.O_RDWR, 0)
	require.NoError(t, err)
	return f, g.peStart(t, s.device) + s.first*chunk
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

// The metadata of one volume is torn, in the middle of a chain. The domain can be used,
// and nothing of that image is changed or opened before somebody has mended it.
func TestVDSMTornVolume(t *testing.T) {
	t.Run("directory", func(t *testing.T) {
		h := newVDSMHost(t)
		w := newWorld(t, h, h.newDir("domain"))
		requireTornLeftAlone(t, w, w.slotInDir)
	})
	t.Run("group", func(t *testing.T) {
		g := newGroup(t, 1, 2*gib)
		requireTornLeftAlone(t, newWorld(t, newVDSMHost(t, g.paths()...), g), g.slotOf(t))
	})
}

// slotInDir is where a directory has the metadata of a volume.
func (w *world) slotInDir(id string) metaSlot {
	w.t.Helper()
	all := w.volumes(w.domains[0])
	return metaSlot{all[slices.IndexFunc(all, func(v vdsmVolume) bool { return v.ID == id })].Path + ".meta", 0}
}

// slotOf is where a group has the metadata of a volume.
func (g *groupPool) slotOf(t *testing.T) func(id string) metaSlot {
	return func(id string) metaSlot {
		t.Helper()
		_, tag, found := strings.Cut(strings.TrimSpace(g.lvm(t, "lvs", "--noheadings", "-o", "lv_tags", g.name+"/"+id)), "MD_")
		require.True(t, found)
		number, _, _ := strings.Cut(tag, ",")
		n, err := strconv.ParseInt(number, 10, 64)
		require.NoError(t, err)
		f, at := g.slots(t)
		require.NoError(t, f.Close())
		return metaSlot{f.Name(), at + mib + n*(8<<10)}
	}
}

// A metaSlot is where the metadata of a volume lies.
type metaSlot struct {
	path string
	at   int64
}

func (s metaSlot) read(t *testing.T) []byte {
	t.Helper()
	f, err := os.Open(s.path)
	require.NoError(t, err)
	defer f.Close()
	text := make([]byte, 512)
	n, err := f.ReadAt(text, s.at)
	require.True(t, err == nil || errors.Is(err, io.EOF), "%v", err)
	return text[:n]
}

func (s metaSlot) write(t *testing.T, text []byte) {
	t.Helper()
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(text, s.at)
	require.NoError(t, errors.Join(err, f.Sync(), f.Close()))
}

func requireTornLeftAlone(t *testing.T, w *world, of func(id string) metaSlot) {
	threeVolumes(w)
	w.volume("k", "e", "", "ee", nil)
	before := w.shows()
	slots := map[string]metaSlot{}
	for _, name := range []string{"a", "b", "c", "e"} {
		slots[name] = of(w.id(name))
	}
	read := func() map[string]string {
		all := map[string]string{}
		for name, s := range slots {
			all[name] = string(s.read(t))
		}
		return all
	}
	w.proc.Kill()
	whole := slots["b"].read(t)
	require.Contains(t, string(whole), "IMAGE="+w.id("i"))
	torn := slices.Clone(whole)
	clear(torn[len(torn)/4:])
	slots["b"].write(t, torn)
	was := read()

	w.start()
	for _, v := range w.volumes(w.domains[0]) {
		name := w.names[v.ID]
		require.Equal(t, name == "b", v.Damaged != "", "%s: %s", name, v.Damaged)
	}
	leaf := w.at(w.domains[0], w.id("i"), w.id("c"))
	for verb, a := range map[string]arguments{
		"prepareImage": leaf, "reduceVolume": leaf, "extendVolumeSize": w.extendOf("i", "c"), "createVolume": w.create("i", "f", "c", nil), "mergeSnapshots": w.merge("a", "c"),
		"copyImage": {"sdUUID": w.domains[0], "spUUID": w.pool, "vmUUID": "", "srcImgUUID": w.id("i"), "srcVolUUID": w.id("c"),
			"dstImgUUID": w.id("j"), "dstVolUUID": w.id("d")},
	} {
		err := w.ask(verb, a, nil)
		require.Equal(t, spm.CodeDamaged, spm.CodeOf(err), "%s: %v", verb, err)
	}
	uri, _ := w.prepare(w.domains[0], w.id("k"))
	runQEMUIO(t, uri, "raw", "read -P 101 0 64k")
	w.teardown(w.domains[0], w.id("k"))
	w.proc.Kill()
	require.Equal(t, was, read())

	slots["b"].write(t, whole) // mended
	w.start()
	require.Equal(t, before, w.shows())
	w.consistent()
}
