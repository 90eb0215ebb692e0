//go:build linux

package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
)

// The kernel knows of every thread of the program that shows a disk to its own
// host that memory for it must not wait for that disk (PR_SET_IO_FLUSHER).
func TestMountIsAnIOFlusher(t *testing.T) {
	testenv.Need(t, "root")
	testenv.Need(t, "fuse")
	needResource(t)
	dir := t.TempDir()
	image, target := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "disk.raw")
	ok(t, "create", image, "64M")
	require.NoError(t, os.WriteFile(target, nil, 0o600))
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
	p := testenv.Start(t, program(t, "mount", image, target))
	testenv.Eventually(t, startLimit, "the file is there", func() bool { return strings.Contains(p.Output(), "file is ready") })
	testenv.Run(t, "dd", "if=/dev/zero", "of="+target, "bs=1M", "count=16", "conv=notrunc,fsync")

	// From include/linux/sched.h: what the two parts of it are to a thread.
	const memallocNoIO, localThrottle = 0x00080000, 0x00100000
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Cmd.Process.Pid))
	require.NoError(t, err)
	require.Greater(t, len(threads), 2)
	for _, path := range threads {
		stat, err := os.ReadFile(path)
		require.NoError(t, err)
		_, after, found := strings.Cut(string(stat), ") ")
		require.True(t, found, string(stat))
		flags, err := strconv.ParseUint(strings.Fields(after)[6], 10, 64) // field 9 of proc_pid_stat(5)
		require.NoError(t, err)
		require.EqualValues(t, memallocNoIO|localThrottle, flags&(memallocNoIO|localThrottle), path)
	}
	testenv.Run(t, "umount", target)
	require.NoError(t, p.Wait(t, stopLimit), p.Output())
}

// needResource skips where root may not do what the kernel is told: also in CI,
// because containers and virtual machines keep this capability from root.
func needResource(t *testing.T) {
	t.Helper()
	var have [2]unix.CapUserData
	require.NoError(t, unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0]))
	if have[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		t.Skip("missing: CAP_SYS_RESOURCE, without which the kernel is not told")
	}
}
