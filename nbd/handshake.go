package nbd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"
)

// handshake is the negotiation of one connection, fixed newstyle. Its deadlines
// are the connection's.
type handshake struct {
	srv  *Server
	conn *connection
	wire net.Conn // conn's, or TLS over it
	r    *bufio.Reader
	log  *slog.Logger

	fixed    bool // the client knows more than EXPORT_NAME
	noZeroes bool
	options  int // that may still come
	listed   bool
	deadline time.Time

	structured bool
	extended   bool // headers
	selected   contextSet
	of         *export // for which they were selected

	secure  *tls.Conn // after STARTTLS
	session *session  // the result
}

var (
	errAborted     = errors.New("the client aborted the handshake")
	errManyOptions = errors.New("too many options")
)

func (srv *Server) newHandshake(c *connection, wire net.Conn, log *slog.Logger) *handshake {
	return &handshake{
		srv: srv, conn: c, wire: wire, log: log, r: bufio.NewReaderSize(wire, handshakeReaderBytes),
		options: optionsMax, deadline: time.Now().Add(srv.opts.HandshakeTimeout),
	}
}

// run negotiates. It returns the session, already a member of its export, and
// what the client has sent since; or nil and why there is none.
func (h *handshake) run() (_ *session, before []byte, err error) {
	err = h.negotiate()
	if err != nil && h.session != nil { // it entered, but cannot go on
		h.session.kill(err)
		h.session.export.leave(h.session)
		close(h.session.done)
		h.session = nil
	}
	before, _ = h.r.Peek(h.r.Buffered())
	return h.session, before, err
}

func (h *handshake) negotiate() (err error) {
	defer recoverTo(&err, h.srv, h.log)
	if err := h.greet(); err != nil {
		return err
	}
	for h.session == nil {
		if err := h.option(); err != nil {
			return err
		}
	}
	return nil
}

func (h *handshake) greet() error {
	if _, err := h.wire.Write(appendGreeting(nil, flagFixedNewstyle|flagNoZeroes)); err != nil {
		return err
	}
	var b [clientFlagsBytes]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return err
	}
	flags := be.Uint32(b[:])
	if unknown := flags &^ (flagFixedNewstyle | flagNoZeroes); unknown != 0 {
		return fmt.Errorf("unknown client flags %#x", unknown)
	}
	h.fixed, h.noZeroes = flags&flagFixedNewstyle != 0, flags&flagNoZeroes != 0
	return nil
}

// option reads one option completely and answers it. An error ends the
// connection.
func (h *handshake) option() error {
	var b [optionHeaderBytes]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return err
	}
	if h.options--; h.options < 0 {
		return errManyOptions
	}
	o, n, err := parseOption(b[:])
	if err != nil {
		return err
	}
	if n > optionBytesMax {
		return fmt.Errorf("option %d has %d bytes of data, expected at most %d", o, n, optionBytesMax)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(h.r, data); err != nil {
		return err
	}
	if !h.fixed && o != optExportName {
		return fmt.Errorf("option %d of a client without fixed newstyle", o)
	}
	return h.answer(o, data)
}

func (h *handshake) answer(o option, data []byte) error {
	if h.srv.isStopping() && o != optAbort {
		if o == optExportName {
			return ErrShutdown
		}
		return h.refuse(o, repErrShutdown, ErrShutdown.Error())
	}
	if refused, err := h.beforeTLS(o); refused {
		return err
	}
	switch o {
	case optExportName:
		return h.exportName(string(data))
	case optAbort:
		_ = h.reply(o, repAck, nil) // the client may have gone already
		return errAborted
	case optStartTLS:
		return h.startTLS(data)
	case optList:
		return h.list(data)
	case optInfo, optGo:
		return h.infoOrGo(o, data)
	case optStructuredReply, optExtendedHeaders:
		return h.headers(o, data)
	case optListMeta, optSetMeta:
		return h.metaContext(o, data)
	}
	return h.refuse(o, repErrUnsup, "this option is not supported")
}

// headers agrees on structured replies, or on extended headers with them.
func (h *handshake) headers(o option, data []byte) error {
	switch {
	case len(data) != 0:
		return h.refuse(o, repErrInvalid, "this option has no data")
	case h.extended && o == optStructuredReply:
		return h.refuse(o, repErrExtHeaderReq, "extended headers were agreed already")
	case h.extended:
		return h.refuse(o, repErrInvalid, "extended headers were agreed already")
	}
	h.structured, h.extended = true, o == optExtendedHeaders
	return h.reply(o, repAck, nil)
}

func (h *handshake) reply(o option, t repType, data []byte) error {
	_, err := h.wire.Write(appendOptionReply(nil, o, t, data))
	return err
}

func (h *handshake) refuse(o option, t repType, text string) error {
	return h.reply(o, t, []byte(cleanText(text)))
}

// refuseSyntax answers data that could not be decoded.
func (h *handshake) refuseSyntax(o option, err error) error {
	if errors.Is(err, errTooLong) {
		return h.refuse(o, repErrTooBig, err.Error())
	}
	return h.refuse(o, repErrInvalid, err.Error())
}

