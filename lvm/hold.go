package lvm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// A Hold says that its owner has a volume. Whoever writes to it must stop at
// once when Lost is closed.
type Hold interface {
	Lost() <-chan struct{}
	Release() error
}

// Locks are the holds of volumes on one host: an open file description lock on a
// file for each volume, in one directory that everybody uses. Writers exclude
// everybody, readers exclude writers. The manager of the group takes a volume
// before it removes, reduces or moves it. A lock ends with the process that has
// it and survives every other one, so that a manager which has just started
// knows no less than the one before it.
type Locks struct{ Dir string }

// Holding is what a hold excludes.
type Holding int

const (
	// Writing excludes everybody.
	Writing Holding = iota
	// Reading excludes writers.
	Reading
)

// A fileHold is a lock on a file of this host. It is never lost: the kernel keeps
// it as long as the description is open.
type fileHold struct{ f *os.File }

func (h *fileHold) Lost() <-chan struct{} { return nil }
func (h *fileHold) Release() error        { return unlockFile(h.f) }

// Hold takes the volume with that UUID. The error wraps block.ErrInUse and says
// who has it.
func (l Locks) Hold(uuid string, how Holding) (Hold, error) {
	if uuid == "" || strings.ContainsAny(uuid, "/\x00") || uuid[0] == '.' {
		return nil, fmt.Errorf("hold volume %q: expected a UUID", uuid)
	}
	if err := os.MkdirAll(l.Dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(l.Dir, uuid)
	for {
		f, err := lockFile(path, how)
		if err != nil {
			return nil, fmt.Errorf("hold volume %s: %w", uuid, err)
		}
		// Whoever removes a volume removes its lock file, too: a lock on a file
		// without a name excludes nobody.
		if sameFile(f, path) {
			return &fileHold{f}, nil
		}
		_ = unlockFile(f) // it was opened a moment too early
	}
}

// Removed takes the lock file of a volume away, which the caller holds and has
// removed.
func (l Locks) Removed(uuid string) error {
	err := os.Remove(filepath.Join(l.Dir, uuid))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func lockFile(path string, how Holding) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o660)
	if err != nil {
		return nil, err
	}
	kind := int16(unix.F_WRLCK)
	if how == Reading {
		kind = unix.F_RDLCK
	}
	fl := unix.Flock_t{Type: kind, Whence: io.SeekStart}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &fl)
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
		who, _ := io.ReadAll(io.LimitReader(f, 256)) // for the reader of the error only
		return nil, errors.Join(fmt.Errorf("%s: %w by %s", path, block.ErrInUse, holderText(string(who))), f.Close())
	case err != nil:
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	case how == Writing:
		if err := noteHolder(f); err != nil {
			return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), unlockFile(f))
		}
	}
	return f, nil
}

// unlockFile gives a lock up and closes its file. The lock is the description's, of which a
// child that was begun a moment ago has a copy until it runs its program.
func unlockFile(f *os.File) error {
	fl := unix.Flock_t{Type: unix.F_UNLCK, Whence: io.SeekStart}
	return errors.Join(unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &fl), f.Close())
}

func noteHolder(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt(fmt.Appendf(nil, "%s (pid %d)\n", filepath.Base(os.Args[0]), os.Getpid()), 0)
	return err
}

// holderText is what the last writer noted; readers note nothing, so that it may
// be somebody who has gone.
func holderText(s string) string {
	if s = strings.TrimSpace(s); s != "" {
		return s + ", or by readers"
	}
	return "another process"
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}
