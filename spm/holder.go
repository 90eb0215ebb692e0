package spm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// A Holder takes a volume so that nobody else can open it. The manager does so
// before it removes one: who holds a volume is decided by locks that outlive the
// manager, never by what it remembers.
type Holder interface {
	// Hold takes the volume at path until release is called, or fails with an
	// error that wraps block.ErrInUse and names who has it open.
	Hold(path string) (release func() error, err error)
}

// QEMU keeps its permissions as open-file-description locks on single bytes of
// the image: what a process uses from byte 100 on, what it forbids others from
// byte 200 on. A write lock on the range excludes whoever has either.
const (
	lockFirst = 100
	lockEnd   = 264
)

// imageLocks is the Holder that sees QEMU's locks and those of whoever follows
// its protocol.
type imageLocks struct{}

func (imageLocks) Hold(path string) (func() error, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: lockFirst, Len: lockEnd - lockFirst}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock)
	if err == nil {
		return f.Close, nil
	}
	f.Close()
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("%s is open in %s: %w", path, whoHas(path), block.ErrInUse)
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// whoHas names the processes that have a file open, as far as /proc shows them.
// It compares links and stats nothing, which could hang on somebody's dead mount.
func whoHas(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	var who []string
	seen := map[string]bool{}
	for _, fd := range fds {
		pid := strings.Split(fd, "/")[2]
		if seen[pid] {
			continue
		}
		if got, err := os.Readlink(fd); err == nil && got == path {
			seen[pid] = true
			who = append(who, processName(pid))
		}
	}
	if len(who) == 0 {
		return "another process"
	}
	return strings.Join(who, ", ")
}

func processName(pid string) string {
	if pid == strconv.Itoa(os.Getpid()) {
		return "this process"
	}
	name, err := os.ReadFile(filepath.Join("/proc", pid, "comm"))
	if err != nil {
		return "process " + pid
	}
	return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), pid)
}
