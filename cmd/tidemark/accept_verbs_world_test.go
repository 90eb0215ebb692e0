//go:build linux

package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
	"tidemark/spm/verbs"
)

// A verbWorld is a host with four domains: the master, with an image of two volumes, a
// second one that is active, with an image of its own, one that is attached only, and
// one that is of no pool. Of what it does not have it has the names.
type verbWorld struct {
	t testing.TB
	h *vdsmHost // nil: there is none, or it has been changed

	master, second, attached, spare string // domains
	image, base, leaf, other        string // an image with its volumes, and one of the second domain
	task                            string // that has ended
	held                            string // that has the image, and goes on for as long as the world, "" if there is none
	fresh                           string // a directory without a domain

	groups []*groupPool      // where the domains lie, if not in directories
	before map[string]string // the state before the next call; nil: it is not known
}

// host starts a host that knows nothing.
func (w *verbWorld) host() {
	var devices []string
	for _, g := range w.groups {
		devices = append(devices, g.paths()...)
	}
	w.h = newVDSMHost(w.t, devices...)
	for _, id := range []*string{&w.master, &w.second, &w.attached, &w.spare, &w.image, &w.base, &w.leaf, &w.other, &w.task} {
		*id = uuid.NewString()
	}
	w.fresh = string(w.h.newDir("fresh"))
}

// end ends the host.
func (w *verbWorld) end() {
	if w.h == nil {
		return
	}
	w.teardown()
	require.NoError(w.t, w.h.proc.Signal(syscall.SIGTERM))
	require.NoError(w.t, w.h.proc.Wait(w.t, stopLimit))
	w.h, w.held, w.before = nil, "", nil
}

// teardown ends what serves images, as the host's SPM, which it may be no more. Nobody
// is left who serves one.
func (w *verbWorld) teardown() {
	w.t.Helper()
	if len(serversOf(w.h.socket)) == 0 {
		return
	}
	w.h.run("spmStart", arguments{"spUUID": w.h.pool})
	for domain, image := range map[string]string{w.master: w.image, w.second: w.other} {
		_ = w.h.ask("teardownImage", w.h.at(domain, image, ""), nil) // unless it is not served, or lies in no active domain
	}
	require.Empty(w.t, serversOf(w.h.socket), "who serves an image of this host is left")
}

// domains makes the domains, of no pool yet.
func (w *verbWorld) domains(capacity int64) {
	require.NoError(w.t, w.h.connect(dirPlace(w.fresh)))
	for i, id := range w.all() {
		a := arguments{"sdUUID": id, "domainName": fmt.Sprint(i), "domClass": "Data"}
		var p place
		if w.groups != nil {
			p = w.groups[i]
		} else {
			p, a["capacity"] = w.h.newDir(fmt.Sprint(i)), fmt.Sprint(capacity)
		}
		a["storageType"], _ = p.connection()
		a["typeSpecificArg"] = p.where()
		require.NoError(w.t, w.h.connect(p))
		w.h.do("createStorageDomain", a)
	}
}

// all are the domains, which lie in the directories 0, 1, 2 and 3.
func (w *verbWorld) all() []string { return []string{w.master, w.second, w.attached, w.spare} }

// managed makes everything.
func (w *verbWorld) managed(capacity int64) {
	w.host()
	w.domains(capacity)
	h := w.h
	h.do("createStoragePool", arguments{"spUUID": h.pool, "poolName": "pool", "masterDom": w.master,
		"domList": []string{w.master, w.second, w.attached}, "masterVersion": 1})
	h.manage(w.master)
	h.do("activateStorageDomain", arguments{"spUUID": h.pool, "sdUUID": w.second})
	h.run("createVolume", h.newVolume(w.master, w.image, w.base, gib, nil))
	h.run("createVolume", h.newVolume(w.second, w.other, w.other, gib, nil))
	w.task = h.begin("createVolume", h.newVolume(w.master, w.image, w.leaf, 0, arguments{"srcImgUUID": w.image, "srcVolUUID": w.base}))
	require.Equal(w.t, "success", h.await(w.task).Result)
}

// spoil makes the leaf illegal, as an operation that has failed does.
func (w *verbWorld) spoil() {
	w.h.do("spmStop", arguments{"spUUID": w.h.pool})
	path := filepath.Join(w.h.root, "0", w.master, "images", w.image, w.leaf+".meta")
	b, err := os.ReadFile(path)
	require.NoError(w.t, err)
	require.NoError(w.t, os.WriteFile(path, []byte(strings.Replace(string(b), "LEGALITY=LEGAL", "LEGALITY=ILLEGAL", 1)), 0o600))
	w.h.run("spmStart", arguments{"spUUID": w.h.pool})
}

// tear leaves of the metadata of every domain the first half.
func (w *verbWorld) tear() {
	for i, id := range w.all() {
		path := filepath.Join(w.h.root, fmt.Sprint(i), id, "dom_md/metadata")
		b, err := os.ReadFile(path)
		require.NoError(w.t, err)
		require.NoError(w.t, os.WriteFile(path, b[:len(b)/2], 0o600))
	}
}

