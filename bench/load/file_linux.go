package load

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A fileLine writes to a file. Its system calls are raw ones: a
// thread that waits in one keeps its processor of Go's, which is cheaper than to give it
// back and to ask for it again (see RunFile).
type fileLine struct {
	file  *os.File
	job   Job
	data  []byte // mapped: a block for each in flight
	batch []*iocb

	aio     uintptr // with more than one in flight
	iocbs   []iocb  // by cookie
	events  []ioEvent
	written []uint64 // with one in flight: it, when it was written
}

// An iocb is a request of io_submit(2), as linux/aio_abi.h has it.
type iocb struct {
	data   uint64
	_, _   uint32 // key, rw_flags
	opcode uint16
	_      int16
	fd     uint32
	buf    uint64
	nbytes uint64
	offset int64
	_      uint64
	_, _   uint32
}

const iocbWrite = 1

// An ioEvent is a reply of io_getevents(2).
type ioEvent struct {
	data, obj uint64
	res, res2 int64
}

// openFile opens a file to be written with further flags of open(2).
func openFile(path string, flags int, j Job) (*fileLine, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|flags, 0)
	if err != nil {
		return nil, err
	}
	l := &fileLine{file: f, job: j, iocbs: make([]iocb, j.Depth), events: make([]ioEvent, j.Depth)}
	if l.data, err = unix.Mmap(-1, 0, j.Depth*j.Block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON); err != nil {
		return nil, errors.Join(os.NewSyscallError("mmap", err), f.Close())
	}
	for i := range l.iocbs {
		block := l.data[i*j.Block:][:j.Block]
		fill(block, j.Seed)
		l.iocbs[i] = iocb{data: uint64(i), opcode: iocbWrite, fd: uint32(f.Fd()), buf: uint64(uintptr(unsafe.Pointer(&block[0]))), nbytes: uint64(j.Block)}
	}
	if j.Depth > 1 {
		if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(j.Depth), uintptr(unsafe.Pointer(&l.aio)), 0); errno != 0 {
			return nil, errors.Join(os.NewSyscallError("io_setup", errno), unix.Munmap(l.data), f.Close())
		}
	}
	return l, nil
}

func (l *fileLine) add(cookie uint64, off int64) {
	stamp(l.data[int(cookie)*l.job.Block:], off, l.job.Seed)
	l.iocbs[cookie].offset = off
	l.batch = append(l.batch, &l.iocbs[cookie])
}

func (l *fileLine) send() error {
	batch := l.batch
	l.batch = l.batch[:0]
	for len(batch) > 0 {
		if l.job.Depth == 1 {
			r := batch[0]
			n, _, errno := unix.RawSyscall6(unix.SYS_PWRITE64, uintptr(r.fd), uintptr(r.buf), uintptr(r.nbytes), uintptr(r.offset), 0, 0)
			l.written = append(l.written[:0], r.data)
			return l.check(r.offset, int64(n), errno)
		}
		n, _, errno := unix.RawSyscall(unix.SYS_IO_SUBMIT, l.aio, uintptr(len(batch)), uintptr(unsafe.Pointer(&batch[0])))
		switch errno {
		case 0:
			batch = batch[n:]
		case unix.EINTR, unix.EAGAIN:
		default:
			return fmt.Errorf("submit %d writes to %s: %w", len(batch), l.file.Name(), errno)
		}
	}
	return nil
}

func (l *fileLine) receive(free []uint64) ([]uint64, error) {
	if l.job.Depth == 1 {
		return append(free, l.written...), nil
	}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_IO_GETEVENTS, l.aio, 1, uintptr(len(l.events)), uintptr(unsafe.Pointer(&l.events[0])), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return free, fmt.Errorf("wait for writes to %s: %w", l.file.Name(), errno)
		}
		for _, e := range l.events[:n] {
			if err := l.check(l.iocbs[e.data].offset, max(e.res, 0), syscall.Errno(max(-e.res, 0))); err != nil {
				return free, err
			}
			free = append(free, e.data)
		}
		return free, nil
	}
}

// check says whether a write did all of its block.
func (l *fileLine) check(off, n int64, errno syscall.Errno) error {
	if errno != 0 {
		return fmt.Errorf("write to %s at %d: %w", l.file.Name(), off, errno)
	}
	if n != int64(l.job.Block) {
		return fmt.Errorf("write to %s at %d: expected %d bytes to be written, found %d", l.file.Name(), off, l.job.Block, n)
	}
	return nil
}

func (l *fileLine) flush() error {
	return os.NewSyscallError("fdatasync", unix.Fdatasync(int(l.file.Fd())))
}

// close ends what is in flight, before it takes the memory away.
func (l *fileLine) close() error {
	if l.job.Depth > 1 {
		_, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, l.aio, 0, 0)
	}
	return errors.Join(l.file.Close(), unix.Munmap(l.data))
}
