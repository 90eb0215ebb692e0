package spm

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

// A poolLock excludes a second manager of the same directory. The kernel drops
// it with the process, and a child never inherits it.
type poolLock struct{ f *os.File }

// lockPool takes the lock of dir, and names the holder if there is one.
func lockPool(dir string) (*poolLock, error) {
	path := filepath.Join(dir, "spm.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, modeFile)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, _ := io.ReadAll(io.LimitReader(f, 256))
		f.Close()
		return nil, fmt.Errorf("%s: pool is managed by %s: stop that one first, or use its socket: %w",
			dir, holderText(string(holder)), block.ErrInUse)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, fmt.Sprintf("process %d\n", os.Getpid()))); err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return &poolLock{f}, nil
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

func (l *poolLock) release() error { return l.f.Close() }
