//go:build linux

package hostfile

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// unknownHolder is said when the holder is not to be seen: another user's
// process, another PID namespace, another host.
const unknownHolder = "a process that is not visible from here (another user's, container's or host's)"

// holders names the processes that hold one of QEMU's locks on the file, by
// looking at the descriptors of every process. The caller's own descriptor
// (selfPid, selfFd) does not count.
//
// What another descriptor is open on is asked only when its locks are on a file
// of the same inode number: the question goes to that file's file system, which
// may never answer (NFS whose server is gone, a FUSE mount that hangs, or is
// served by this very process).
func holders(file os.FileInfo, selfPid, selfFd int) string {
	return holdersBy(os.Stat, file, selfPid, selfFd)
}

// holdersBy is holders with another stat.
func holdersBy(stat func(string) (os.FileInfo, error), file os.FileInfo, selfPid, selfFd int) string {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	if err != nil {
		return unknownHolder
	}
	self, ok := file.Sys().(*syscall.Stat_t)
	if !ok {
		return unknownHolder
	}
	var names []string
	for _, fd := range fds {
		proc, n := filepath.Split(fd)
		proc = filepath.Dir(filepath.Clean(proc))
		pid := filepath.Base(proc)
		if pid == strconv.Itoa(selfPid) && n == strconv.Itoa(selfFd) {
			continue
		}
		// What is told of a poller asks all that it polls, of which one may hang.
		if to, err := os.Readlink(fd); err != nil || !strings.HasPrefix(to, "/") {
			continue
		}
		if !holdsLock(filepath.Join(proc, "fdinfo", n), self.Ino) {
			continue
		}
		st, err := stat(fd) // gone, not allowed or something else: not it
		if err != nil || !os.SameFile(st, file) {
			continue
		}
		if name := processName(proc, pid); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return unknownHolder
	}
	return strings.Join(names, " and ")
}

// holdsLock reports whether the descriptor behind fdinfo holds one of QEMU's
// locks on a file with this inode number.
func holdsLock(fdinfo string, inode uint64) bool {
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if l, err := parseLock(line); err == nil && l.inode == inode && isLockByte(l.first, l.last) {
			return true
		}
	}
	return false
}

func processName(proc, pid string) string {
	comm, err := os.ReadFile(filepath.Join(proc, "comm"))
	if err != nil {
		comm = []byte("a process")
	}
	name := strings.TrimSpace(string(comm))
	if self, err := os.Readlink(filepath.Join(proc, "exe")); err == nil && name == "exe" { // started as /proc/self/exe
		name = filepath.Base(strings.TrimSuffix(self, " (deleted)"))
	}
	return fmt.Sprintf("%s (pid %s)", name, pid)
}
