//go:build linux

package main_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// soakVar says for how long the tests go on that can; without it they make one short
// round.
const soakVar = "TIDEMARK_SOAK"

// soak is how long that is, 0 for one short round.
func soak(t testing.TB) time.Duration {
	t.Helper()
	text := os.Getenv(soakVar)
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	require.NoError(t, err, soakVar)
	return d
}

// Eight clients create, snapshot, write, merge, copy, move and delete 200 volumes at
// random in two domains, also on templates. Model and disk agree, every image is clean
// and shows what was written, and the space comes back.
func TestCrowdInDirectory(t *testing.T) {
	workspace(t)
	h := newVDSMHost(t)
	newCrowd(h, 2, 4, h.newDir("one"), h.newDir("two")).rounds(8, 200)
}

// The same on volume groups.
func TestCrowdOnVolumeGroups(t *testing.T) {
	workspace(t)
	one, two := newGroup(t, 2, 9*gib, 9*gib), newGroup(t, 1, 18*gib)
	newCrowd(newVDSMHost(t, append(one.paths(), two.paths()...)...), 2, 3, one, two).rounds(8, 200)
}

// rounds makes one round, or in a soak as many as there is time for.
func (c *crowd) rounds(clients, volumes int) {
	c.t.Helper()
	seed, _ := testenv.Seed(c.t)
	limit, began := soak(c.t), time.Now()
	for round := uint64(0); round == 0 || time.Since(began) < limit; round++ {
		c.round(seed+round*1000, clients, volumes)
	}
}

// round lets clients work until they have made that many volumes, looks at what they
// have left, and deletes it.
func (c *crowd) round(seed uint64, clients, volumes int) {
	t := c.t
	t.Helper()
	c.left.Store(int64(volumes))
	clear(c.done)
	began := time.Now()
	all := make([]*crowdClient, clients)
	for n := range all {
		all[n] = &crowdClient{crowd: c, rng: testenv.Rand(seed + uint64(n))}
	}
	c.together(all, (*crowdClient).work)
	worked := time.Since(began)

	c.together(all, (*crowdClient).teardownAll)
	c.together(all, (*crowdClient).mergeLowest)
	var images []*crowdImage
	for _, m := range all {
		images = append(images, m.has...)
	}
	templates := len(c.templates)
	c.requireModel(images)
	c.requireContent(images)
	looked := time.Since(began) - worked
	c.together(all, (*crowdClient).deleteAll)
	c.together(all, (*crowdClient).deleteTemplates)
	c.requireModel(nil)
	require.Empty(t, c.h.tasks())
	t.Logf("seed %d: %v in %v; %d images and %d templates left, looked at in %v, deleted in %v", seed, c.done, worked.Round(time.Millisecond),
		len(images), templates, looked.Round(time.Millisecond), (time.Since(began) - worked - looked).Round(time.Millisecond))
}

// together lets all clients do something at once.
func (c *crowd) together(all []*crowdClient, do func(*crowdClient) error) {
	c.t.Helper()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for n, m := range all {
		wg.Go(func() { errs[n] = do(m) })
	}
	wg.Wait()
	require.NoError(c.t, errors.Join(errs...), "the manager said:\n%s", c.h.proc.Output())
}

// requireModel requires that the domains have these images and the templates, and
// nothing else: by what the manager says, and by what lies on the disk.
func (c *crowd) requireModel(images []*crowdImage) {
	t := c.t
	t.Helper()
	want := make([][]string, len(c.domains))
	for _, i := range images {
		parent := blankID
		if i.base != nil {
			parent = i.base.volume
		}
		for n, l := range i.layers {
			kind := "INTERNAL"
			if n == len(i.layers)-1 {
				kind = "LEAF"
			}
			want[i.domain] = append(want[i.domain], fmt.Sprintf("%s/%s on %s: %s LEGAL", i.id, l.id, parent, kind))
			parent = l.id
		}
	}
	for _, tpl := range c.templates {
		want[tpl.domain] = append(want[tpl.domain], fmt.Sprintf("%s/%s on %s: SHARED LEGAL", tpl.id, tpl.volume, blankID))
	}
	for n, domain := range c.domains {
		var have []string
		var granted int64
		volumes := c.h.volumes(domain)
		for _, v := range volumes {
			require.Empty(t, v.Damaged)
			require.False(t, v.Served)
			have = append(have, fmt.Sprintf("%s/%s on %s: %s %s", v.Image, v.ID, v.Parent, v.Type, v.Legality))
			granted += bytesOf(t, v.Granted)
		}
		require.ElementsMatch(t, want[n], have, "domain %d", n)
		require.Equal(t, granted, c.h.domainSize(domain, "granted"), "granted, of domain %d, against its volumes", n)
		if g, ok := c.places[n].(*groupPool); ok {
			requireGroup(t, g, volumes)
		} else {
			requireDirectory(t, filepath.Join(c.places[n].where(), domain, "images"), volumes)
		}
	}
}

