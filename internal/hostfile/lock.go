//go:build linux

package hostfile

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// QEMU's protocol, which this file speaks. Every permission has a number and
// two bytes of the file. Who uses the permission holds a read lock of an open
// file description (F_OFD_SETLK) on the first; who does not let others use it
// holds one on the second. Nobody ever takes a write lock, so taking cannot
// fail; a conflict is found by testing, after one's own locks are held, whether
// anybody has the opposite byte (F_OFD_GETLK). Two that come at the same time
// may both give way, but never both get in.
//
//	byte  100              101    102              103
//	uses  consistent read  write  write unchanged  resize
//
//	byte  200              201    202              203
//	refuses others the same four
//
// Seen with QEMU 7.2: a writer of a QCOW2 image holds 100, 101, 103 and 201,
// 203; a reader 100 and 201, 203; a reader with -U only 100.
const (
	usesBase    = 100
	refusesBase = 200
)

// The permissions, by their number.
const (
	permRead = iota
	permWrite
	permWriteUnchanged
	permResize
	permCount
)

var permNames = [permCount]string{"read", "write", "rewrite", "resize"}

// Lock says what a File claims for itself and refuses to others.
type Lock int

const (
	// LockAuto: a writer excludes every other writer and every reader that
	// wants the content to stay; a reader excludes writers.
	LockAuto Lock = iota
	// LockShared: a reader that puts up with a writer (QEMU's -U,
	// force-share). What it reads may be inconsistent.
	LockShared
	// LockNone: no lock at all.
	LockNone
)

// claims are the numbers of the permissions that a File uses and refuses.
type claims struct{ uses, refuses []int }

// claimsOf is the table of who locks what.
func claimsOf(l Lock, readOnly bool) claims {
	switch {
	case l == LockNone:
		return claims{}
	case l == LockShared:
		return claims{uses: []int{permRead}}
	case readOnly:
		return claims{uses: []int{permRead}, refuses: []int{permWrite, permResize}}
	default:
		return claims{uses: []int{permRead, permWrite, permResize}, refuses: []int{permWrite, permResize}}
	}
}

// lock takes the locks and makes sure that nobody's contradict them. They end with
// unlock, also when lock fails.
func (f *File) lock(l Lock) error {
	if l == LockShared && !f.readOnly {
		return fmt.Errorf("open %s: a writer cannot share the file with another one: %w", f.path, block.ErrUnsupported)
	}
	c := claimsOf(l, f.readOnly)
	conflict := ""
	err := f.control(func(fd int) (err error) {
		if err = takeAll(fd, c); err == nil {
			conflict, err = findConflict(fd, c)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("open %s: its file system cannot lock it; open it without a lock if nobody else has it open: %w", f.path, err)
	}
	if conflict == "" {
		return nil
	}
	return f.inUse(conflict)
}

// unlock gives the locks up, before the descriptor is closed. They are the description's,
// and for a moment that may be another process's, too: a child that this one has begun has
// a copy of every descriptor until it runs its program.
func unlock(fd int) error {
	fl := unix.Flock_t{Type: unix.F_UNLCK, Whence: unix.SEEK_SET, Start: usesBase, Len: refusesBase + permCount - usesBase}
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &fl)
}

// inUse is the error that names the holder and what can be done.
func (f *File) inUse(conflict string) error {
	how := "for writing"
	if f.readOnly {
		how = "for reading"
	}
	st, err := f.f.Stat()
	holder := unknownHolder
	if err == nil {
		holder = holders(st, os.Getpid(), f.fd())
	}
	return fmt.Errorf("open %s %s: %w by %s, which %s; stop it first", f.path, how, block.ErrInUse, holder, conflict)
}

func (f *File) fd() (fd int) {
	fd = -1
	_ = f.control(func(n int) error { fd = n; return nil }) // closed: no descriptor
	return fd
}

func takeAll(fd int, c claims) error {
	for _, i := range c.uses {
		if err := readLock(fd, usesBase+i); err != nil {
			return err
		}
	}
	for _, i := range c.refuses {
		if err := readLock(fd, refusesBase+i); err != nil {
			return err
		}
	}
	return nil
}

// findConflict says what another description's locks do to c, "" for nothing.
func findConflict(fd int, c claims) (string, error) {
	for _, i := range c.refuses {
		if held, err := lockedByOthers(fd, usesBase+i, 1); err != nil || held {
			return "may " + permNames[i] + " it", err
		}
	}
	for _, i := range c.uses {
		if held, err := lockedByOthers(fd, refusesBase+i, 1); err != nil || held {
			return "does not let others " + permNames[i] + " it", err
		}
	}
	return "", nil
}

func readLock(fd, off int) error {
	fl := unix.Flock_t{Type: unix.F_RDLCK, Whence: unix.SEEK_SET, Start: int64(off), Len: 1}
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &fl)
}

func lockedByOthers(fd, off, n int) (bool, error) {
	fl := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET, Start: int64(off), Len: int64(n)}
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &fl)
	return err == nil && fl.Type != unix.F_UNLCK, err
}

// Holder says who has path open in a way that this package or QEMU would
// respect, "" if nobody: "qemu-nbd (pid 71)". It takes no lock, so the answer
// may be old when it arrives; to be sure, open the file for writing instead.
func Holder(path string) (string, error) {
	f, err := Open(path, Options{ReadOnly: true, Lock: LockNone})
	if err != nil {
		return "", err
	}
	defer f.Close()
	held := false
	err = f.control(func(fd int) error {
		for _, base := range []int{usesBase, refusesBase} {
			h, err := lockedByOthers(fd, base, permCount)
			if held = held || h; err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("ask who uses %s: %w", path, err)
	}
	if !held {
		return "", nil
	}
	st, err := f.f.Stat()
	if err != nil {
		return "", err
	}
	return holders(st, os.Getpid(), f.fd()), nil
}

// isLockByte reports whether a lock on [first, last] touches QEMU's bytes.
func isLockByte(first, last int64) bool {
	for _, base := range []int64{usesBase, refusesBase} {
		if first < base+permCount && last >= base {
			return true
		}
	}
	return false
}

var errNoRange = errors.New("no range")

// A heldLock is a lock on the bytes [first, last] of a file.
type heldLock struct {
	inode       uint64
	first, last int64
}

// parseLock reads one "lock:" line of /proc/PID/fdinfo/N:
//
//	lock:	1: OFDLCK ADVISORY  READ -1 fe:00:9977974 100 101
func parseLock(line string) (l heldLock, err error) {
	rest, ok := strings.CutPrefix(line, "lock:")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 8 {
		return l, errNoRange
	}
	file := fields[5]
	if _, err := fmt.Sscan(file[strings.LastIndexByte(file, ':')+1:], &l.inode); err != nil {
		return l, errNoRange
	}
	if _, err := fmt.Sscan(fields[6], &l.first); err != nil {
		return l, errNoRange
	}
	if l.last = 1<<63 - 1; fields[7] == "EOF" {
		return l, nil
	}
	if _, err := fmt.Sscan(fields[7], &l.last); err != nil {
		return l, errNoRange
	}
	return l, nil
}
