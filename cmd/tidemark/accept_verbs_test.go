//go:build linux

package main_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/spm"
	"tidemark/spm/verbs"
)

var update = flag.Bool("update", false, "write the golden files anew")

// situations are the states in which every verb is called, with what is wrong then.
var situations = []struct {
	name string
	make func(*verbWorld)
	call func(*verbWorld, arguments) bool // changes the arguments, or says that the verb has none of them
}{
	{"nothing connected", func(w *verbWorld) { w.host() }, nil},
	{"no pool", func(w *verbWorld) { w.host(); w.domains(2 * gib) }, nil},
	{"not SPM", func(w *verbWorld) { w.managed(2 * gib); w.h.do("spmStop", arguments{"spUUID": w.h.pool}) }, nil},
	{"SPM", func(w *verbWorld) { w.managed(2 * gib) }, nil},
	{"not active", func(w *verbWorld) { w.managed(2 * gib) }, func(w *verbWorld, a arguments) bool {
		return a.replace(w.attached, "sdUUID", "srcDomUUID")
	}},
	{"unknown pool", func(w *verbWorld) { w.managed(2 * gib) }, func(_ *verbWorld, a arguments) bool { return a.replace(unknownID, "spUUID") }},
	{"unknown domain", func(w *verbWorld) { w.managed(2 * gib) }, func(_ *verbWorld, a arguments) bool {
		return a.replace(unknownID, "sdUUID", "srcDomUUID", "masterDom", "msdUUID")
	}},
	{"unknown image", func(w *verbWorld) { w.managed(2 * gib) }, func(_ *verbWorld, a arguments) bool { return a.replace(unknownID, "imgUUID", "srcImgUUID") }},
	{"unknown volume, task", func(w *verbWorld) { w.managed(2 * gib) }, func(_ *verbWorld, a arguments) bool {
		return a.replace(unknownID, "volUUID", "srcVolUUID", "volumes", "successor", "taskID")
	}},
	{"based on", func(w *verbWorld) { w.managed(2 * gib) }, func(w *verbWorld, a arguments) bool {
		return a.replace(w.base, "volUUID", "srcVolUUID", "volumes")
	}},
	{"illegal", func(w *verbWorld) { w.managed(2 * gib); w.spoil() }, nil},
	{"served", func(w *verbWorld) { w.managed(2 * gib); w.serve() }, nil},
	{"torn", func(w *verbWorld) { w.managed(2 * gib); w.h.do("spmStop", arguments{"spUUID": w.h.pool}); w.tear() }, nil},
	{"vanished", func(w *verbWorld) { w.managed(2 * gib); w.hide() }, func(w *verbWorld, a arguments) bool {
		if a["sdUUID"] == w.master {
			a["sdUUID"] = w.second
		}
		return true
	}},
	{"master vanished", func(w *verbWorld) { w.managed(2 * gib); w.hideMaster() }, func(w *verbWorld, a arguments) bool {
		switch {
		case a["msdUUID"] == blankID: // deactivate it, with the second one as the next
			a["sdUUID"], a["msdUUID"] = w.master, w.second
		case a["sdUUID"] == w.master:
			a["sdUUID"] = w.second
		}
		return true
	}},
	{"full", func(w *verbWorld) { w.managed(3 * chunk); w.fill() }, nil},
	{"master only", func(w *verbWorld) { w.managed(2 * gib); w.leaveMaster() }, nil},
	{"held by a task", func(w *verbWorld) { w.managed(2 * gib); w.hold() }, func(w *verbWorld, a arguments) bool {
		a.replace(w.held, "taskID")
		return true
	}},
	{"failed task", func(w *verbWorld) { w.managed(2 * gib); w.hold(); w.stop() }, func(_ *verbWorld, a arguments) bool {
		return a["taskID"] != nil
	}},
	{"bad argument", func(w *verbWorld) { w.managed(2 * gib) }, func(_ *verbWorld, a arguments) bool {
		a["colour"] = "red"
		return true
	}},
}

const unknownID = "00000000-0000-4000-8000-00000000ffff"

// replace replaces the arguments of these names, and reports whether there is one.
func (a arguments) replace(by string, names ...string) (found bool) {
	for _, n := range names {
		switch a[n].(type) {
		case string:
			a[n], found = by, true
		case []string:
			a[n], found = []string{by}, true
		}
	}
	return found
}

// Every verb is called in every situation. What it answers is in testdata/verbs.golden:
// ok, or the code of package spm, which is one that the verb's reference names; of a
// task, how that ends, or that it waits for another one. A dash is where a verb has no
// such argument. No cell is empty.
func TestEveryVerbInEverySituation(t *testing.T) {
	workspace(t)
	head, rows := []string{"verb"}, make([][]string, len(verbs.Table))
	for n := range rows {
		rows[n] = make([]string, len(situations))
	}
	t.Run("situations", func(t *testing.T) {
		for column, s := range situations {
			head = append(head, s.name)
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				w := &verbWorld{t: t}
				for n := range verbs.Table {
					v := &verbs.Table[n]
					if w.h == nil {
						s.make(w)
					}
					rows[n][column] = "-"
					a := w.arguments(v)
					if s.call == nil || s.call(w, a) {
						rows[n][column] = w.cell(v, a)
					}
				}
				w.end()
			})
		}
	})
	var b strings.Builder
	b.WriteString("# What each verb answers in each situation. Written by: go test ./cmd/tidemark -run TestEveryVerb -update\n")
	b.WriteString(strings.Join(head, "\t") + "\n")
	for n, row := range rows {
		require.NotContains(t, row, "", verbs.Table[n].Name)
		b.WriteString(verbs.Table[n].Name + "\t" + strings.Join(row, "\t") + "\n")
	}
	const golden = "testdata/verbs.golden"
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(b.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String())
}

// cell calls a verb, and lets go of a world that this may have changed. A verb that only
// asks, or fails, changes nothing.
func (w *verbWorld) cell(v *verbs.Verb, a arguments) string {
	if w.before == nil {
		w.before = w.state()
	}
	var r struct {
		Task string `json:"uuid"`
	}
	err := w.h.ask(v.Name, a, &r)
	if err != nil {
		code := spm.CodeOf(err)
		require.NotEqual(w.t, spm.CodeInternal, code, "%s answers a code that says nothing: %v", v.Name, err)
		require.NotContains(w.t, err.Error(), "(-U)", "%s has no such option", v.Name)
		w.requireUnchanged(v.Name, err.Error(), "")
		return fmt.Sprint(int(code))
	}
	cell := "ok"
	switch {
	case !slices.ContainsFunc(v.Reply, func(m verbs.Member) bool { return m.Name == "uuid" }):
	case w.waits(r.Task):
		cell = "task: waits"
	default:
		if s := w.h.await(r.Task); s.Result != "success" {
			cell = fmt.Sprintf("task: %d", s.Code)
			w.requireUnchanged(v.Name, s.Message, r.Task)
		}
	}
	switch {
	case onlyAsks(v):
		w.requireUnchanged(v.Name, cell, "")
	case v.Name == "setVolumePriority":
		w.before = nil
	default:
		w.end()
	}
	return cell
}
