package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"time"
)

// negotiation is the client's side of a handshake. The connection's deadline
// bounds it.
type negotiation struct {
	conn     net.Conn
	noZeroes bool
	fixed    bool
}

// ExportInfo is what a server tells of an export.
type ExportInfo struct {
	Name, Description string
	Size              int64 // bytes; -1 in a list, which does not tell
	ReadOnly          bool
	MultiConn         bool
	MinBlock          int // bytes
	PreferredBlock    int // bytes
	MaxPayload        int64
	Flags             uint16   // of transmission, as on the wire
	Contexts          []string // metadata contexts
}

// flagNames are the transmission flags by their bits, as qemu-nbd -L calls them.
var flagNames = [...]string{
	1: "readonly", 2: "flush", 3: "fua", 4: "rotational", 5: "trim", 6: "zeroes", 7: "df", 8: "multi",
	9: "resize", 10: "cache", 11: "fast-zero", 12: "block-status-payload",
}

// FlagNames are the names of the flags that are set.
func (x ExportInfo) FlagNames() (names []string) {
	for bit, name := range flagNames {
		if name != "" && x.Flags&(1<<bit) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// negotiating runs f on a connection whose greeting has been exchanged and which,
// if secure is not nil, is encrypted. The connection is closed when f fails or ctx
// ends.
func negotiating(ctx context.Context, conn net.Conn, secure *tls.Config, f func(*negotiation) error) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	n := &negotiation{conn: conn}
	err := n.greet()
	if err == nil && secure != nil {
		err = n.startTLS(secure)
	}
	if err == nil {
		err = f(n)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("nbd: handshake: %w", err)
	}
	return nil
}

func (n *negotiation) greet() error {
	b, err := n.read(greetingBytes)
	if err != nil {
		return err
	}
	flags, err := parseGreeting(b)
	if err != nil {
		return err
	}
	flags &= flagFixedNewstyle | flagNoZeroes
	n.fixed, n.noZeroes = flags&flagFixedNewstyle != 0, flags&flagNoZeroes != 0
	_, err = n.conn.Write(be.AppendUint32(nil, uint32(flags)))
	return err
}

func (n *negotiation) read(length int) ([]byte, error) {
	b := make([]byte, length)
	_, err := io.ReadFull(n.conn, b)
	return b, err
}

// refused is the error reply to an option.
type refused struct {
	option option
	typ    repType
	text   string
}

func (r *refused) Error() string {
	if r.text == "" {
		return fmt.Sprintf("the server answers option %d with %s", r.option, r.typ)
	}
	return fmt.Sprintf("the server answers option %d with %s: %s", r.option, r.typ, r.text)
}

func (r *refused) Unwrap() error {
	switch r.typ {
	case repErrShutdown:
		return ErrShutdown
	case repErrUnsup:
		return ErrUnsupported
	}
	return nil
}

// ask sends an option and calls each for every reply before the final ACK, at
// most limit times. An error reply is a *refused.
func (n *negotiation) ask(o option, data []byte, limit int, each func(repType, []byte) error) error {
	if _, err := n.conn.Write(appendOption(nil, o, data)); err != nil {
		return err
	}
	for range limit + 1 {
		t, data, err := n.reply(o)
		switch {
		case err != nil:
			return err
		case t == repAck:
			return nil
		case t.isError():
			return &refused{o, t, cleanText(string(data))}
		}
		if err := each(t, data); err != nil {
			return err
		}
	}
	return fmt.Errorf("more than %d replies to option %d: %w", limit, o, errSyntax)
}

func (n *negotiation) reply(o option) (repType, []byte, error) {
	b, err := n.read(replyHeaderBytes)
	if err != nil {
		return 0, nil, err
	}
	to, t, length, err := parseOptionReply(b)
	if err != nil {
		return 0, nil, err
	}
	if to != o || length > clientReplyBytesMax {
		return 0, nil, fmt.Errorf("a reply of %d bytes to option %d while waiting for option %d: %w", length, to, o, errSyntax)
	}
	data, err := n.read(int(length))
	return t, data, err
}

// optional sends an option whose refusal is no error, and reports acceptance.
func (n *negotiation) optional(o option, data []byte, each func(repType, []byte) error) (bool, error) {
	err := n.ask(o, data, clientRepliesMax, each)
	if errors.As(err, new(*refused)) {
		return false, nil
	}
	return err == nil, err
}

func unexpected(t repType, _ []byte) error {
	return fmt.Errorf("unexpected %s: %w", t, errSyntax)
}

// enter negotiates up to transmission.
func (c *Client) enter(n *negotiation, o ClientOptions) (err error) {
	if len(o.Export) > stringBytesMax {
		return fmt.Errorf("export name of %d bytes: %w", len(o.Export), errTooLong)
	}
	if !n.fixed && !o.UseExportName {
		return fmt.Errorf("the server is not fixed newstyle: %w", ErrUnsupported)
	}
	if n.fixed && o.Extended {
		if c.extended, err = n.optional(optExtendedHeaders, nil, unexpected); err != nil {
			return err
		}
		c.structured = c.extended
	}
	if n.fixed && !o.NoStructured && !c.extended {
		if c.structured, err = n.optional(optStructuredReply, nil, unexpected); err != nil {
			return err
		}
	}
	if c.structured {
		if err := c.selectAllocation(n, o.Export); err != nil {
			return err
		}
	}
	if o.UseExportName {
		c.facts, err = n.exportName(o.Export)
	} else {
		c.facts, err = n.infoOrGo(optGo, o.Export)
	}
	if err != nil {
		return err
	}
	c.info, err = c.facts.device()
	return err
}

func (c *Client) selectAllocation(n *negotiation, name string) (err error) {
	data := metaRequest{name, []string{contextAllocation}}.append(nil)
	accepted, err := n.optional(optSetMeta, data, func(t repType, b []byte) error {
		id, context, err := parseMetaContext(b)
		if t != repMetaContext || err != nil || context != contextAllocation || c.allocation {
			return fmt.Errorf("unexpected %s selecting %s: %w", t, contextAllocation, errSyntax)
		}
		c.allocation, c.contextID = true, id
		return nil
	})
	c.allocation = c.allocation && accepted
	return err
}

func (n *negotiation) exportName(name string) (exportFacts, error) {
	if _, err := n.conn.Write(appendOption(nil, optExportName, []byte(name))); err != nil {
		return exportFacts{}, err
	}
	length := exportNameReplyBytes
	if !n.noZeroes {
		length += exportNameReplyZeroes
	}
	b, err := n.read(length)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the server closes the connection; is there an export %q? %w", name, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return exportFacts{}, err
	}
	return exportFacts{size: be.Uint64(b), flags: txFlags(be.Uint16(b[8:])), hasExport: true, name: name}, nil
}

