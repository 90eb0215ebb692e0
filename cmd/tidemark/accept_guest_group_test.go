//go:build linux

package main_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/internal/testenv/guest"
	"tidemark/internal/testenv/guest/wire"
	"tidemark/lvm"
)

// noUdev are the settings of commands by hand where nobody answers for udev.
const noUdev = `devices{hints="none"} activation{udev_sync=0 udev_rules=0 monitoring=0 retry_deactivation=0} backup{backup=0 archive=0}`

// On a host with device-mapper, which is a guest here, a manager and a server share
// a volume group of two disks: the volume is active and grows under the kernel's own
// NBD client, with a refresh for each extension, and the kernel keeps it from being
// removed. On the host below, the disks have what was written.
func TestGuestOnVolumeGroup(t *testing.T) {
	workspace(t)
	needMountedFiles(t)
	seed, _ := testenv.Seed(t)
	tree := wire.Tree{Seed: seed, Files: 150, Bytes: 96 * mib, Sync: 10, Writers: 2}
	group := &groupPool{name: "guestpool", devices: []*testenv.LoopDevice{testenv.Loop(t, 2*gib), testenv.Loop(t, 2*gib)}}
	t.Cleanup(group.tidyUp)
	h := startGroupGuest(t, group)
	h.lvm("vgcreate", "-qq", "-s", "128m", "--metadatasize", "128m", h.group, "/dev/vda", "/dev/vdb")
	manager := h.Start("tidemark", "spm", "--vg", h.group, "--devices", "/dev/vda,/dev/vdb", "--socket", "/run/spm.sock")
	h.Do(wire.Await, "/run/spm.sock")
	h.Run("tidemark", "volume", "create", "--spm", "/run/spm.sock", "--size", "10G", "disk")
	server := h.Start("tidemark", "nbd", "-t", "-k", "/run/nbd.sock", "--spm", "/run/spm.sock", "disk")
	h.Do(wire.Await, "/run/nbd.sock")
	lv, before := h.volume()

	h.Do(wire.Connect, "/dev/nbd0", "unix", "/run/nbd.sock", "", "2")
	h.Run("mkfs.ext4", "-q", "/dev/nbd0")
	h.Run("mount", "/dev/nbd0", "/mnt")
	h.Fill("/mnt", tree, nil)
	h.Run("umount", "/mnt")
	h.Run("e2fsck", "-fn", "/dev/nbd0")
	h.Do(wire.Disconnect, "/dev/nbd0")
	after := before
	testenv.Eventually(t, startLimit, "what device-mapper maps is what the group says", func() bool {
		_, after = h.volume()
		return after == h.mapped(lv)
	})
	t.Logf("the volume grew from %d to %d MiB", before/mib, after/mib)
	require.GreaterOrEqual(t, after, before+chunk)
	why, failed := h.Try("lvm", h.byHand("lvremove", "-f", h.group+"/"+lv)...)
	require.NotEmpty(t, failed, "lvremove of a volume that is open")
	require.Contains(t, why, "in use")

	h.Stop(server)
	require.NotContains(t, h.Run("dmsetup", "ls"), dmName(lv), "after the server's end")
	h.Stop(manager)
	require.Contains(t, h.Run("dmsetup", "ls"), "No devices found", "after the manager's end")
	h.PowerOff()
	require.NotContains(t, h.Console(), "ALARM")

	image := group.copyOf(t, lv)
	group.lvm(t, "vgck", group.name)
	requireClean(t, image)
	requireFiles(t, tree, image)
}

// A guestHost is a guest that is a host of a pool on a volume group.
type guestHost struct {
	*guest.Guest
	t     *testing.T
	group string
}

// startGroupGuest boots a guest that has the devices of a group, which may have been
// another guest's before.
func startGroupGuest(t *testing.T, group *groupPool) *guestHost {
	t.Helper()
	binary, err := built()
	require.NoError(t, err)
	options := guest.Options{
		Modules:  []string{"dm-mod", "nbd"},
		Programs: append([]string{"lvm", "dmsetup", "e2fsck"}, guestPrograms...),
		Files:    map[string]string{"/bin/tidemark": fmt.Sprintf("/proc/self/fd/%d", binary.Fd())},
		Memory:   1024,
	}
	for i, d := range group.devices {
		options.Args = append(options.Args,
			"-blockdev", fmt.Sprintf("driver=file,node-name=pv%d,filename=%s,discard=unmap", i, d.File),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=pv%d", i))
	}
	return &guestHost{t: t, Guest: guest.Start(t, options), group: group.name}
}

func (h *guestHost) byHand(args ...string) []string {
	return append([]string{args[0], "--devices", "/dev/vda,/dev/vdb", "--config", noUdev}, args[1:]...)
}

// lvm runs a command by hand.
func (h *guestHost) lvm(args ...string) string {
	h.t.Helper()
	return h.Run("lvm", h.byHand(args...)...)
}

// volume is the name and the size of the volume, which must be active; the pool
// has another one for its metadata.
func (h *guestHost) volume() (lv string, size int64) {
	h.t.Helper()
	out := h.lvm("lvs", "--noheadings", "--units", "b", "--nosuffix", "-S", "lv_name!=metadata", "-o", "lv_name,lv_active,lv_size", h.group)
	var active string
	_, err := fmt.Sscan(out, &lv, &active, &size)
	require.NoError(h.t, err, out)
	require.Equal(h.t, "active", active)
	return lv, size
}

// dmName is what device-mapper calls a volume, behind the group and a dash.
func dmName(lv string) string { return strings.ReplaceAll(lv, "-", "--") }

// mapped is how many bytes device-mapper maps for a volume, linearly.
func (h *guestHost) mapped(lv string) (bytes int64) {
	h.t.Helper()
	for line := range strings.Lines(h.Run("dmsetup", "table", lvm.DevicePath(h.group, lv))) {
		var start, sectors int64
		_, err := fmt.Sscanf(line, "%d %d linear", &start, &sectors)
		require.NoError(h.t, err, line)
		bytes += sectors * 512
	}
	return bytes
}
