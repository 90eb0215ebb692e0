//go:build linux

package main_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// A world is a host with its domains, and names for the images and volumes that a story
// makes in them: so that what is there can be told in a line.
type world struct {
	*vdsmHost
	places  []place
	domains []string
	ids     map[string]string // of a name
	names   map[string]string // of a UUID
	empty   [][]string        // the files of a directory's domain without volumes
	looked  map[string]string // what QEMU has said of files: see once
}

func (w *world) id(name string) string {
	if w.ids[name] == "" {
		id := uuid.NewString()
		w.ids[name], w.names[id] = id, name
	}
	return w.ids[name]
}

// forget makes the names mean new images and volumes.
func (w *world) forget() { w.ids, w.names = map[string]string{}, map[string]string{} }

// storySize is the virtual size of volumes, and what is written lies at multiples of
// storyStep.
const (
	storySize = 64 * mib
	storyStep = mib

	largeVolume = 4 * chunk // that has been granted so much
)

// create is the request for a volume of an image, on a parent of the same image unless
// that is "" or more says otherwise.
func (w *world) create(image, name, parent string, more arguments) arguments {
	a := w.newVolume(w.domains[0], w.id(image), w.id(name), storySize, nil)
	if parent != "" {
		a["srcImgUUID"], a["srcVolUUID"], a["size"] = w.id(image), w.id(parent), "0"
	}
	for k, v := range more {
		a[k] = v
	}
	return a
}

// volume makes a volume, and writes each letter of content at its place, but for spaces.
func (w *world) volume(image, name, parent, content string, more arguments) {
	w.t.Helper()
	w.run("createVolume", w.create(image, name, parent, more))
	if content == "" {
		return
	}
	var commands []string
	for i, c := range content {
		if c != ' ' {
			commands = append(commands, fmt.Sprintf("write -P %d %d 64k", c, i*storyStep))
		}
	}
	if _, dir := w.places[0].(dirPlace); dir { // nobody has it open
		all := w.volumes(w.domains[0])
		v := all[slices.IndexFunc(all, func(v vdsmVolume) bool { return v.ID == w.id(name) })]
		format := "qcow2"
		if v.Format == "RAW" {
			format = "raw"
		}
		runQEMUIO(w.t, v.Path, format, commands...)
		return
	}
	uri, _ := w.prepare(w.domains[0], w.id(image))
	runQEMUIO(w.t, uri, "raw", append(commands, "flush")...)
	w.teardown(w.domains[0], w.id(image))
}

// template makes an image that others can be based on.
func (w *world) template() {
	w.t.Helper()
	w.volume("seed", "s", "", "tt", nil)
	w.run("copyImage", arguments{"sdUUID": w.domains[0], "spUUID": w.pool, "vmUUID": "", "srcImgUUID": w.id("seed"), "srcVolUUID": w.id("s"),
		"dstImgUUID": w.id("template"), "dstVolUUID": w.id("t")})
	w.run("deleteImage", w.image("seed"))
}

func (w *world) image(name string) arguments {
	return arguments{"sdUUID": w.domains[0], "spUUID": w.pool, "imgUUID": w.id(name)}
}

func (w *world) merge(ancestor, successor string) arguments {
	a := w.image("i")
	a["vmUUID"], a["ancestor"], a["successor"] = "", w.id(ancestor), w.id(successor)
	return a
}

// A killStory is an operation in a world that is prepared for it. What it changes is told
// as shows tells it.
type killStory struct {
	name, verb string
	steps      int    // of its task
	leaves     string // what may be there still when it has been rolled back
	torn       string // which volumes may be illegal then, by their letters
	prepare    func(w *world)
	served     bool // image i, while it happens
	dirOnly    bool
	args       func(w *world) arguments
	before     string
	after      string
}

// What shows tells of images that several stories have.
const oneLeaf = "0/i: a(LEAF COW SPARSE 64M)"

