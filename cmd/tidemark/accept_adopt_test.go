//go:build linux

package main_test

import (
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm"
)

// A manager that takes a pool over on another socket has the servers that the one before
// has started: they get space from it, and write to the snapshots that it makes.
func TestManagerElsewhere(t *testing.T) {
	h := newVDSMHost(t)
	dir := h.newDir("a")
	domain := h.newDomains(dir)[0]
	image, leaf := uuid.NewString(), uuid.NewString()
	h.run("createVolume", h.newVolume(domain, image, leaf, gib, nil))
	uri, _ := h.prepare(domain, image)
	runQEMUIO(t, uri, "raw", "write -P 1 0 1M", "flush")

	h.proc.Kill()
	h.socket = filepath.Join(h.dir, "other")
	h.args = []string{"--root", h.root, "--state", filepath.Join(h.dir, "otherstate"), "--socket", h.socket}
	h.client = spm.NewClient(h.socket)
	t.Cleanup(func() { _ = h.client.Close() })
	h.start()
	require.NoError(t, h.connect(dir))
	h.manage(domain)
	again, _ := h.prepare(domain, image)
	require.Equal(t, uri, again)
	runQEMUIO(t, uri, "raw", "write -P 2 1M 300M", "flush", "read -P 2 300M 1M")

	h.run("createVolume", h.newVolume(domain, image, uuid.NewString(), 0, arguments{"size": "0", "srcImgUUID": image, "srcVolUUID": leaf}))
	runQEMUIO(t, uri, "raw", "write -P 3 400M 200M", "flush", "read -P 1 0 1M", "read -P 3 599M 1M")
	h.teardown(domain, image)
}
