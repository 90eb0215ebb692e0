//go:build linux

package main_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// What a server that was killed leaves on the host goes with its volume, in whichever way
// that goes. Of one whose volume stays the redo ring stays, and the directory goes when
// the next manager starts.
func TestRemainsOfKilledServers(t *testing.T) {
	workspace(t)
	h := newVDSMHost(t)
	domains := h.newDomains(h.newDir("a"), h.newDir("b"))
	rings := func() []string {
		all, err := filepath.Glob(filepath.Join(testRunDir(), "redo", "*", "*"))
		require.NoError(t, err)
		return all
	}
	// Those of other tests may go meanwhile: a new file may have the number of an old one.
	newer := func(than []string) []string {
		return slices.DeleteFunc(rings(), func(r string) bool { return slices.Contains(than, r) })
	}
	dirOf := func(image string) string { return filepath.Join(testRunDir(), "images", image) }
	killed := func(domain string) (image string) {
		image = uuid.NewString()
		h.run("createVolume", h.newVolume(domain, image, image, gib, nil))
		before := rings()
		_, socket := h.prepare(domain, image)
		c, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
		require.NoError(t, err)
		require.NoError(t, c.WriteAt(t.Context(), bytes.Repeat([]byte{'x'}, 64<<10), 0, 0))
		all := serversOf(h.socket)
		require.Len(t, all, 1)
		require.NoError(t, syscall.Kill(all[0], syscall.SIGKILL))
		_ = c.Close()
		// One that is ending has no command line before it closes its files.
		testenv.Eventually(t, startLimit, "the server is gone", func() bool { return syscall.Kill(all[0], 0) != nil })
		require.DirExists(t, dirOf(image))
		require.Len(t, newer(before), 1)
		return image
	}
	before := rings()
	for name, remove := range map[string]func(image string){
		"deleteImage": func(image string) {
			h.run("deleteImage", arguments{"sdUUID": domains[0], "spUUID": h.pool, "imgUUID": image})
		},
		"deleteVolume": func(image string) {
			h.run("deleteVolume", arguments{"sdUUID": domains[0], "spUUID": h.pool, "imgUUID": image, "volumes": []string{image}})
		},
		"moveImage": func(image string) {
			h.run("moveImage", arguments{"spUUID": h.pool, "srcDomUUID": domains[0], "dstDomUUID": domains[1], "imgUUID": image, "vmUUID": blankID, "op": "MOVE"})
		},
		"Volume.remove": func(image string) { ok(t, "volume", "remove", "--spm", h.socket, image) },
	} {
		image := killed(domains[0])
		remove(image)
		require.NoDirExists(t, dirOf(image), name)
		require.Empty(t, newer(before), name)
	}
	image := killed(domains[1])
	h.do("deactivateStorageDomain", arguments{"sdUUID": domains[1], "spUUID": h.pool, "msdUUID": blankID, "masterVersion": 0})
	h.do("detachStorageDomain", arguments{"sdUUID": domains[1], "spUUID": h.pool})
	h.do("formatStorageDomain", arguments{"sdUUID": domains[1]})
	require.NoDirExists(t, dirOf(image), "formatStorageDomain")
	require.Empty(t, newer(before), "formatStorageDomain")

	old, young := killed(domains[0]), killed(domains[0])
	long := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(filepath.Join(dirOf(old), "log"), long, long))
	require.NoError(t, h.proc.Signal(syscall.SIGTERM))
	require.NoError(t, h.proc.Wait(t, stopLimit))
	h.start()
	require.NoDirExists(t, dirOf(old))
	require.DirExists(t, dirOf(young), "it may be starting")
	require.Len(t, newer(before), 2, "who opens the volumes next needs them")
}