// killStories are all kinds of tasks, and what of them is different in what follows.
var killStories = []killStory{
	{
		name: "create", verb: "createVolume", steps: 2, prepare: func(*world) {},
		args:   func(w *world) arguments { return w.create("i", "a", "", nil) },
		before: "", after: oneLeaf + "=",
	},
	{
		name: "create raw", verb: "createVolume", steps: 2, dirOnly: true, prepare: func(*world) {},
		args: func(w *world) arguments {
			return w.create("i", "a", "", arguments{"volFormat": "RAW", "preallocate": "SPARSE"})
		},
		before: "", after: "0/i: a(LEAF RAW SPARSE 64M)=",
	},
	{
		name: "create preallocated", verb: "createVolume", steps: 2, prepare: func(*world) {},
		args: func(w *world) arguments {
			return w.create("i", "a", "", arguments{"volFormat": "RAW", "preallocate": "PREALLOCATED"})
		},
		before: "", after: "0/i: a(LEAF RAW PREALLOCATED 64M)=",
	},
	{
		name: "snapshot", verb: "createVolume", steps: 3,
		prepare: func(w *world) { w.volume("i", "a", "", "aa", nil) },
		args:    func(w *world) arguments { return w.create("i", "b", "a", nil) },
		before:  oneLeaf + "=aa", after: "0/i: a(INTERNAL COW SPARSE 64M: aa) b(LEAF COW SPARSE 64M)=aa",
	},
	{
		name: "snapshot of a served image", verb: "createVolume", steps: 3, served: true,
		prepare: func(w *world) { w.volume("i", "a", "", "aa", nil) },
		args:    func(w *world) arguments { return w.create("i", "b", "a", nil) },
		before:  oneLeaf + "=aa", after: "0/i: a(INTERNAL COW SPARSE 64M: aa) b(LEAF COW SPARSE 64M)=aa",
	},
	{
		name: "create on a template", verb: "createVolume", steps: 2, prepare: (*world).template,
		args: func(w *world) arguments {
			return w.create("i", "a", "t", arguments{"srcImgUUID": w.id("template")})
		},
		before: "0/template: t(SHARED COW SPARSE 64M)=tt",
		after:  "0/i: t(SHARED COW SPARSE 64M) a(LEAF COW SPARSE 64M)=tt; 0/template: t(SHARED COW SPARSE 64M)=tt",
	},
	{
		name: "delete", verb: "deleteVolume", steps: 3, prepare: threeVolumes,
		args: func(w *world) arguments {
			a := w.image("i")
			a["volumes"] = []string{w.id("b"), w.id("c")}
			return a
		},
		before: threeLeaves, after: oneLeaf + "=aaa",
	},
	{
		name: "delete an image", verb: "deleteImage", steps: 3, prepare: threeVolumes,
		args:   func(w *world) arguments { return w.image("i") },
		before: threeLeaves, after: "",
	},
	{
		name: "copy", verb: "copyImage", steps: 4, prepare: threeVolumes,
		args: func(w *world) arguments {
			return arguments{"sdUUID": w.domains[0], "spUUID": w.pool, "vmUUID": "", "srcImgUUID": w.id("i"), "srcVolUUID": w.id("b"),
				"dstImgUUID": w.id("j"), "dstVolUUID": w.id("d"), "volType": "LEAF", "dstSdUUID": w.domains[1]}
		},
		before: threeLeaves, after: threeLeaves + "; 1/j: d(LEAF COW SPARSE 64M)=aba",
	},
	{
		name: "move", verb: "moveImage", steps: 7, prepare: threeVolumes, args: (*world).move,
		before: threeLeaves, after: strings.Replace(threeLeaves, "0/i", "1/i", 1),
	},
	{
		name: "merge", verb: "mergeSnapshots", steps: 7, prepare: threeVolumes, torn: "a",
		args:   func(w *world) arguments { return w.merge("a", "b") },
		before: threeLeaves, after: "0/i: a(INTERNAL COW SPARSE 64M: aba) c(LEAF COW SPARSE 64M)=cba",
	},
	{
		name: "merge the leaf", verb: "mergeSnapshots", steps: 7, prepare: threeVolumes, torn: "b",
		args:   func(w *world) arguments { return w.merge("b", "c") },
		before: threeLeaves, after: "0/i: a(INTERNAL COW SPARSE 64M: aaa) b(LEAF COW SPARSE 64M)=cba",
	},
	{
		name: "merge all", verb: "mergeSnapshots", steps: 7, prepare: threeVolumes, torn: "ab",
		args:   func(w *world) arguments { return w.merge("a", "c") },
		before: threeLeaves, after: "0/i: a(LEAF COW SPARSE 64M)=cba",
	},
	{
		name: "merge all into one that was smaller", verb: "mergeSnapshots", steps: 7, torn: "ab",
		prepare: func(w *world) {
			threeVolumes(w)
			w.run("extendVolumeSize", w.extendOf("i", "c"))
		},
		args:   func(w *world) arguments { return w.merge("a", "c") },
		before: strings.Replace(threeLeaves, "c(LEAF COW SPARSE 64M)", "c(LEAF COW SPARSE 96M)", 1), after: "0/i: a(LEAF COW SPARSE 96M)=cba",
	},
	{
		name: "merge the leaf of a served image", verb: "mergeSnapshots", steps: 7, prepare: threeVolumes, torn: "b", served: true,
		args:   func(w *world) arguments { return w.merge("b", "c") },
		before: threeLeaves, after: "0/i: a(INTERNAL COW SPARSE 64M: aaa) b(LEAF COW SPARSE 64M)=cba",
	},
	{
		name: "extend", verb: "extendVolumeSize", steps: 4, prepare: func(w *world) { w.volume("i", "a", "", "aa", nil) }, args: (*world).extend,
		before: oneLeaf + "=aa", after: "0/i: a(LEAF COW SPARSE 96M)=aa",
	},
	{
		name: "extend raw", verb: "extendVolumeSize", steps: 4, args: (*world).extend,
		prepare: func(w *world) {
			w.volume("i", "a", "", "aa", arguments{"volFormat": "RAW", "preallocate": "PREALLOCATED"})
		},
		before: "0/i: a(LEAF RAW PREALLOCATED 64M)=aa", after: "0/i: a(LEAF RAW PREALLOCATED 96M)=aa",
	},
	{
		name: "extend a served image", verb: "extendVolumeSize", steps: 4, served: true,
		prepare: func(w *world) { w.volume("i", "a", "", "aa", nil) }, args: (*world).extend,
		before: oneLeaf + "=aa", after: "0/i: a(LEAF COW SPARSE 96M)=aa",
	},
	{
		name: "reduce", verb: "reduceVolume", steps: 4, leaves: " large",
		prepare: func(w *world) {
			w.volume("i", "a", "", "aa", arguments{"size": fmt.Sprint(2 * gib), "initialSize": fmt.Sprint(largeVolume)})
		},
		args:   func(w *world) arguments { return w.at(w.domains[0], w.id("i"), w.id("a")) },
		before: "0/i: a(LEAF COW SPARSE 2048M large)=aa", after: "0/i: a(LEAF COW SPARSE 2048M)=aa",
	},
}

