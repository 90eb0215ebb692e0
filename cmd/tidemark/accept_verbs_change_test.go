//go:build linux

package main_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm/verbs"
)

// state is what there is in a world: the files of its domains and of the manager's own
// state, the logical volumes, the tasks, and who serves images.
func (w *verbWorld) state() map[string]string {
	w.t.Helper()
	all := map[string]string{}
	for _, dir := range []string{w.h.root, filepath.Join(w.h.dir, "state")} {
		require.NoError(w.t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if os.IsNotExist(err) || err == nil && strings.HasPrefix(e.Name(), w.h.pool+".json") {
				return nil // the manager has no state yet; that of its pool follows what is on disk, by a file that replaces it
			}
			if err == nil {
				all[path], err = fileState(path)
			}
			return err
		}))
	}
	for id, verb := range w.h.tasks() {
		s, err := w.h.task(id)
		require.NoError(w.t, err)
		all["task "+id] = fmt.Sprintf("%s %+v", verb, s)
	}
	all["servers"] = fmt.Sprint(serversOf(w.h.socket))
	if len(w.groups) > 0 {
		maps.Copy(all, groupState(w.t, w.groups))
	}
	return all
}

// fileState is what is in a file, or that it is none. When it was written to is not of
// it: who opens a file to write looks first whether it can have holes.
func fileState(path string) (string, error) {
	i, err := os.Lstat(path)
	if err != nil || !i.Mode().IsRegular() {
		return fmt.Sprint(path, " is no file"), err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	const block = 4096
	sum, p := sha256.New(), make([]byte, block)
	err = eachData(f, 0, i.Size(), func(from, size int64) error {
		for at := from / block * block; at < from+size; at += block {
			n, err := f.ReadAt(p, at)
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if slices.ContainsFunc(p[:n], func(b byte) bool { return b != 0 }) {
				fmt.Fprintln(sum, at)
				sum.Write(p[:n])
			}
		}
		return nil
	})
	begins := make([]byte, min(i.Size(), 1024))
	if _, err := f.ReadAt(begins, 0); err != nil {
		return "", err
	}
	return fmt.Sprintf("%v %d bytes %x %q", i.Mode(), i.Size(), sum.Sum(nil), begins), err
}

// groupState is what LVM knows of groups, and how often each has been changed.
func groupState(t testing.TB, groups []*groupPool) map[string]string {
	t.Helper()
	var devices []string
	for _, g := range groups {
		devices = append(devices, g.paths()...)
	}
	r := testenv.Try(t, "lvm", "lvs", "--devices", strings.Join(devices, ","), "--driverloaded", "n", "--config", `devices{hints="none"} log{syslog=0}`,
		"--noheadings", "--separator", "|", "-o", "vg_name,lv_name,vg_seqno,vg_tags,lv_size,lv_tags")
	require.NoError(t, r.Err, "%s", r)
	all := map[string]string{}
	for line := range strings.Lines(r.Stdout) {
		f := strings.SplitN(strings.TrimSpace(line), "|", 3)
		all["volume "+f[0]+"/"+f[1]] = f[2]
	}
	return all
}

// changed is what differs between two states.
func changed(before, after map[string]string) (all []string) {
	for what, was := range before {
		switch is, there := after[what]; {
		case !there:
			all = append(all, fmt.Sprintf("- %s, which was %s", what, was))
		case is != was:
			all = append(all, fmt.Sprintf("%s was %s, and is %s", what, was, is))
		}
	}
	for what, is := range after {
		if _, there := before[what]; !there {
			all = append(all, fmt.Sprintf("+ %s: %s", what, is))
		}
	}
	slices.Sort(all)
	return all
}

// requireUnchanged requires that a verb that only asks, or that has failed, has changed
// nothing. A task that has failed leaves itself, for who looks at it.
func (w *verbWorld) requireUnchanged(verb, cell, task string) {
	w.t.Helper()
	if task != "" {
		w.h.do("clearTask", arguments{"taskID": task})
	}
	now := w.state()
	require.Empty(w.t, changed(w.before, now), "%s answers %s, and has changed something", verb, cell)
	w.before = now
}

// onlyAsks says of a verb that it changes nothing.
func onlyAsks(v *verbs.Verb) bool {
	return strings.HasPrefix(v.Name, "get") || v.Name == "measureVolume"
}

// Verbs that fail, or only ask, change nothing in volume groups either: what may not be
// touched there are logical volumes, tags, and the metadata of the group.
func TestRefusedVerbsLeaveGroupsAlone(t *testing.T) {
	workspace(t)
	w := &verbWorld{t: t}
	for range 4 {
		w.groups = append(w.groups, newGroup(t, 1, 4*gib))
	}
	w.managed(0)
	refused := 0
	for _, s := range situations {
		if !slices.Contains([]string{"not active", "unknown pool", "unknown domain", "unknown image", "unknown volume, task", "based on", "bad argument"}, s.name) {
			continue
		}
		for n := range verbs.Table {
			v := &verbs.Table[n]
			a := w.arguments(v)
			if !s.call(w, a) || !onlyAsks(v) && !w.refuses(s.name, v.Name) {
				continue
			}
			w.cell(v, a)
			require.NotNil(t, w.h, "%s succeeds in a group: %s", v.Name, s.name)
			refused++
		}
	}
	require.Greater(t, refused, 150)
	w.end()
}

// refuses reports whether a verb is refused in a situation in directories.
func (w *verbWorld) refuses(situation, verb string) bool {
	b, err := os.ReadFile("testdata/verbs.golden")
	require.NoError(w.t, err)
	lines := strings.Split(string(b), "\n")
	column := slices.Index(strings.Split(lines[1], "\t"), situation)
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, verb+"\t") })
	require.GreaterOrEqual(w.t, i, 0, "%s is not in the table", verb)
	return regexp.MustCompile(`^\d+$`).MatchString(strings.Split(lines[i], "\t")[column])
}