func (n *negotiation) infoOrGo(o option, name string) (exportFacts, error) {
	var f exportFacts
	data := goRequest{name, []infoType{infoName, infoDescription, infoBlockSize}}.append(nil)
	err := n.ask(o, data, clientRepliesMax, func(t repType, b []byte) error {
		if t != repInfo {
			return unexpected(t, b)
		}
		return f.parseInfo(b)
	})
	if err == nil && !f.hasExport {
		err = fmt.Errorf("no INFO_EXPORT: %w", errSyntax)
	}
	return f, err
}

// device checks what the server says and turns it into a DeviceInfo.
func (f exportFacts) device() (DeviceInfo, error) {
	s := f.sizes
	if !f.hasSizes {
		s = blockSizes{1, preferredDefault, payloadBytesMax}
	}
	pow2 := func(n uint32) bool { return n != 0 && n&(n-1) == 0 }
	switch {
	case f.size > math.MaxInt64:
		return DeviceInfo{}, fmt.Errorf("the export has %d bytes, expected at most %d: %w", f.size, int64(math.MaxInt64), errSyntax)
	case !f.flags.has(txHasFlags):
		return DeviceInfo{}, fmt.Errorf("transmission flags %#x: %w", f.flags, errSyntax)
	case !pow2(s.min) || s.min > minBlockMax || !pow2(s.preferred) || s.preferred < s.min || s.payload < s.min:
		return DeviceInfo{}, fmt.Errorf("block sizes %d, %d, %d: %w", s.min, s.preferred, s.payload, errSyntax)
	}
	return DeviceInfo{
		Size: int64(f.size), MinBlock: int(s.min), PreferredBlock: int(min(s.preferred, math.MaxInt32)),
		MaxTransfer: int(min(s.payload, payloadBytesMax) &^ (s.min - 1)),
		ReadOnly:    f.flags.has(txReadOnly),
		CanFlush:    f.flags.has(txSendFlush), CanFUA: f.flags.has(txSendFUA),
		CanDiscard: f.flags.has(txSendTrim), CanZero: f.flags.has(txSendWriteZeroes),
		CanFastZero: f.flags.has(txSendWriteZeroes | txSendFastZero), MultiConn: f.flags.has(txCanMultiConn),
	}, nil
}

