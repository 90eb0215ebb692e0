//go:build linux

package main_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// consistent requires that each domain has what its volumes are and nothing else, and
// that they have as much as is granted.
func (w *world) consistent() {
	w.t.Helper()
	w.requireTasks()
	for n, domain := range w.domains {
		var stats struct {
			Stats struct {
				Granted string `json:"granted"`
				Total   string `json:"disktotal"`
				Free    string `json:"diskfree"`
				Waiting int    `json:"waiting"`
			} `json:"stats"`
		}
		require.NoError(w.t, w.ask("getStorageDomainStats", arguments{"sdUUID": domain}, &stats))
		all := w.volumes(domain)
		granted := int64(0)
		for _, v := range all {
			granted += bytesOf(w.t, v.Granted)
		}
		require.Equal(w.t, fmt.Sprint(granted), stats.Stats.Granted)
		require.Zero(w.t, stats.Stats.Waiting)
		switch p := w.places[n].(type) {
		case *groupPool:
			p.requireOnly(w.t, all)
		case dirPlace:
			p.requireOnly(w.t, domain, all, w.empty[n])
		}
	}
}

// requireOnly requires that a directory has a domain with these volumes, whole, and
// nothing else than what it has without any.
func (d dirPlace) requireOnly(t testing.TB, domain string, all []vdsmVolume, empty []string) {
	t.Helper()
	want := slices.Clone(empty)
	for _, v := range all {
		require.Equal(t, fileLength(t, v.Path), bytesOf(t, v.Granted), v.ID)
		image := filepath.Join(domain, "images", v.Image)
		for _, end := range []string{"", ".meta", ".lease"} {
			want = append(want, filepath.Join(image, v.ID+end))
		}
		if !slices.Contains(want, image) {
			want = append(want, image)
		}
	}
	slices.Sort(want)
	require.Equal(t, want, d.files(t))
}

// files are all files and directories, but for those of tasks.
func (d dirPlace) files(t testing.TB) (all []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(string(d), func(path string, _ fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(string(d), path); rel != "." && filepath.Base(filepath.Dir(rel)) != "tasks" {
			all = append(all, rel)
		}
		return err
	}))
	slices.Sort(all)
	return all
}

// requireTasks requires that the master keeps these tasks, and no others.
func (w *world) requireTasks(want ...string) {
	w.t.Helper()
	var have []string
	for id := range w.tasks() {
		have = append(have, id)
	}
	require.ElementsMatch(w.t, want, have)
	dir, ok := w.places[0].(dirPlace)
	if !ok {
		return
	}
	entries, err := os.ReadDir(filepath.Join(string(dir), w.domains[0], "master", "tasks"))
	require.NoError(w.t, err)
	have = nil
	for _, e := range entries {
		have = append(have, e.Name())
	}
	require.ElementsMatch(w.t, want, have)
}

// requireOnly requires that a group has the volumes of a domain, whole, and no others.
func (g *groupPool) requireOnly(t testing.TB, all []vdsmVolume) {
	t.Helper()
	want := []string{"master", "metadata"}
	for _, v := range all {
		want = append(want, v.ID)
	}
	var have []string
	for line := range strings.Lines(g.lvm(t, "lvs", "--noheadings", "--units", "b", "--nosuffix", "--separator", "|", "-o", "lv_name,lv_size,lv_tags", g.name)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		have = append(have, f[0])
		require.NotContains(t, f[2], "INITIALIZING", line)
		require.NotContains(t, f[2], "removing", line)
		for _, v := range all {
			if v.ID == f[0] {
				require.Equal(t, v.Granted, f[1], line)
			}
		}
	}
	require.ElementsMatch(t, want, have)
	g.lvm(t, "vgck", g.name)
}
