//go:build linux

package main_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
)

// A file system that others have filled to the last byte is told as full, and images can
// be removed from it.
func TestFullFileSystem(t *testing.T) {
	h := newVDSMHost(t)
	h.capacity = "0"
	dir := h.newDir("a")
	if err := unix.Mount("none", string(dir), "tmpfs", 0, "size=160m"); err != nil {
		testenv.Missing(t, "mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		h.proc.Kill()
		require.NoError(t, unix.Unmount(string(dir), 0))
	})
	domains := h.newDomains(dir)
	image, leaf := uuid.NewString(), uuid.NewString()
	h.run("createVolume", h.newVolume(domains[0], image, leaf, storySize, nil))
	f, err := os.Create(filepath.Join(string(dir), "full"))
	require.NoError(t, err)
	for piece := int64(16 << 20); piece > 0; piece /= 2 {
		for err == nil {
			_, err = f.Write(make([]byte, piece))
		}
		require.ErrorIs(t, err, unix.ENOSPC)
		err = nil
	}
	require.NoError(t, f.Close())

	var r struct {
		Stats struct {
			Free  string `json:"diskfree"`
			Level string `json:"level"`
		} `json:"stats"`
	}
	require.NoError(t, h.ask("getStorageDomainStats", arguments{"sdUUID": domains[0]}, &r))
	require.Equal(t, "0", r.Stats.Free)
	require.Equal(t, "critical", r.Stats.Level)
	priority := h.at(domains[0], image, leaf)
	priority["priority"] = 3
	h.do("setVolumePriority", priority)
	h.run("deleteImage", arguments{"sdUUID": domains[0], "spUUID": h.pool, "imgUUID": image})
	h.do("spmStop", arguments{"spUUID": h.pool})
}
