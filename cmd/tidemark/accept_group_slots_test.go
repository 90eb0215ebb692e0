//go:build linux

package main_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
)

// A taggedGroup is a domain on a volume group, the tags of which are changed by hand.
type taggedGroup struct {
	*vdsmHost
	g      *groupPool
	domain string
}

func newTaggedGroup(t *testing.T) *taggedGroup {
	workspace(t)
	g := newGroup(t, 1, 6*gib)
	w := &taggedGroup{vdsmHost: newVDSMHost(t, g.paths()...), g: g}
	w.domain = w.newDomains(g)[0]
	return w
}

// disk makes an image of one volume, with a description and a letter in it.
func (w *taggedGroup) disk(name string, mebibytes int64) (d taggedDisk) {
	w.t.Helper()
	d = taggedDisk{name: name, image: uuid.NewString(), volume: uuid.NewString(), size: mebibytes * mib}
	w.run("createVolume", w.newVolume(w.domain, d.image, d.volume, d.size, arguments{"desc": name}))
	uri, _ := w.prepare(w.domain, d.image)
	runQEMUIO(w.t, uri, "raw", fmt.Sprintf("write -P %d 1M 64k", name[0]), "flush")
	w.teardown(w.domain, d.image)
	d.slot = w.slot(d.volume)
	return d
}

type taggedDisk struct {
	name, image, volume, slot string
	size                      int64
}

// slot is the tag that names the slot of a volume.
func (w *taggedGroup) slot(volume string) string {
	w.t.Helper()
	all := strings.Split(strings.TrimSpace(w.g.lvm(w.t, "lvs", "--noheadings", "-o", "lv_tags", w.g.name+"/"+volume)), ",")
	i := slices.IndexFunc(all, func(tag string) bool { return strings.HasPrefix(tag, "MD_") })
	require.GreaterOrEqual(w.t, i, 0, "tags of %s: %s", volume, all)
	return all[i]
}

// retag replaces a tag, of which one may be "".
func (w *taggedGroup) retag(volume, old, now string) {
	w.t.Helper()
	args := []string{"lvchange", "-qq"}
	if old != "" {
		args = append(args, "--deltag", old)
	}
	if now != "" {
		args = append(args, "--addtag", now)
	}
	w.g.lvm(w.t, append(args, w.g.name+"/"+volume)...)
}

// byHand does something while nobody manages the pool.
func (w *taggedGroup) byHand(do func()) {
	w.t.Helper()
	w.do("spmStop", arguments{"spUUID": w.pool})
	do()
	w.run("spmStart", arguments{"spUUID": w.pool})
}

// damage is what the manager says that is wrong with a volume.
func (w *taggedGroup) damage(volume string) string {
	w.t.Helper()
	all := w.volumes(w.domain)
	i := slices.IndexFunc(all, func(v vdsmVolume) bool { return v.ID == volume })
	require.GreaterOrEqual(w.t, i, 0, "volume %s is not shown", volume)
	return all[i].Damaged
}

// requireWhole requires that a disk has its own size, description and content.
func (w *taggedGroup) requireWhole(all ...taggedDisk) {
	w.t.Helper()
	for _, d := range all {
		var r struct {
			Info struct {
				Capacity    string `json:"capacity"`
				Description string `json:"description"`
			} `json:"info"`
		}
		require.NoError(w.t, w.ask("getVolumeInfo", w.at(w.domain, d.image, d.volume), &r), d.name)
		require.Equal(w.t, fmt.Sprint(d.size), r.Info.Capacity, d.name)
		require.Equal(w.t, d.name, r.Info.Description)
		uri, _ := w.prepare(w.domain, d.image)
		runQEMUIO(w.t, uri, "raw", fmt.Sprintf("read -P %d 1M 64k", d.name[0]), "read -P 0 0 64k")
		w.teardown(w.domain, d.image)
	}
}

func (w *taggedGroup) remove(d taggedDisk) {
	w.t.Helper()
	w.run("deleteImage", arguments{"sdUUID": w.domain, "spUUID": w.pool, "imgUUID": d.image, "postZero": false, "force": true})
}

