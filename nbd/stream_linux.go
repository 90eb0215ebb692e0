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
// closed then, or what c wraps; its owner still has to close c itself. What is no
// socket keeps the stream that it has.
func openStream(c net.Conn, has stream, taken *atomic.Int32) stream {
	s := bareSocket(c)
	if s == nil {
		return has
	}
	conn, ok := s.(syscall.Conn)
	if !ok {
		return has
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return has // closed already
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
		stall := unix.NsecToTimeval(stallAfter.Nanoseconds())
		if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &stall); err == nil {
			err = unix.SetNonblock(fd, false)
		}
		if err != nil {
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
	out   vector

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

func (k *socket) write(message [][]byte) error {
	for len(message) > 0 {
		n, err := k.out.send(k.fd, message, 0)
		if err == nil && n == 0 {
			err = k.stalled()
		}
		if err != nil {
			return err
		}
		message = advance(message, n)
	}
	return nil
}

// stalled waits until there is room again. The client does not read, so meanwhile
// its place among those that keep a thread is somebody else's: many that do not read
// would leave none to who connects after them.
func (k *socket) stalled() error {
	k.taken.Add(-1)
	defer k.taken.Add(1)
	p := []unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLOUT}}
	for {
		_, err := unix.Poll(p, -1)
		if err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
	}
}

func (k *socket) writeNow(message [][]byte) (int, error) {
	return k.out.send(k.fd, message, unix.MSG_DONTWAIT)
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
	raw syscall.RawConn
	out vector

	// One try of a system call: its function is made once, because a closure for
	// each call would be an allocation.
	reading, writing struct {
		try     func(fd uintptr) bool
		p       []byte
		message [][]byte
		n       int
		err     error
	}
}

func newPolled(c net.Conn, raw syscall.RawConn) *polled {
	p := &polled{plain: plain{c}, raw: raw}
	r, w := &p.reading, &p.writing
	r.try = func(fd uintptr) bool {
		r.n, r.err = receiveNow(int(fd), r.p)
		return true
	}
	w.try = func(fd uintptr) bool {
		w.n, w.err = p.out.send(int(fd), w.message, unix.MSG_DONTWAIT)
		return true
	}
	return p
}

func (p *polled) readNow(b []byte) (int, error) {
	r := &p.reading
	r.p = b
	err := p.raw.Read(r.try)
	r.p = nil // or it would be kept while the connection is idle
	if err != nil {
		return 0, err
	}
	return r.n, r.err
}

func (p *polled) writeNow(message [][]byte) (int, error) {
	w := &p.writing
	w.message = message
	err := p.raw.Write(w.try)
	w.message = nil
	if err != nil {
		return 0, err
	}
	return w.n, w.err
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

// vector sends messages in parts. Those of package unix allocate.
type vector struct {
	parts  [messageParts]unix.Iovec
	header unix.Msghdr
}

// send is sendmsg(2). With MSG_DONTWAIT and no room it sends nothing.
func (v *vector) send(fd int, message [][]byte, flags uintptr) (int, error) {
	for i, p := range message {
		v.parts[i].Base = unsafe.SliceData(p)
		v.parts[i].SetLen(len(p))
	}
	v.header.Iov = &v.parts[0]
	v.header.SetIovlen(len(message))
	defer clear(v.parts[:len(message)])
	for {
		n, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&v.header)), flags|unix.MSG_NOSIGNAL)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return 0, nil
		}
		return 0, os.NewSyscallError("sendmsg", errno)
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
