//go:build linux

package main_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/internal/testenv/guest/wire"
)

// On a host with device-mapper, which is a guest here, an image on a volume group is
// served to the kernel's own NBD client, which writes to a file system while a snapshot
// of the image is made and merged again. Each volume is active while it is of the served
// chain, and grows. After a reboot the image is served again, and the files are there; on
// the host below, too.
func TestGuestLiveOnVolumeGroup(t *testing.T) {
	workspace(t)
	needMountedFiles(t)
	seed, _ := testenv.Seed(t)
	trees := map[string]wire.Tree{}
	for i, dir := range []string{"before", "snapshot", "merged"} {
		trees[dir] = wire.Tree{Seed: seed + uint64(i), Files: 50, Bytes: 96 * mib, Sync: 10, Writers: 2}
	}
	group := &groupPool{name: "guestlive", devices: []*testenv.LoopDevice{testenv.Loop(t, 2*gib), testenv.Loop(t, 2*gib)}}
	t.Cleanup(group.tidyUp)

	h := startGroupGuest(t, group)
	h.lvm("vgcreate", "-qq", "-s", "128m", "--metadatasize", "128m", h.group, "/dev/vda", "/dev/vdb")
	h.manage()
	h.tidemark("volume", "create", "--size", "10G", "disk")
	h.connect()
	h.Run("mkfs.ext4", "-q", "/dev/nbd0")
	h.Run("mount", "/dev/nbd0", "/mnt")
	h.Fill("/mnt/before", trees["before"], nil)
	base := h.leaf()
	h.requireGrown(base)

	h.tidemark("volume", "snapshot", "disk", "--wait")
	leaf := h.leaf()
	require.NotEqual(t, base, leaf)
	h.Fill("/mnt/snapshot", trees["snapshot"], nil)
	h.Run("sync")
	h.requireGrown(leaf)

	h.tidemark("volume", "merge", "disk", "--wait")
	require.Equal(t, base, h.leaf())
	testenv.Eventually(t, startLimit, "the merged volume is active no more", func() bool {
		return !strings.Contains(h.Run("dmsetup", "ls"), dmName(leaf))
	})
	h.Fill("/mnt/merged", trees["merged"], nil)
	h.requireGrown(base)
	h.Run("umount", "/mnt")
	h.Do(wire.Disconnect, "/dev/nbd0")
	h.PowerOff()
	require.NotContains(t, h.Console(), "ALARM")

	h = startGroupGuest(t, group)
	h.manage()
	h.connect()
	h.Run("e2fsck", "-fn", "/dev/nbd0")
	h.Do(wire.Disconnect, "/dev/nbd0")
	h.tidemark("image", "teardown", "disk")
	require.NotContains(t, h.Run("dmsetup", "ls"), dmName(base), "after the teardown")
	h.PowerOff()

	image := group.copyOf(t, base)
	group.lvm(t, "vgck", group.name)
	requireClean(t, image)
	withFiles(t, func(dir string) {
		for name, tree := range trees {
			requireTree(t, filepath.Join(dir, name), tree)
		}
	}, image)
}

const guestSocket = "/run/spm.sock"

// manage starts the manager of the group.
func (h *guestHost) manage() {
	h.t.Helper()
	h.Start("tidemark", "spm", "--vg", h.group, "--devices", "/dev/vda,/dev/vdb", "--socket", guestSocket)
	h.Do(wire.Await, guestSocket)
}

// tidemark asks the manager by the command line.
func (h *guestHost) tidemark(args ...string) string {
	h.t.Helper()
	return h.Run("tidemark", append(args, "--spm", guestSocket)...)
}

// connect lets the kernel have the disk.
func (h *guestHost) connect() {
	h.t.Helper()
	_, socket, found := strings.Cut(strings.TrimSpace(h.tidemark("image", "prepare", "disk")), "socket=")
	require.True(h.t, found)
	h.Do(wire.Connect, "/dev/nbd0", "unix", socket, "", "2")
}

// leaf is the volume that is called by the name.
func (h *guestHost) leaf() string {
	h.t.Helper()
	var v struct {
		Volume string `json:"volume_uuid"`
	}
	require.NoError(h.t, json.Unmarshal([]byte(h.tidemark("volume", "info", "disk", "--output=json")), &v))
	require.NotEmpty(h.t, v.Volume)
	return v.Volume
}

// requireGrown requires that a volume has been extended, and that device-mapper maps all
// that the group says.
func (h *guestHost) requireGrown(lv string) {
	h.t.Helper()
	var size int64
	testenv.Eventually(h.t, 20*time.Second, "what device-mapper maps is what the group says", func() bool {
		_, err := fmt.Sscan(h.lvm("lvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "lv_size", h.group+"/"+lv), &size)
		require.NoError(h.t, err)
		return size == h.mapped(lv)
	})
	require.Greater(h.t, size, int64(chunk), "volume %s has not been extended", lv)
}
