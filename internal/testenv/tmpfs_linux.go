package testenv

import (
	"fmt"
	"syscall"
	"testing"
)

// Tmpfs mounts a file system of size bytes and returns its directory; it is gone
// when the test ends. It takes root, and the right to mount.
func Tmpfs(t testing.TB, size int) string {
	t.Helper()
	Need(t, "root")
	dir := t.TempDir()
	if err := syscall.Mount("tidemark", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		Missing(t, "the right to mount a tmpfs (%v); in a container: CAP_SYS_ADMIN", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}