// List asks a server for its exports. Sizes are not part of the answer. With secure
// it insists on TLS.
func List(ctx context.Context, network, address string, secure *tls.Config) ([]ExportInfo, error) {
	var list []ExportInfo
	err := inquire(ctx, network, address, secure, func(n *negotiation) error {
		return n.ask(optList, nil, clientListMax, func(t repType, b []byte) error {
			if t != repServer {
				return unexpected(t, b)
			}
			name, description, err := parseServerReply(b)
			list = append(list, ExportInfo{Name: name, Description: cleanText(description), Size: -1})
			return err
		})
	})
	return list, err
}

// Info asks a server about one export without entering it. With secure it insists
// on TLS.
func Info(ctx context.Context, network, address, export string, secure *tls.Config) (ExportInfo, error) {
	var x ExportInfo
	err := inquire(ctx, network, address, secure, func(n *negotiation) error {
		structured, err := n.optional(optStructuredReply, nil, unexpected)
		if err != nil {
			return err
		}
		f, err := n.infoOrGo(optInfo, export)
		if err != nil {
			return err
		}
		var contexts []string
		if structured {
			if contexts, err = n.contexts(export); err != nil {
				return err
			}
		}
		i, err := f.device()
		x = ExportInfo{
			Name: f.name, Description: cleanText(f.description), Size: i.Size, ReadOnly: i.ReadOnly, MultiConn: i.MultiConn,
			MinBlock: i.MinBlock, PreferredBlock: i.PreferredBlock, MaxPayload: int64(i.MaxTransfer),
			Flags: uint16(f.flags), Contexts: contexts,
		}
		return err
	})
	return x, err
}

// contexts asks which metadata contexts an export has.
func (n *negotiation) contexts(export string) (names []string, err error) {
	_, err = n.optional(optListMeta, metaRequest{name: export}.append(nil), func(t repType, b []byte) error {
		_, name, err := parseMetaContext(b)
		if t != repMetaContext || err != nil {
			return fmt.Errorf("unexpected %s listing contexts: %w", t, errSyntax)
		}
		names = append(names, cleanText(name))
		return nil
	})
	return names, err
}

// inquire connects, asks, and aborts the handshake.
func inquire(ctx context.Context, network, address string, secure *tls.Config, f func(*negotiation) error) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return fmt.Errorf("nbd: %w", err)
	}
	defer conn.Close()
	return negotiating(ctx, conn, secure, func(n *negotiation) error {
		if !n.fixed {
			return fmt.Errorf("the server is not fixed newstyle: %w", ErrUnsupported)
		}
		if err := f(n); err != nil {
			return err
		}
		_, _ = n.optional(optAbort, nil, unexpected) // the server may just hang up
		return nil
	})
}
