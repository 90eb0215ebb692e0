package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel's NBD client takes from the program that has done the handshake
// (include/uapi/linux/nbd.h), in the order in which it is told.
const (
	nbdSetSock       = 0xab00
	nbdSetBlockSize  = 0xab01
	nbdDoIt          = 0xab03
	nbdSetSizeBlocks = 0xab07
	nbdDisconnect    = 0xab08
	nbdSetTimeout    = 0xab09
	nbdSetFlags      = 0xab0a
)

const (
	nbdBlock   = 4096 // bytes, the kernel's unit for the device
	nbdTimeout = 60   // seconds, after which a request that is not answered is an error
)

// connect makes the handshake for every connection, gives all of them to the
// kernel, and returns when the device can be used.
//
// A slow machine meets a flaw of the kernel here. Each connection has a receiver
// that ends with the connection, and all of them are items of one workqueue. When
// its workers are not there at once, its rescuer takes the items, one after another:
// all connections but one are deaf then. Workers that were made once stay for
// minutes, so it is tried again.
func connect(args []string) (string, error) {
	connections, err := strconv.Atoi(args[4])
	if err != nil || connections < 1 {
		return "", fmt.Errorf("%s connections: expected a number", args[4])
	}
	var last error
	for attempt := range 20 {
		ended, err := connectOnce(args[0], args[1], args[2], args[3], connections)
		if err != nil {
			return "", err
		}
		listening, err := receiversListen(connections)
		if err != nil || listening {
			return fmt.Sprintf("attempt %d", attempt+1), err
		}
		if _, err := disconnect(args[:1]); err != nil {
			return "", err
		}
		last = <-ended
	}
	return "", fmt.Errorf("the kernel's workqueue has not enough workers for the connections; the last device ended with: %w", last)
}

// connectOnce returns when the device has its size. ended says when the kernel
// has let go of the device.
func connectOnce(device, network, address, export string, connections int) (ended <-chan error, err error) {
	var sockets []*os.File
	var e nbdExport
	for range connections {
		s, now, err := handshake(network, address, export)
		if err != nil {
			return nil, err
		}
		defer s.Close() // the kernel has its own reference
		sockets, e = append(sockets, s), now
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	end := make(chan error, 1)
	go attach(f, e, sockets, end)
	return end, awaitDevice(device, e.size, end)
}

// receiversListen waits until every connection has a receiver that runs, and
// reports whether each of them has a worker of its own.
func receiversListen(connections int) (bool, error) {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		stacks, err := filepath.Glob("/proc/[0-9]*/stack")
		if err != nil {
			return false, err
		}
		running := 0
		for _, path := range stacks {
			b, err := os.ReadFile(path)
			if err != nil || !strings.Contains(string(b), "recv_work") {
				continue // also a process that has ended
			}
			name, err := os.ReadFile(filepath.Join(filepath.Dir(path), "comm"))
			if err == nil && !strings.HasPrefix(string(name), "kworker") {
				return false, nil // the rescuer, which is called as its workqueue
			}
			running++
		}
		if running == connections {
			return true, nil
		}
	}
	return false, fmt.Errorf("not all of %d receivers run, and no rescuer", connections)
}

// attach tells the kernel everything and stays in it until the device is
// disconnected. The kernel wants one thread for all of it, and gives up at any
// signal, of which this program gets some: when a child ends, and from its runtime.
func attach(f *os.File, e nbdExport, sockets []*os.File, failed chan<- error) {
	runtime.LockOSThread() // for good: the thread ends with this
	defer f.Close()
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &all, nil); err != nil {
		failed <- err
		return
	}
	set := func(request uint, value uint64) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(value)); errno != 0 {
			return fmt.Errorf("%s: ioctl %#x with %d: %w", f.Name(), request, value, errno)
		}
		return nil
	}
	err := set(nbdSetBlockSize, nbdBlock)
	for _, v := range []struct {
		request uint
		value   uint64
	}{{nbdSetSizeBlocks, e.size / nbdBlock}, {nbdSetFlags, uint64(e.flags)}, {nbdSetTimeout, nbdTimeout}} {
		if err == nil {
			err = set(v.request, v.value)
		}
	}
	for _, s := range sockets {
		if err == nil {
			err = set(nbdSetSock, uint64(s.Fd()))
		}
	}
	if err == nil {
		err = set(nbdDoIt, 0)
	}
	failed <- err
}

// awaitDevice waits until the device has its size, which the kernel gives it last.
func awaitDevice(device string, size uint64, failed <-chan error) error {
	sectors := filepath.Join("/sys/block", filepath.Base(device), "size")
	for {
		select {
		case err := <-failed:
			return fmt.Errorf("it ended before it began: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
		if b, err := os.ReadFile(sectors); err == nil && strings.TrimSpace(string(b)) == strconv.FormatUint(size/512, 10) {
			return nil
		}
	}
}

func disconnect(args []string) (string, error) {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), nbdDisconnect, 0); errno != 0 {
		return "", fmt.Errorf("disconnect %s: %w", args[0], errno)
	}
	return "", nil
}

// nbdExport is what the server tells of an export.
type nbdExport struct {
	size  uint64
	flags uint16
}

// handshake is the fixed newstyle negotiation with NBD_OPT_EXPORT_NAME, after
// which the kernel's client finds what it knows: simple replies, and nothing
// else. The socket is returned as a file.
func handshake(network, address, export string) (*os.File, nbdExport, error) {
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, nbdExport{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, nbdExport{}, err
	}
	const noZeroes, fixed = 2, 1
	b := make([]byte, 18)
	if _, err := io.ReadFull(conn, b); err != nil {
		return nil, nbdExport{}, fmt.Errorf("greeting: %w", err)
	}
	if string(b[:16]) != "NBDMAGICIHAVEOPT" || binary.BigEndian.Uint16(b[16:])&(noZeroes|fixed) != noZeroes|fixed {
		return nil, nbdExport{}, fmt.Errorf("greeting: expected NBDMAGIC IHAVEOPT and both flags, found %q", b)
	}
	b = binary.BigEndian.AppendUint32(nil, noZeroes|fixed)
	b = append(b, "IHAVEOPT"...)
	b = binary.BigEndian.AppendUint32(b, 1) // NBD_OPT_EXPORT_NAME
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	if _, err := conn.Write(append(b, export...)); err != nil {
		return nil, nbdExport{}, err
	}
	b = make([]byte, 10)
	if _, err := io.ReadFull(conn, b); err != nil {
		return nil, nbdExport{}, fmt.Errorf("export %q: %w", export, err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, nbdExport{}, err
	}
	filer, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, nbdExport{}, fmt.Errorf("a connection of network %s has no descriptor", network)
	}
	f, err := filer.File()
	return f, nbdExport{binary.BigEndian.Uint64(b), binary.BigEndian.Uint16(b[8:])}, err
}
