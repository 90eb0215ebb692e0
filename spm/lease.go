package spm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// A Lease is the right to change a domain, which nobody else has as long as it is
// not lost. The lease of a pool is that of its master.
type Lease interface {
	// Lost is closed when the right is lost; it may be nil, for never.
	Lost() <-chan struct{}
	Release() error
}

// A LeaseOf says what a lease is for.
type LeaseOf struct {
	Domain uuid.UUID // uuid.Nil: one that is about to be made
	Dir    string    // that everybody on this host uses for what the domain lies in
}

// Leases gives leases. An error that wraps block.ErrInUse names who has it.
type Leases interface {
	Acquire(ctx context.Context, of LeaseOf) (Lease, error)
}

// localLeases are for one host: a lock in the directory.
type localLeases struct{}

func (localLeases) Acquire(_ context.Context, of LeaseOf) (Lease, error) {
	l, err := lockDir(of.Dir, "pool is managed by", "stop that one first, or use its socket")
	if err != nil { // an interface that holds a nil pointer is not nil
		return nil, err
	}
	return l, nil
}

// A fileLock excludes a second manager of the same domain. The kernel drops it
// with the process, and no program that it runs inherits it.
type fileLock struct{ f *os.File }

// lockDir takes the lock of dir. If there is a holder, is says what that is, do what to do,
// and the error names it between them.
func lockDir(dir, is, do string) (*fileLock, error) {
	path := filepath.Join(dir, "spm.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, modeFile)
	if err != nil {
		return nil, err
	}
	holder, err := flockAfterTheDead(f)
	if errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("%s: %s %s: %s: %w", dir, is, holderText(string(holder)), do, block.ErrInUse)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	l := &fileLock{f}
	if err := errors.Join(f.Truncate(0), writeAt(f, fmt.Sprintf("process %d\n", os.Getpid()))); err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", path, err), l.Release())
	}
	return l, nil
}

// dyingPatience is how long somebody who was killed may take to go: a write that the
// kernel has begun for him is waited for first, and until then his locks stay.
const dyingPatience = 10 * time.Second

// flockAfterTheDead takes the lock of a file, or says what the holder has written in
// it. It waits for a holder who was killed and is not gone yet.
func flockAfterTheDead(f *os.File) (holder []byte, err error) {
	for end := time.Now().Add(dyingPatience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		holder, _ := io.ReadAll(io.NewSectionReader(f, 0, 256))
		var pid int
		if _, perr := fmt.Sscanf(string(holder), "process %d", &pid); perr != nil || !dying(pid) || time.Now().After(end) {
			return holder, err
		}
	}
}

// dying reports whether a process was killed, or has ended, but for what the kernel
// does for it: proc(5), status.
func dying(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) // it has gone between two looks
	}
	return dyingStatus(string(b))
}

// dyingStatus is dying, of the text of a status: a leader that is a zombie, or has
// SIGKILL pending.
func dyingStatus(status string) bool {
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "State":
			if strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X") {
				return true
			}
		case "SigPnd", "ShdPnd":
			if set, err := strconv.ParseUint(value, 16, 64); err == nil && set>>(unix.SIGKILL-1)&1 == 1 {
				return true
			}
		}
	}
	return false
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func holderText(s string) string {
	if s = strings.TrimSpace(s); s != "" {
		return s
	}
	return "another process"
}

// Lost is nil: the kernel keeps the lock for as long as the process lives.
func (l *fileLock) Lost() <-chan struct{} { return nil }

// Release gives the lock up, also for a child that was begun a moment ago and has not run
// its program yet: until then it has a copy of the descriptor.
func (l *fileLock) Release() error {
	return errors.Join(unix.Flock(int(l.f.Fd()), unix.LOCK_UN), l.f.Close())
}
