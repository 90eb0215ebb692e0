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

	// write waits until a message of at most messageParts is written.
	write(message [][]byte) error
	// writeNow writes as much of a message as there is room for at once, which may
	// be nothing, and returns how many bytes.
	writeNow(message [][]byte) (int, error)

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
}

func (plain) readNow([]byte) (int, error)    { return 0, nil }
func (plain) writeNow([][]byte) (int, error) { return 0, nil }

func (p plain) write(message [][]byte) error {
	b := net.Buffers(message)
	_, err := b.WriteTo(p.Conn)
	return err
}

func (p plain) CloseWrite() error {
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (p plain) hungUp() bool { return hungUp(p.Conn) }
func (plain) free()          {}

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
func advance(message [][]byte, n int) [][]byte {
	for len(message) > 0 && n >= len(message[0]) {
		n -= len(message[0])
		message = message[1:]
	}
	if n > 0 {
		message[0] = message[0][n:]
	}
	return message
}
