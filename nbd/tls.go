package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"
)

// This file is TLS on both sides. A server with Options.TLS is in the
// specification's mode FORCEDTLS: before STARTTLS a client is told nothing but
// that TLS is required, and afterwards the handshake begins anew. A client with
// ClientOptions.TLS never goes on without it, whatever the server answers.
//
// Nothing that was received before STARTTLS survives it: neither what was
// negotiated (a man in the middle may have sent it, CVE-2021-3716) nor bytes
// behind the option, which a client may not send before it has the answer.

// serverTLS is the configuration of a server's connections; nil is none.
func serverTLS(c *tls.Config) *tls.Config {
	if c == nil {
		return nil
	}
	c = c.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	c.SessionTicketsDisabled = true        // every connection proves anew who it is
	c.DynamicRecordSizingDisabled = true   // a disk sends much: small records only cost
	c.Renegotiation = tls.RenegotiateNever // a client's, spelled out
	if c.ClientAuth == tls.RequireAndVerifyClientCert {
		verifyClients(c)
	}
	return c
}

// verifyClients verifies clients as crypto/tls would, but does not tell them the names
// of the authorities before. Go asks for certificates without PKCS #1 v1.5 among the
// signatures; GnuTLS 3.7, which QEMU and libnbd use, takes that for "no RSA key" when
// it looks for the certificate that fits the names, and shows none. When no name is
// given it shows the one that it has.
func verifyClients(c *tls.Config) {
	authorities, now, next := c.ClientCAs, c.Time, c.VerifyConnection
	if now == nil {
		now = time.Now
	}
	c.ClientAuth, c.ClientCAs = tls.RequireAnyClientCert, nil
	c.VerifyConnection = func(s tls.ConnectionState) (err error) {
		o := x509.VerifyOptions{
			Roots: authorities, Intermediates: x509.NewCertPool(), CurrentTime: now(),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}
		for _, between := range s.PeerCertificates[1:] {
			o.Intermediates.AddCert(between)
		}
		if s.VerifiedChains, err = s.PeerCertificates[0].Verify(o); err != nil {
			return fmt.Errorf("the client's certificate: %w", err)
		}
		if next == nil {
			return nil
		}
		return next(s)
	}
}

var (
	// errTLS: the client or the server did not prove who it is to the other.
	errTLS = errors.New("TLS")
	// errPlaintext: bytes behind STARTTLS that nobody may have sent.
	errPlaintext = errors.New("plaintext behind STARTTLS, which may be from somebody else")
	// errTLSRequired: EXPORT_NAME has no other way to be told.
	errTLSRequired = errors.New("TLS is required")
)

// beforeTLS answers an option of a connection that is not encrypted yet, if it has
// to be: everything but STARTTLS and ABORT is refused.
func (h *handshake) beforeTLS(o option) (refused bool, err error) {
	if h.srv.tls == nil || h.secure != nil || o == optStartTLS || o == optAbort {
		return false, nil
	}
	if o == optExportName {
		return true, errTLSRequired
	}
	return true, h.refuse(o, repErrTLSReqd, errTLSRequired.Error()+": begin with STARTTLS")
}

// startTLS encrypts the connection and begins the handshake anew. The deadline of
// the connection bounds it.
func (h *handshake) startTLS(data []byte) error {
	switch {
	case len(data) != 0:
		return h.refuse(optStartTLS, repErrInvalid, "this option has no data")
	case h.srv.tls == nil:
		return h.refuse(optStartTLS, repErrUnsup, "TLS is not configured")
	case h.secure != nil:
		return h.refuse(optStartTLS, repErrInvalid, "the connection is encrypted already")
	case h.r.Buffered() > 0:
		return errPlaintext
	}
	if err := h.reply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	c := tls.Server(h.conn.Conn, h.srv.tls)
	if err := c.Handshake(); err != nil {
		return fmt.Errorf("%w: %w", errTLS, err)
	}
	fresh := h.srv.newHandshake(h.conn, c, h.log)
	fresh.secure = c
	fresh.fixed, fresh.noZeroes = h.fixed, h.noZeroes // said before the first option
	fresh.options, fresh.deadline = h.options, h.deadline
	*h = *fresh
	return nil
}

// peerName is who the client has proved to be; "" if nobody asked.
func (h *handshake) peerName() string {
	if h.secure == nil {
		return ""
	}
	if certs := h.secure.ConnectionState().PeerCertificates; len(certs) > 0 {
		return cleanText(certs[0].Subject.String())
	}
	return ""
}

// startTLS asks the server for TLS and verifies it.
func (n *negotiation) startTLS(c *tls.Config) error {
	if err := n.ask(optStartTLS, nil, 0, unexpected); err != nil {
		return fmt.Errorf("TLS is required here: %w", err)
	}
	t := tls.Client(n.conn, c)
	if err := t.Handshake(); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	n.conn = t
	return nil
}

// secured is a stream over TLS. What is written together leaves in as few records
// as it takes: each costs a system call and a seal, whatever its length.
type secured struct {
	plain
	tls  *tls.Conn
	pool *buffers
}

// recordBytes is the most that a record of TLS holds.
const recordBytes = 16 << 10

func newSecured(c *tls.Conn, pool *buffers) *secured { return &secured{plain{c}, c, pool} }

func (k *secured) write(message [][]byte) error {
	buf := k.pool.get(recordBytes)
	defer k.pool.put(buf)
	n := 0
	for _, p := range message {
		for len(p) > 0 {
			if n == 0 && len(p) >= recordBytes {
				whole := len(p) &^ (recordBytes - 1)
				if _, err := k.tls.Write(p[:whole]); err != nil {
					return err
				}
				p = p[whole:]
				continue
			}
			m := copy(buf.data[n:], p)
			n, p = n+m, p[m:]
			if n < recordBytes {
				continue
			}
			if _, err := k.tls.Write(buf.data); err != nil {
				return err
			}
			n = 0
		}
	}
	if n == 0 {
		return nil
	}
	_, err := k.tls.Write(buf.data[:n])
	return err
}

// hungUp asks about the socket below.
func (k *secured) hungUp() bool { return hungUp(k.tls.NetConn()) }

// streamOver returns a stream that uses a connection as it is.
func streamOver(c net.Conn, pool *buffers) stream {
	if t, ok := c.(*tls.Conn); ok {
		return newSecured(t, pool)
	}
	return plain{c}
}
