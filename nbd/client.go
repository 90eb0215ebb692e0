package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// ClientOptions for Dial. The zero value works: the default export, structured
// replies and base:allocation if the server has them.
type ClientOptions struct {
	// Export is the name to ask for; empty is the server's default.
	Export string
	// NoStructured does without structured replies, and so without extents.
	NoStructured bool
	// Extended asks for extended headers, with which a request without a payload has
	// no limit of 4 GiB.
	Extended bool
	// UseExportName enters transmission as old clients do, without GO.
	UseExportName bool
	// MaxInFlight requests on their way at a time; 0 is 64.
	MaxInFlight int
	// TLS is required of the server if it is not nil, and verifies it.
	TLS *tls.Config
}

// Client is a connection to an NBD server, as a Device. Requests are pipelined:
// any number of goroutines may use it at once. What the server says is
// bounded and checked; a server that breaks the protocol ends the connection,
// and every request then fails with the reason.
//
// The context of a request bounds waiting for its turn and for its reply. A
// request whose context ended may still be executed by the server.
type Client struct {
	conn  net.Conn
	facts exportFacts
	info  DeviceInfo

	structured bool
	extended   bool // headers
	allocation bool
	contextID  uint32

	slots chan struct{} // one element for each request on its way

	wmu sync.Mutex // guards writing to conn

	mu      sync.Mutex // guards what follows
	calls   map[uint64]*call
	cookie  uint64
	reading *call // whose payload is being read now
	err     error // why the client has ended
	ended   chan struct{}
}

var _ Device = (*Client)(nil)

// call is a request that waits for its reply. After it was sent it belongs to
// the receiving goroutine, except for the fields that Client.mu guards.
type call struct {
	header requestHeader
	p      []byte // of a read
	done   chan struct{}

	abandoned bool // guarded by Client.mu: p is the caller's again

	covered     coverage
	descriptors []descriptor
	failed      error // the first error chunk
	err         error // the result, set before done is closed
}

// Dial connects to a server and enters transmission.
func Dial(ctx context.Context, network, address string, o ClientOptions) (*Client, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	return NewClient(ctx, conn, o)
}

// NewClient negotiates over conn, which it closes when that fails.
func NewClient(ctx context.Context, conn net.Conn, o ClientOptions) (*Client, error) {
	c := &Client{
		conn: conn, calls: map[uint64]*call{}, ended: make(chan struct{}),
		slots: make(chan struct{}, max(defaulted(o.MaxInFlight, clientInFlightDefault), 1)),
	}
	err := negotiating(ctx, conn, o.TLS, func(n *negotiation) error {
		err := c.enter(n, o)
		c.conn = n.conn
		return err
	})
	if err != nil {
		return nil, err
	}
	go c.receive()
	return c, nil
}

// Close says goodbye and closes the connection. Requests in progress fail.
func (c *Client) Close() error {
	c.mu.Lock()
	err := c.err
	if err == nil {
		c.err = fmt.Errorf("nbd: client: %w", ErrClosed)
	}
	c.mu.Unlock()
	if errors.Is(err, ErrClosed) {
		return err
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(clientGoodbye)) // also of whoever sends now
	c.wmu.Lock()
	_, _ = c.conn.Write(requestHeader{cmd: cmdDisc, extended: c.extended}.append(nil))
	c.wmu.Unlock()
	_ = c.conn.Close()
	<-c.ended
	return nil
}

// fail ends the client; the first reason stays.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	_ = c.conn.Close()
}

func (c *Client) broken() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// roundTrip sends a request and waits for its reply.
func (c *Client) roundTrip(ctx context.Context, h requestHeader, payload, p []byte) (*call, error) {
	if ctx.Err() != nil { // would end the connection in send
		return nil, context.Cause(ctx)
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.ended:
		return nil, c.broken()
	}
	k, err := c.register(h, p)
	if err != nil {
		return nil, err
	}
	if err := c.send(ctx, k.header, payload); err != nil {
		c.fail(fmt.Errorf("nbd: sending a request: %w", err))
	}
	select {
	case <-k.done:
	case <-ctx.Done():
		if c.abandon(k) {
			return nil, context.Cause(ctx)
		}
		<-k.done // it was being received
	}
	return k, k.err
}

// register gives a request its cookie.
func (c *Client) register(h requestHeader, p []byte) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		<-c.slots
		return nil, c.err
	}
	c.cookie++
	h.cookie, h.extended = c.cookie, c.extended
	if h.extended && h.cmd == cmdWrite {
		h.flags |= cmdFlagPayload
	}
	k := &call{header: h, p: p, done: make(chan struct{}), covered: coverage{end: uint64(len(p))}}
	c.calls[h.cookie] = k
	return k, nil
}

// send ends with the connection when ctx ends in the middle of it: a request
// cannot be taken back half.
func (c *Client) send(ctx context.Context, h requestHeader, payload []byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
	})
	defer stop() // harmless the second time
	bufs := net.Buffers{h.append(make([]byte, 0, extRequestBytes))}
	if len(payload) > 0 {
		bufs = append(bufs, payload)
	}
	if _, err := bufs.WriteTo(c.conn); err != nil {
		_ = c.conn.Close() // before anybody else writes: half a request may be on its way
		return err
	}
	if !stop() { // too late for this request, and nothing that the next one may meet
		<-ended
		c.noDeadline()
	}
	return nil
}

// noDeadline lets a write take its time, unless the client has ended: then Close has
// set a deadline.
func (c *Client) noDeadline() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		_ = c.conn.SetWriteDeadline(time.Time{})
	}
}

// abandon gives the caller's memory back before the reply has come. The call
// keeps its slot until then. If the reply is arriving right now the connection
// ends, because its sender may be slower than the caller's patience.
func (c *Client) abandon(k *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reading == k {
		if c.err == nil {
			c.err = fmt.Errorf("nbd: a request was cancelled in the middle of its reply: %w", context.Canceled)
		}
		_ = c.conn.Close()
		return false
	}
	k.abandoned = true
	return true
}

// receive is the goroutine that reads every reply.
func (c *Client) receive() {
	err := c.readReplies()
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the server closed the connection: %w", io.ErrUnexpectedEOF)
	}
	c.fail(fmt.Errorf("nbd: receiving: %w", err))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.calls {
		k.err = c.err
		close(k.done)
		<-c.slots
	}
	clear(c.calls)
	close(c.ended)
}

// finish ends a call with err.
func (c *Client) finish(k *call, err error) {
	c.mu.Lock()
	delete(c.calls, k.header.cookie)
	if c.reading == k {
		c.reading = nil
	}
	c.mu.Unlock()
	k.err = err
	close(k.done)
	<-c.slots
}