// hide moves every place away but the master's.
func (w *verbWorld) hide() {
	places := []string{w.fresh}
	for i := range w.all()[1:] {
		places = append(places, filepath.Join(w.h.root, fmt.Sprint(i+1)))
	}
	for _, p := range places {
		require.NoError(w.t, os.Rename(p, p+".away"))
	}
}

// hideMaster moves the place of the master away.
func (w *verbWorld) hideMaster() {
	place := filepath.Join(w.h.root, "0")
	require.NoError(w.t, os.Rename(place, place+".away"))
}

// serve serves both images.
func (w *verbWorld) serve() {
	w.h.prepare(w.master, w.image)
	w.h.prepare(w.second, w.other)
}

// leaveMaster takes the second domain out of use.
func (w *verbWorld) leaveMaster() {
	w.h.do("deactivateStorageDomain", arguments{"spUUID": w.h.pool, "sdUUID": w.second, "msdUUID": blankID, "masterVersion": 0})
}

// hold begins to move the image, and lets the worker stop at once.
func (w *verbWorld) hold() {
	stop := filepath.Join(w.h.deaths(), "stop")
	require.NoError(w.t, os.WriteFile(stop, []byte("0"), 0o600))
	w.held = w.h.begin("moveImage", arguments{"spUUID": w.h.pool, "srcDomUUID": w.master, "dstDomUUID": w.second, "imgUUID": w.image, "vmUUID": blankID, "op": "MOVE"})
	testenv.Eventually(w.t, startLimit, "the worker stops", func() bool {
		_, err := os.Stat(filepath.Join(w.h.deaths(), "stopped"))
		return err == nil
	})
}

// stop stops the task that has the image. It stays in the list.
func (w *verbWorld) stop() {
	w.h.do("stopTask", arguments{"taskID": w.held})
	require.Equal(w.t, verbs.Number(spm.CodeAborted), w.h.await(w.held).Code)
	w.task, w.held = w.held, ""
}

// waits reports whether a task waits for the one that has the image: it has not begun when
// another, which was begun behind it, has ended.
func (w *verbWorld) waits(task string) bool {
	if w.held == "" {
		return false
	}
	other := uuid.NewString()
	w.h.run("createVolume", w.h.newVolume(w.master, other, other, gib, nil))
	var r struct {
		Status struct {
			State string `json:"state"`
		} `json:"taskStatus"`
	}
	require.NoError(w.t, w.h.ask("getTaskStatus", arguments{"taskID": task}, &r))
	return r.Status.State == "queued"
}

// fill leaves no space in the active domains, which have three chunks each.
func (w *verbWorld) fill() {
	for domain, n := range map[string]int{w.master: 1, w.second: 2} {
		for range n {
			w.h.run("createVolume", w.h.newVolume(domain, uuid.NewString(), uuid.NewString(), chunk, arguments{"volFormat": "RAW"}))
		}
	}
}

// arguments are those of a verb that succeeds, if anything does: those that it needs,
// and some more.
func (w *verbWorld) arguments(v *verbs.Verb) arguments {
	all := arguments{
		"sdUUID": w.master, "spUUID": w.h.pool, "imgUUID": w.image, "volUUID": w.leaf, "taskID": w.task, "vmUUID": blankID,
		"domType": "LOCALFS", "conList": []any{arguments{"connection": w.fresh}}, "storageType": "LOCALFS", "domainName": "name",
		"typeSpecificArg": w.fresh, "domClass": "Data", "poolName": "other", "masterDom": w.spare, "domList": []string{w.spare}, "domDict": arguments{w.second: "Active", w.attached: "Attached"},
		"masterVersion": 1, "msdUUID": w.master, "hostID": 1, "scsiKey": "", "size": fmt.Sprint(gib), "volFormat": "COW", "preallocate": "SPARSE",
		"diskType": "DATA", "desc": "", "volumes": []string{w.leaf}, "newSize": fmt.Sprint(2 * gib), "priority": 3, "srcImgUUID": w.image,
		"srcVolUUID": w.leaf, "dstImgUUID": uuid.NewString(), "dstVolUUID": uuid.NewString(), "srcDomUUID": w.master, "dstDomUUID": w.second,
		"op": "MOVE", "postZero": false, "force": false, "ancestor": w.base, "successor": w.leaf,
	}
	for name, value := range map[string]arguments{
		"createStorageDomain":     {"sdUUID": uuid.NewString()},
		"formatStorageDomain":     {"sdUUID": w.spare},
		"attachStorageDomain":     {"sdUUID": w.spare},
		"activateStorageDomain":   {"sdUUID": w.attached},
		"deactivateStorageDomain": {"sdUUID": w.second, "msdUUID": blankID, "masterVersion": 0},
		"detachStorageDomain":     {"sdUUID": w.attached},
		"createStoragePool":       {"spUUID": uuid.NewString()},
		"reconstructMaster":       {"masterDom": w.second, "masterVersion": 2},
		"createVolume":            {"imgUUID": uuid.NewString(), "volUUID": uuid.NewString(), "srcImgUUID": blankID, "srcVolUUID": blankID},
		"getStorageDomainsList":   {"storageType": nil, "domainClass": nil},
	}[v.Name] {
		all[name] = value
	}
	a := arguments{}
	for _, arg := range v.Args {
		if value, ok := all[arg.Name]; ok && value != nil {
			a[arg.Name] = value
		}
	}
	return a
}