// Two logical volumes have the tag of one slot. It stays that of the volume which it
// says, also when the other one is removed and volumes are made.
func TestGroupSlotNamedTwiceByHand(t *testing.T) {
	w := newTaggedGroup(t)
	right, wrong := w.disk("right", 100), w.disk("wrong", 200)
	w.byHand(func() { w.retag(wrong.volume, wrong.slot, right.slot) })
	require.Contains(t, w.damage(wrong.volume), right.volume, "it names the other one")
	require.Empty(t, w.damage(right.volume))
	one := w.disk("1", 300)
	require.NotEqual(t, right.slot, one.slot)
	w.remove(wrong)
	two := w.disk("2", 400)
	require.NotEqual(t, right.slot, two.slot)
	w.byHand(func() {})
	w.requireWhole(right, one, two)
	w.g.requireOnly(t, w.volumes(w.domain))
}

// A volume whose tag names no slot, or that of nobody, keeps its space, is shown, and
// is whole again when its tag is. What it had is not given to another one.
func TestGroupSlotLostByHand(t *testing.T) {
	w := newTaggedGroup(t)
	good := w.disk("good", 100)
	wrong := map[string]taggedDisk{}
	for i, tag := range []string{"", "MD_0", "MD_x", "MD_1920", "MD_77"} {
		wrong[tag] = w.disk(string(rune('a'+i)), 200+int64(i))
	}
	granted, total := w.domainSize(w.domain, "granted"), w.domainSize(w.domain, "disktotal")
	spoil := func() {
		for tag, d := range wrong {
			w.retag(d.volume, d.slot, tag)
		}
	}
	w.byHand(spoil)
	for tag, d := range wrong {
		require.Contains(t, w.damage(d.volume), d.slot, "tag %q: where its metadata are", tag)
		require.Equal(t, spm.CodeDamaged, spm.CodeOf(w.ask("prepareImage", w.at(w.domain, d.image, ""), nil)), "tag %q", tag)
	}
	require.Equal(t, granted, w.domainSize(w.domain, "granted"))
	require.Equal(t, total, w.domainSize(w.domain, "disktotal"))
	more := w.disk("more", 300)
	for _, d := range wrong {
		require.NotEqual(t, d.slot, more.slot)
	}
	require.NotEqual(t, "MD_77", more.slot)

	w.byHand(func() {
		for tag, d := range wrong {
			w.retag(d.volume, tag, d.slot)
		}
	})
	all := []taggedDisk{good, more}
	for _, d := range wrong {
		all = append(all, d)
	}
	w.requireWhole(all...)

	w.byHand(spoil)
	for _, d := range wrong {
		w.remove(d)
	}
	w.byHand(func() {})
	w.requireWhole(good, more, w.disk("last", 400))
	w.g.requireOnly(t, w.volumes(w.domain))
}

// Tags are changed under the manager: it writes to nobody else's slot, and takes none
// that a tag names, whosever. What it could not write it does when the tag is right.
func TestGroupSlotChangedUnderTheManagerByHand(t *testing.T) {
	w := newTaggedGroup(t)
	first, second := w.disk("first", 100), w.disk("second", 200)
	w.retag(second.volume, second.slot, first.slot)
	seen := w.disk("seen", 300) // the manager reads the group
	require.NotContains(t, []string{first.slot, second.slot}, seen.slot)
	a := w.at(w.domain, second.image, second.volume)
	a["newSize"] = fmt.Sprint(300 * mib)
	id := w.begin("extendVolumeSize", a)
	testenv.Eventually(t, startLimit, "the task says what it waits for", func() bool {
		s, err := w.task(id)
		require.NoError(t, err)
		require.NotEqual(t, "finished", s.State, "%+v", s)
		return strings.Contains(s.Message, "changed by somebody else")
	})

	const free = "MD_4"
	w.retag(second.volume, first.slot, free)
	w.remove(seen) // the manager reads the group
	other, more := w.disk("other", 400), w.disk("more", 500)
	for _, d := range []taggedDisk{other, more} {
		require.NotContains(t, []string{first.slot, second.slot, free}, d.slot)
	}
	w.byHand(func() { w.retag(second.volume, free, second.slot) })
	require.Equal(t, "success", w.await(id).Result)
	w.do("clearTask", arguments{"taskID": id})
	second.size = 300 * mib
	w.requireWhole(first, second, other, more)
}