func (h *handshake) list(data []byte) error {
	if len(data) != 0 {
		return h.refuse(optList, repErrInvalid, "this option has no data")
	}
	exports := h.srv.listExports()
	if !h.listed { // once, or asking again would be a way to go on for ever
		h.listed = true
		h.options += optionsMax * len(exports)
	}
	var b []byte
	for _, e := range exports {
		b = appendOptionReply(b, optList, repServer, appendServerReply(nil, e.Name, e.Description))
	}
	b = appendOptionReply(b, optList, repAck, nil)
	_, err := h.wire.Write(b)
	return err
}

// exportName has no way to say no but to hang up.
func (h *handshake) exportName(name string) error {
	if len(name) > stringBytesMax {
		return fmt.Errorf("export name of %d bytes: %w", len(name), errTooLong)
	}
	if h.extended {
		return errors.New("EXPORT_NAME after EXTENDED_HEADERS, expected GO")
	}
	e := h.srv.findExport(name)
	if e == nil {
		return fmt.Errorf("there is no export %q", name)
	}
	t, sizes := h.termsOf(e)
	if sizes.min > minBlockAssumed {
		return fmt.Errorf("export %q needs blocks of %d bytes, which EXPORT_NAME cannot tell", name, sizes.min)
	}
	if err := h.enter(e, t); err != nil {
		return err
	}
	_, err := h.wire.Write(appendExportNameReply(nil, uint64(t.size), uint16(t.flags), !h.noZeroes))
	return err
}

func (h *handshake) infoOrGo(o option, data []byte) error {
	g, err := parseGoRequest(data)
	if err != nil {
		return h.refuseSyntax(o, err)
	}
	e := h.srv.findExport(g.name)
	if e == nil {
		return h.refuse(o, repErrUnknown, fmt.Sprintf("there is no export %q", g.name))
	}
	t, sizes := h.termsOf(e)
	if sizes.min > minBlockAssumed && !g.wants(infoBlockSize) {
		if err := h.reply(o, repInfo, appendInfoBlockSize(nil, sizes)); err != nil {
			return err
		}
		return h.refuse(o, repErrBlockSize, fmt.Sprintf("requests must be multiples of %d bytes", sizes.min))
	}
	if o == optGo {
		if err := h.enter(e, t); errors.Is(err, ErrShutdown) {
			return h.refuse(o, repErrShutdown, err.Error())
		} else if err != nil {
			return err
		}
	}
	_, err = h.wire.Write(appendGoReplies(o, e, g, t, sizes))
	return err
}

// appendGoReplies is the successful answer to INFO or GO: what was asked for.
func appendGoReplies(o option, e *export, g goRequest, t terms, sizes blockSizes) []byte {
	b := appendOptionReply(nil, o, repInfo, appendInfoExport(nil, uint64(t.size), uint16(t.flags)))
	if g.wants(infoName) {
		b = appendOptionReply(b, o, repInfo, appendInfoString(nil, infoName, e.Name))
	}
	if g.wants(infoDescription) {
		b = appendOptionReply(b, o, repInfo, appendInfoString(nil, infoDescription, e.Description))
	}
	if g.wants(infoBlockSize) {
		b = appendOptionReply(b, o, repInfo, appendInfoBlockSize(nil, sizes))
	}
	return appendOptionReply(b, o, repAck, nil)
}

// termsOf is what transmission with e would be like.
func (h *handshake) termsOf(e *export) (terms, blockSizes) {
	multi := !e.NoMultiConn && h.srv.opts.MaxConnections > 1
	f, s, size := offer(e.Device.Info(), e.ReadOnly, multi, h.structured)
	t := terms{size: size, minBlock: int64(s.min), flags: f, structured: h.structured, extended: h.extended}
	if e.Rotational {
		t.flags |= txRotational
	}
	if h.of == e {
		t.contexts = h.selected
	}
	if t.extended && t.contexts != 0 {
		t.flags |= txStatusPayload
	}
	return t, s
}

// enter makes the session a member of its export, when no request of a dead
// connection is left.
func (h *handshake) enter(e *export, t terms) error {
	ctx, cancel := context.WithDeadline(context.Background(), h.deadline)
	defer cancel()
	if err := h.srv.decided(h.conn); err != nil {
		return err
	}
	s := newSession(h.srv, e, h.wire, h.log, t)
	if err := e.enter(ctx, s); err != nil {
		return err
	}
	if err := h.srv.promote(h.conn, s); err != nil {
		e.leave(s)
		close(s.done)
		return err
	}
	h.session = s
	return nil
}

func (h *handshake) metaContext(o option, data []byte) error {
	if o == optSetMeta {
		h.selected, h.of = 0, nil // also when the option fails
	}
	if !h.structured {
		return h.refuse(o, repErrInvalid, "structured replies must be negotiated first")
	}
	m, err := parseMetaRequest(data)
	if err != nil {
		return h.refuseSyntax(o, err)
	}
	e := h.srv.findExport(m.name)
	if e == nil {
		return h.refuse(o, repErrUnknown, fmt.Sprintf("there is no export %q", m.name))
	}
	found := e.contexts().matching(m.queries, o == optListMeta)
	if o == optSetMeta {
		h.selected, h.of = found, e
	}
	var b []byte
	for found != 0 {
		one, rest := found.first()
		id := one.id()
		if o == optListMeta {
			id = 0
		}
		b = appendOptionReply(b, o, repMetaContext, appendMetaContext(nil, id, contextNames[one.id()-1]))
		found = rest
	}
	_, err = h.wire.Write(appendOptionReply(b, o, repAck, nil))
	return err
}
