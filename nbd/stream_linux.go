package nbd

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openStream returns the stream of a connection that enters transmission. A
// socket is taken over while fewer than blockingMax are (taken counts them): c is
// closed then, or what c wraps; its owner still has to close c itself.
func openStream(c net.Conn, taken *atomic.Int32) stream {
	s := bareSocket(c)
	if s == nil {
		return &plain{Conn: c}
	}
	raw, err := s.(syscall.Conn).SyscallConn()
	if err != nil {
		return &plain{Conn: c} // closed already
	}
	if u, ok := s.(*net.UnixConn); ok { // TCP's grows by itself
		_ = u.SetWriteBuffer(sendBufferBytes) // a smaller one is only slower
	}
	if taken.Add(1) <= blockingMax {
		if fd, err := takeOver(raw); err == nil {
			_ = s.Close() // the copy keeps the socket; the poller forgets it
			return &socket{fd: fd, taken: taken}
		}
	}
	taken.Add(-1)
	return newPolled(c, raw)
}

// takeOver copies the descriptor and makes it a blocking one, which is a state of
// the socket and so of both descriptors.
func takeOver(raw syscall.RawConn) (fd int, err error) {
	controlErr := raw.Control(func(old uintptr) {
		if fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return
		}
		if err = unix.SetNonblock(fd, false); err != nil {
			_ = unix.Close(fd) // the first error is the one that counts
		}
	})
	if controlErr != nil {
		return 0, controlErr
	}
	return fd, err
}

// socket is a stream over a descriptor that the runtime's poller does not know. A
// goroutine that waits in it keeps its thread. Shutting the socket down is what
// wakes it.
type socket struct {
	fd    int
	taken *atomic.Int32
	parts [2][]byte // of the message that is being written

	mu    sync.Mutex // guards what follows, and fd against those who do not read or write
	freed bool
}

func (k *socket) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(k.fd, p)
		if err == unix.EINTR {
			continue
		}
		return received(n, err)
	}
}

func (k *socket) readNow(p []byte) (int, error) { return receiveNow(k.fd, p) }

func (k *socket) write(header, payload []byte) error {
	for len(header)+len(payload) > 0 {
		n, err := k.writeOnce(header, payload)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("write", err)
		}
		header, payload = advance(header, payload, n)
	}
	return nil
}

func (k *socket) writeOnce(header, payload []byte) (int, error) {
	switch {
	case len(payload) == 0:
		return unix.Write(k.fd, header)
	case len(header) == 0:
		return unix.Write(k.fd, payload)
	}
	k.parts = [2][]byte{header, payload}
	n, err := unix.Writev(k.fd, k.parts[:])
	k.parts = [2][]byte{}
	return n, err
}

func (k *socket) writeNow(header, payload []byte) (int, error) {
	return sendBothNow(k.fd, header, payload)
}

func (k *socket) CloseWrite() error { return k.shutdown(unix.SHUT_WR) }
func (k *socket) Close() error      { return k.shutdown(unix.SHUT_RDWR) }

func (k *socket) shutdown(how int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.freed {
		return net.ErrClosed
	}
	return os.NewSyscallError("shutdown", unix.Shutdown(k.fd, how))
}

func (k *socket) hungUp() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.freed || descriptorHungUp(k.fd)
}

func (k *socket) free() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.freed = true
	_ = unix.Close(k.fd)
	k.taken.Add(-1)
}

// polled is a stream over a socket that stays with the runtime's poller.
type polled struct {
	plain
	raw               syscall.RawConn
	receive, transmit attempt
}

// attempt is one try of a system call on the descriptor. Its function is made
// once, because a closure for each call would be an allocation.
type attempt struct {
	f               func(fd uintptr) bool
	header, payload []byte
	n               int
	err             error
}

func newPolled(c net.Conn, raw syscall.RawConn) *polled {
	p := &polled{plain: plain{Conn: c}, raw: raw}
	r, w := &p.receive, &p.transmit
	r.f = func(fd uintptr) bool {
		r.n, r.err = receiveNow(int(fd), r.payload)
		return true
	}
	w.f = func(fd uintptr) bool {
		w.n, w.err = sendBothNow(int(fd), w.header, w.payload)
		return true
	}
	return p
}

func (p *polled) readNow(b []byte) (int, error) {
	return p.receive.with(p.raw.Read, nil, b)
}

func (p *polled) writeNow(header, payload []byte) (int, error) {
	return p.transmit.with(p.raw.Write, header, payload)
}

func (a *attempt) with(do func(func(uintptr) bool) error, header, payload []byte) (int, error) {
	a.header, a.payload, a.n, a.err = header, payload, 0, nil
	err := do(a.f)
	a.header, a.payload = nil, nil
	if err != nil {
		return 0, err
	}
	return a.n, a.err
}

// received translates the result of a system call that reads.
func received(n int, err error) (int, error) {
	switch {
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// receiveNow is recv(2) itself: those of package unix allocate an address.
func receiveNow(fd int, p []byte) (int, error) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			return received(int(n), nil)
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return 0, nil
		}
		return received(0, errno)
	}
}

func sendBothNow(fd int, header, payload []byte) (int, error) {
	if len(payload) == 0 {
		return sendNow(fd, header, 0)
	}
	n, err := sendNow(fd, header, unix.MSG_MORE)
	if err != nil || n < len(header) {
		return n, err
	}
	m, err := sendNow(fd, payload, 0)
	return n + m, err
}

func sendNow(fd int, p []byte, flags int) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, err := unix.SendmsgN(fd, p, nil, nil, flags|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return 0, nil
		}
		return 0, os.NewSyscallError("send", err)
	}
}

// hungUp asks for a connection that is still in the hands of package net.
func hungUp(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) { gone = descriptorHungUp(int(fd)) })
	return gone || err != nil
}

func descriptorHungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}
