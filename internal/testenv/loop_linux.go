package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A LoopDevice is a block device over a sparse file. The kernel takes it away
// when its last user closes it, so it does not outlive the test's process.
type LoopDevice struct {
	Path string
	// File is what lies below.
	File string
	f    *os.File
}

// Loop makes a loop device of size bytes that ends with the test. It skips the
// test where there are none.
func Loop(t testing.TB, size int64) *LoopDevice {
	t.Helper()
	Need(t, "root")
	Need(t, "loop")
	path := filepath.Join(t.TempDir(), "loop.img")
	below, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(below.Truncate(size), below.Close())
	}
	if err != nil {
		t.Fatalf("make a file of %d bytes: %v", size, err)
	}
	return LoopOver(t, path)
}

// LoopOver makes a loop device over a file that there is. The file may lie in a mount
// that this process serves: it is opened without Go's poller, which would stop a
// thread until the answer of the mount, that may need the thread.
func LoopOver(t testing.TB, path string) *LoopDevice {
	t.Helper()
	Need(t, "root")
	Need(t, "loop")
	d := &LoopDevice{File: path}
	below, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		d.f, err = attach(below)
		err = errors.Join(err, unix.Close(below))
	}
	if err != nil {
		t.Fatalf("make a loop device of %s: %v", path, err)
	}
	d.Path = d.f.Name()
	t.Cleanup(func() { _ = d.f.Close() }) // the last one, unless something has leaked
	return d
}

// attach finds a free loop device. Another process may be faster, so it tries
// for a while.
func attach(below int) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	var last error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		f, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			last = err
			continue
		}
		c := unix.LoopConfig{Fd: uint32(below), Size: 512}
		c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		if last = unix.IoctlLoopConfigure(int(f.Fd()), &c); last == nil {
			return f, nil
		}
		_ = f.Close()
		if !errors.Is(last, unix.EBUSY) {
			return nil, last
		}
	}
	return nil, last
}

// Detach takes it away before the test ends, when nobody else has it open.
func (d *LoopDevice) Detach() error { return d.f.Close() }

// Grow makes the device larger.
func (d *LoopDevice) Grow(t testing.TB, size int64) {
	t.Helper()
	err := os.Truncate(d.File, size)
	if err == nil {
		err = unix.IoctlSetInt(int(d.f.Fd()), unix.LOOP_SET_CAPACITY, 0)
	}
	if err != nil {
		t.Fatalf("make %s %d bytes long: %v", d.Path, size, err)
	}
}
