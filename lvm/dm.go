package lvm

import (
	"context"
	"os"
	"path/filepath"
)

// DeviceMapper reports whether this host has device-mapper, and this process may
// use it.
func DeviceMapper() bool {
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return false // the node may be there on a kernel that knows no device-mapper
	}
	_ = f.Close() // only opened to see that it can be
	return true
}

// DevicePath is where device-mapper shows a volume that is active.
func DevicePath(group, volume string) string { return filepath.Join("/dev", group, volume) }

// Activate makes a volume appear at its DevicePath on this host.
func (t *Tool) Activate(ctx context.Context, group, volume string) error {
	return t.activation(ctx, "lvchange", "-qq", "-ay", group+"/"+volume)
}

// Deactivate takes it away again. It fails while somebody has it open.
func (t *Tool) Deactivate(ctx context.Context, group, volume string) error {
	return t.activation(ctx, "lvchange", "-qq", "-an", group+"/"+volume)
}

// Refresh makes device-mapper take over the size that the metadata says. Who has
// the volume open sees it at once.
func (t *Tool) Refresh(ctx context.Context, group, volume string) error {
	return t.activation(ctx, "lvchange", "-qq", "--refresh", group+"/"+volume)
}