// domainSize is a size that a domain says of itself.
func (h *vdsmHost) domainSize(domain, name string) int64 {
	h.t.Helper()
	var r struct {
		Stats map[string]any `json:"stats"`
	}
	require.NoError(h.t, h.ask("getStorageDomainStats", arguments{"sdUUID": domain}, &r))
	return bytesOf(h.t, r.Stats[name].(string))
}

// requireGroup requires that a group has these volumes, and what every domain has.
func requireGroup(t testing.TB, g *groupPool, volumes []vdsmVolume) {
	t.Helper()
	var want, have []string
	for _, v := range volumes {
		want = append(want, v.ID+" "+v.Granted)
	}
	for line := range strings.Lines(g.lvm(t, "lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_name,lv_size", g.name)) {
		f := strings.Fields(line)
		if f[0] != "metadata" && f[0] != "master" {
			have = append(have, strings.Join(f, " "))
		}
	}
	require.ElementsMatch(t, want, have)
	g.lvm(t, "vgck", g.name)
}

// requireDirectory requires that a directory of images has these volumes, and nothing
// else.
func requireDirectory(t testing.TB, images string, volumes []vdsmVolume) {
	t.Helper()
	var want, have []string
	for _, v := range volumes {
		file := v.Image + "/" + v.ID
		want = append(want, file+" "+v.Granted, file+".meta", file+".lease")
	}
	entries, err := os.ReadDir(images)
	require.NoError(t, err)
	for _, image := range entries {
		files, err := os.ReadDir(filepath.Join(images, image.Name()))
		require.NoError(t, err)
		require.NotEmpty(t, files, image.Name())
		for _, f := range files {
			name := image.Name() + "/" + f.Name()
			if filepath.Ext(name) == "" {
				name += fmt.Sprintf(" %d", fileLength(t, filepath.Join(images, name)))
			}
			have = append(have, name)
		}
	}
	require.ElementsMatch(t, want, have)
}

// requireContent requires that every volume is clean, and shows what the model says:
// not only the leaves.
func (c *crowd) requireContent(images []*crowdImage) {
	c.t.Helper()
	var volumes [][]vdsmVolume
	for _, domain := range c.domains {
		volumes = append(volumes, c.h.volumes(domain))
	}
	look := func(domain int, leaf string, shows func(dir string)) {
		dir := filepath.Dir(chainFile(c.t, c.places[domain], volumes[domain], leaf))
		shows(dir)
		if _, group := c.places[domain].(*groupPool); group { // these were copies
			require.NoError(c.t, os.RemoveAll(dir))
		}
	}
	for _, tpl := range c.templates {
		look(tpl.domain, tpl.volume, func(dir string) { requireBlocks(c.t, filepath.Join(dir, tpl.volume), tpl.shows) })
	}
	for _, i := range images {
		look(i.domain, i.leaf().id, func(dir string) {
			for n, l := range i.layers {
				requireBlocks(c.t, filepath.Join(dir, l.id), i.shows(n))
			}
		})
	}
}

// requireBlocks requires that the image in a file is clean, and shows that.
func requireBlocks(t testing.TB, file string, shows [crowdBlocks]byte) {
	t.Helper()
	requireClean(t, file)
	var reads []string
	for b, s := range shows {
		off, size := crowdBlock(b)
		for at := off; at < off+size; at += 32 * mib {
			reads = append(reads, fmt.Sprintf("read -P %d %d %d", s, at, 32<<10))
		}
	}
	runQEMUIO(t, file, "qcow2", reads...)
}
