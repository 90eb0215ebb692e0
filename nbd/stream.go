package nbd

import (
	"errors"
	"net"
)

// A stream carries the bytes of a connection in transmission. One goroutine
// reads and one at a time writes; Close and hungUp are for everybody.
type stream interface {
	// Read waits until there is a byte, and takes what there is.
	Read(p []byte) (int, error)
	// readNow takes what has arrived already. It returns 0 and no error if that
	// is nothing, or cannot be told.
	readNow(p []byte) (int, error)

	// write waits until header and payload, either of which may be empty, are
	// written.
	write(header, payload []byte) error
	// writeNow writes as much of both as there is room for at once, which may be
	// nothing, and returns how much.
	writeNow(header, payload []byte) (int, error)

	// CloseWrite tells the other side that nothing more comes.
	CloseWrite() error
	// Close ends every call that waits, now and later.
	Close() error
	// hungUp asks the kernel whether the other side has gone, without reading:
	// what it sent before may still be unread.
	hungUp() bool
	// free is the last call, when nobody else uses the stream any more.
	free()
}

// plain is a stream over any connection. It cannot tell what would wait, so
// everything is left to those who may.
type plain struct {
	net.Conn
	parts [2][]byte // of the message that is being written
	bufs  net.Buffers
}

func (*plain) readNow([]byte) (int, error)          { return 0, nil }
func (*plain) writeNow([]byte, []byte) (int, error) { return 0, nil }

func (p *plain) write(header, payload []byte) error {
	p.parts = [2][]byte{header, payload}
	p.bufs = p.parts[:]
	if len(payload) == 0 {
		p.bufs = p.parts[:1]
	}
	_, err := p.bufs.WriteTo(p.Conn)
	p.parts = [2][]byte{}
	return err
}

func (p *plain) CloseWrite() error {
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (p *plain) hungUp() bool { return hungUp(p.Conn) }
func (*plain) free()          {}

// bareSocket returns the socket of the kernel that a connection is, so that its
// bytes may be moved without the connection's own methods; nil if there is
// something in between. A wrapper that only watches says what it wraps with a
// method Bare.
func bareSocket(c net.Conn) net.Conn {
	if w, ok := c.(interface{ Bare() net.Conn }); ok {
		c = w.Bare()
	}
	switch c.(type) {
	case *net.UnixConn, *net.TCPConn:
		return c
	}
	return nil
}

// advance returns what is left of a message after n bytes of it.
func advance(header, payload []byte, n int) ([]byte, []byte) {
	if n < len(header) {
		return header[n:], payload
	}
	return nil, payload[n-len(header):]
}
