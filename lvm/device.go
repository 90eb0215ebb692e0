package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

// A device is an open block device: a physical volume, or a logical one of
// device-mapper. All I/O on it is direct.
type device struct {
	f       *os.File
	raw     syscall.RawConn
	path    string
	pv      string // the UUID it must have; "" for a logical volume
	block   int    // logical block size, bytes
	zeroing bool   // it zeroes by itself
	number  uint64 // of the device, as in /dev

	noZero, noDiscard atomic.Bool // learned from EOPNOTSUPP
}

// openDevice opens a block device. With pv it has to be the physical volume with
// that UUID.
func openDevice(name, pv string, readOnly bool, sys fs.FS) (*device, error) {
	flags := unix.O_RDWR
	if readOnly {
		flags = unix.O_RDONLY
	}
	f, err := os.OpenFile(name, flags|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	d := &device{f: f, path: name, pv: pv}
	if err := d.look(sys); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", name, err), f.Close())
	}
	return d, nil
}

// look finds out what the device is and is able to do.
func (d *device) look(sys fs.FS) (err error) {
	st, err := d.f.Stat()
	if err != nil {
		return err
	}
	if st.Mode()&fs.ModeDevice == 0 || st.Mode()&fs.ModeCharDevice != 0 {
		return errors.New("expected a block device")
	}
	if d.raw, err = d.f.SyscallConn(); err != nil {
		return err
	}
	if err := d.control(func(fd int) (err error) {
		d.block, err = unix.IoctlGetInt(fd, unix.BLKSSZGET)
		return err
	}); err != nil {
		return err
	}
	if d.block < tearUnit || d.block > maxBlock || d.block&(d.block-1) != 0 {
		return fmt.Errorf("its logical block is %d bytes, expected a power of two from %d to %d", d.block, tearUnit, maxBlock)
	}
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		d.number = s.Rdev
		d.zeroing = zeroesByItself(sys, s.Rdev)
	}
	return d.verify()
}

// zeroesByItself reports whether the device has a command for zeroing. A
// partition has the queue of its disk.
func zeroesByItself(sys fs.FS, rdev uint64) bool {
	dir := fmt.Sprintf("dev/block/%d:%d", unix.Major(rdev), unix.Minor(rdev))
	for _, queue := range []string{"queue", "../queue"} {
		if b, err := fs.ReadFile(sys, path.Join(dir, queue, "write_zeroes_max_bytes")); err == nil {
			n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
			return err == nil && n > 0
		}
	}
	return false
}

// verify reads the label through the descriptor, for a name may be another
// device's by now, and a device another physical volume.
func (d *device) verify() error {
	if d.pv == "" {
		return nil
	}
	head := alignedBuffer(labelArea, d.block)
	if _, err := d.f.ReadAt(head, 0); err != nil {
		return err
	}
	found, err := labelUUID(head)
	if err != nil {
		return err
	}
	if found != plainUUID(d.pv) {
		return fmt.Errorf("it is physical volume %s, expected %s", found, d.pv)
	}
	return nil
}

// size is the length of the device in bytes.
func (d *device) size() (int64, error) {
	var n uint64
	err := d.control(func(fd int) error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&n)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	return int64(n), err
}

// read fills p, which is aligned.
func (d *device) read(p []byte, off int64) error { return d.transfer(opRead, p, off) }

// write writes p, which is aligned.
func (d *device) write(p []byte, off int64) error { return d.transfer(opWrite, p, off) }

// transfer goes through the process's queue if it can be, and does what is left
// without.
func (d *device) transfer(opcode uint16, p []byte, off int64) error {
	if q := theQueue(); q != nil && len(p) > 0 {
		if t := q.take(opcode, p, off); t != nil {
			closed := d.raw.Control(t.run)
			n, err := q.giveBack(t)
			switch {
			case closed != nil:
				return block.ErrClosed
			case err != nil:
				return d.pathError(opcode, err)
			}
			p, off = p[n:], off+int64(n)
		}
	}
	if len(p) == 0 {
		return nil
	}
	var err error
	if opcode == opWrite {
		_, err = d.f.WriteAt(p, off)
	} else {
		_, err = d.f.ReadAt(p, off)
	}
	return err
}

func (d *device) pathError(opcode uint16, err error) error {
	op := "read"
	if opcode == opWrite {
		op = "write"
	}
	return &fs.PathError{Op: op, Path: d.path, Err: err}
}

// writeDurably writes and returns when p is durable.
func (d *device) writeDurably(p []byte, off int64) error {
	for len(p) > 0 {
		n := 0
		err := d.control(func(fd int) (err error) {
			n, err = unix.Pwritev2(fd, [][]byte{p}, off, unix.RWF_DSYNC)
			return err
		})
		if err != nil {
			return err
		}
		if n <= 0 {
			return errors.New("the device takes nothing")
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// zero makes whole blocks read zero; false: the device does not do that.
func (d *device) zero(off, n int64) (bool, error) {
	return d.attempt(&d.noZero, func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

// discard says that whole blocks are not needed.
func (d *device) discard(off, n int64) error {
	_, err := d.attempt(&d.noDiscard, func(fd int) error {
		span := [2]uint64{uint64(off), uint64(n)}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span)))
		if errno != 0 {
			return errno
		}
		return nil
	})
	return err
}

// attempt reports whether the device was able to, and remembers in not when it
// was not.
func (d *device) attempt(not *atomic.Bool, call func(fd int) error) (bool, error) {
	if not.Load() {
		return false, nil
	}
	err := d.control(call)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		not.Store(true)
		return false, nil
	}
	return err == nil, err
}

func (d *device) sync() error { return d.control(unix.Fdatasync) }

// control runs a system call on the descriptor, again when a signal interrupts it.
func (d *device) control(call func(fd int) error) error {
	var err error
	cerr := d.raw.Control(func(fd uintptr) {
		for {
			if err = call(int(fd)); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	if cerr != nil {
		return block.ErrClosed
	}
	return err
}

// The label of a physical volume lies in one of the first four sectors:
//
//	 0  "LABELONE"   8  u64 its sector   16  u32 CRC   20  u32 offset of the
//	header (32)     24  "LVM2 001"       32  UUID, 32 letters, digits, ! and #
const (
	labelArea   = 4096 // the four sectors, in blocks of any size
	labelSector = 512
	labelCount  = 4
	labelUUIDAt = 32
)

// labelUUID finds the label in the head of a device and returns the UUID,
// without dashes.
func labelUUID(head []byte) (string, error) {
	for i := range uint64(labelCount) {
		s := head[i*labelSector : (i+1)*labelSector]
		if string(s[:8]) == "LABELONE" && string(s[24:32]) == "LVM2 001" &&
			binary.LittleEndian.Uint64(s[8:]) == i && binary.LittleEndian.Uint32(s[20:]) == labelUUIDAt {
			return string(bytes.TrimRight(s[labelUUIDAt:labelUUIDAt+plainUUIDLen], "\x00")), nil
		}
	}
	return "", errors.New("it has no label of LVM: expected a physical volume")
}

const (
	tearUnit = 512
	maxBlock = 4096
)

// alignedBuffer returns n bytes at an address that is a multiple of align, a
// power of two.
func alignedBuffer(n, align int) []byte {
	b := make([]byte, n+align)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (align - 1)
	return b[skip : skip+n : skip+n]
}

func isAligned(p []byte, off int64, unit int) bool {
	address := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	return (int64(address)|off|int64(len(p)))&int64(unit-1) == 0
}
