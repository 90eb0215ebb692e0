//go:build linux

package fusefs

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// SetIOFlusher tells the kernel that this process serves a disk of this host
// (PR_SET_IO_FLUSHER, for all threads): to give it memory the kernel must not
// write out dirty pages and wait, because they may be those of a file system on
// that disk; and when much is dirty it must not be slowed down as if it had made
// it so (rule 22). It takes CAP_SYS_RESOURCE, and a program without cgo, because
// threads made by C cannot be told; without either it returns an error and
// changes nothing. Call it early: there is no way back.
func SetIOFlusher() error {
	_, _, errno := syscall.AllThreadsSyscall6(syscall.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0, 0)
	switch {
	case errno == 0:
		return nil
	case errors.Is(errno, syscall.ENOTSUP):
		return errors.New("PR_SET_IO_FLUSHER: the program was built with cgo: build it with CGO_ENABLED=0")
	case errors.Is(errno, syscall.EPERM):
		return fmt.Errorf("PR_SET_IO_FLUSHER: %w: it takes CAP_SYS_RESOURCE", errno)
	}
	return fmt.Errorf("PR_SET_IO_FLUSHER: %w", errno)
}
