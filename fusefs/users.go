//go:build linux

package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// users names who has something of the mount at target open: processes, as far
// as they are visible from here, and loop devices. Their links in /proc are read
// and never followed, so nothing is asked of a mount that does not answer.
func users(target string) string {
	var names []string
	add := func(name string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file") // the pattern is right
	for _, l := range loops {
		if b, err := os.ReadFile(l); err == nil && within(strings.TrimSuffix(string(b), "\n"), target) {
			add("/dev/" + filepath.Base(filepath.Dir(filepath.Dir(l))))
		}
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/[0-9]*") // the same
	cwds, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, l := range append(links, cwds...) {
		if path, err := os.Readlink(l); err == nil && within(path, target) {
			add(process(strings.Split(l, "/")[2]))
		}
	}
	if len(names) == 0 {
		return "somebody who is not visible from here"
	}
	return strings.Join(names, ", ")
}

// within reports whether path is target or lies below it.
func within(path, target string) bool {
	return path == target || strings.HasPrefix(path, strings.TrimSuffix(target, "/")+"/")
}

func process(pid string) string {
	comm, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
	if err != nil {
		comm = []byte("a process")
	}
	return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), pid)
}

// dying reports whether a thread has been killed, or is gone. A signal whose
// default is to end the process counts: the kernel turns it into SIGKILL for
// every thread.
func dying(thread uint32) bool {
	if thread == 0 {
		return false // not visible from here
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return os.IsNotExist(err)
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		if key != "SigPnd" && key != "ShdPnd" {
			continue
		}
		var pending uint64
		if _, err := fmt.Sscanf(strings.TrimSpace(value), "%x", &pending); err == nil && pending&sigkillBit != 0 {
			return true
		}
	}
	return false
}

// sigkillBit is SIGKILL in the sets of signals in /proc/PID/status.
const sigkillBit = 1 << 8
