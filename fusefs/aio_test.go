//go:build linux

package fusefs

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// An aio is a queue of the kernel's asynchronous I/O, io_submit(2).
type aio struct {
	t      testing.TB
	id     uintptr
	buffer []byte // of every write, aligned
}

// iocb is struct iocb of linux/aio_abi.h on a little-endian machine, ioEvent its
// io_event.
type iocb struct {
	_      [2]uint64 // data; key and flags
	opcode uint16
	_      int16 // priority
	fd     uint32
	buf    uint64
	bytes  uint64
	offset int64
	_      [2]uint64 // reserved; flags and an eventfd
}

type ioEvent struct {
	_      [2]uint64 // data, iocb
	result int64
	_      int64
}

const opcodePwrite = 1

func newAIO(t testing.TB) *aio {
	t.Helper()
	a := &aio{t: t}
	buffer, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	require.NoError(t, err)
	a.buffer = buffer
	_, _, errno := unix.Syscall(unix.SYS_IO_SETUP, 1024, uintptr(unsafe.Pointer(&a.id)), 0)
	require.Zero(t, errno)
	t.Cleanup(func() {
		_, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, a.id, 0, 0)
		_ = unix.Munmap(buffer)
	})
	return a
}

// write submits a write of 4096 bytes.
func (a *aio) write(fd int, off int64) {
	a.t.Helper()
	cb := &iocb{opcode: opcodePwrite, fd: uint32(fd), buf: uint64(uintptr(unsafe.Pointer(&a.buffer[0]))), bytes: 4096, offset: off}
	list := [1]*iocb{cb}
	n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, a.id, 1, uintptr(unsafe.Pointer(&list)))
	require.Zero(a.t, errno)
	require.EqualValues(a.t, 1, n)
}

// wait waits until n have completed and returns their results.
func (a *aio) wait(n int) []int64 {
	a.t.Helper()
	events, results := make([]ioEvent, n), make([]int64, 0, n)
	for len(results) < n {
		left := n - len(results)
		got, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, a.id, 1, uintptr(left), uintptr(unsafe.Pointer(&events[0])), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		require.Zero(a.t, errno)
		for _, e := range events[:got] {
			results = append(results, e.result)
		}
	}
	return results
}
