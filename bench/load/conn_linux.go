package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// The numbers of the protocol (NetworkBlockDevice/nbd, doc/proto.md).
const (
	magicServer  = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption  = 0x49484156454f5054 // "IHAVEOPT"
	magicReply   = 0x0003e889045565a9
	magicRequest = 0x25609513
	magicSimple  = 0x67446698

	optGo   = 7
	repAck  = 1
	repInfo = 3

	cmdRead  = 0
	cmdWrite = 1
	cmdDisc  = 2
	cmdFlush = 3
	cmdTrim  = 4

	headerLen = 28
	replyLen  = 16
)

// A conn is a connection in transmission over a blocking unix socket.
type conn struct{ fd int }

// dial connects to the export named name of the server at the unix socket path.
func dial(path, name string) (*conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c := &conn{fd}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20) // as much as may be had
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", path, err), unix.Close(fd))
	}
	if err := c.handshake(name); err != nil {
		return nil, errors.Join(fmt.Errorf("handshake with %s: %w", path, err), unix.Close(fd))
	}
	return c, nil
}

// handshake enters transmission with simple replies.
func (c *conn) handshake(name string) error {
	b := make([]byte, 18)
	if err := c.readFull(b); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(b) != magicServer || binary.BigEndian.Uint64(b[8:]) != magicOption {
		return fmt.Errorf("expected a newstyle NBD server, found % x", b)
	}
	out := binary.BigEndian.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	out = binary.BigEndian.AppendUint64(out, magicOption)
	out = binary.BigEndian.AppendUint32(out, optGo)
	out = binary.BigEndian.AppendUint32(out, uint32(4+len(name)+2))
	out = binary.BigEndian.AppendUint32(out, uint32(len(name)))
	out = append(out, name...)
	out = append(out, 0, 0) // no infos are asked for
	if err := c.write(out); err != nil {
		return err
	}
	for {
		h := make([]byte, 20)
		if err := c.readFull(h); err != nil {
			return err
		}
		kind := binary.BigEndian.Uint32(h[12:])
		data := make([]byte, min(binary.BigEndian.Uint32(h[16:]), 1<<16))
		if err := c.readFull(data); err != nil {
			return err
		}
		switch {
		case binary.BigEndian.Uint64(h) != magicReply:
			return fmt.Errorf("expected the magic of a reply, found % x", h[:8])
		case kind == repAck:
			return nil
		case kind != repInfo:
			return fmt.Errorf("export %q is refused with 0x%x: %s", name, kind, data)
		}
	}
}

// close disconnects and waits until the server has closed its side.
func (c *conn) close() error {
	b := make([]byte, headerLen)
	putRequest(b, cmdDisc, 0, 0, 0)
	err := c.write(b)
	for err == nil {
		var n int
		if n, err = unix.Read(c.fd, b); n == 0 {
			break
		}
	}
	return errors.Join(err, unix.Close(c.fd))
}

func putRequest(b []byte, cmd uint16, cookie uint64, off int64, n int) {
	binary.BigEndian.PutUint32(b, magicRequest)
	binary.BigEndian.PutUint16(b[4:], 0)
	binary.BigEndian.PutUint16(b[6:], cmd)
	binary.BigEndian.PutUint64(b[8:], cookie)
	binary.BigEndian.PutUint64(b[16:], uint64(off))
	binary.BigEndian.PutUint32(b[24:], uint32(n))
}

func (c *conn) write(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(c.fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("send: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// readSome reads what there is, at least a byte.
func (c *conn) readSome(b []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("receive: %w", err)
		case n == 0:
			return 0, io.ErrUnexpectedEOF
		default:
			return n, nil
		}
	}
}

func (c *conn) readFull(b []byte) error {
	for len(b) > 0 {
		n, err := c.readSome(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