const threeLeaves = "0/i: a(INTERNAL COW SPARSE 64M: aaa) b(INTERNAL COW SPARSE 64M: aba) c(LEAF COW SPARSE 64M)=cba"

// threeVolumes makes an image of which each volume shows something of those below it, so
// that it is seen if what it is based on changes.
func threeVolumes(w *world) {
	w.volume("i", "a", "", "aaa", nil)
	w.volume("i", "b", "a", " b", nil)
	w.volume("i", "c", "b", "c", nil)
}

func (w *world) extend() arguments {
	a := w.at(w.domains[0], w.id("i"), w.id("a"))
	a["newSize"] = fmt.Sprint(96 * mib)
	return a
}

func (w *world) move() arguments {
	return arguments{"spUUID": w.pool, "srcDomUUID": w.domains[0], "dstDomUUID": w.domains[1], "imgUUID": w.id("i"), "vmUUID": "", "op": "MOVE"}
}

// newWorld makes a host whose manager can be killed, with a domain in each place.
func newWorld(t testing.TB, h *vdsmHost, places ...place) *world {
	t.Helper()
	w := &world{vdsmHost: h, places: places, looked: map[string]string{}}
	w.forget()
	w.domains = h.newDomains(places...)
	for _, p := range places {
		var empty []string
		if d, ok := p.(dirPlace); ok {
			empty = d.files(t)
		}
		w.empty = append(w.empty, empty)
	}
	return w
}
