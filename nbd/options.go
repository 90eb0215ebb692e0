package nbd

import (
	"crypto/tls"
	"log/slog"
	"time"
)

// Options of a Server. The zero value works.
type Options struct {
	// Logger gets one message for each change of state, none for requests.
	// Nil discards.
	Logger *slog.Logger
	// MaxConnections that are open at a time; 0 is 100. One above it takes the
	// place of the oldest that has not chosen an export yet, and is closed at once
	// if all have. With 1, exports do not promise multi-conn.
	MaxConnections int
	// HandshakeTimeout for everything up to transmission; 0 is 10 s.
	HandshakeTimeout time.Duration
	// WriteTimeout is how long a client may leave a reply unread, or take to send
	// the rest of a payload of more than 1 MiB, plus a second for every MiB; 0 is
	// 30 s.
	WriteTimeout time.Duration
	// Patience is how long a write may wait for space, counted from when it was
	// received, until it is answered ENOSPC; 0 is 20 s, negative is unlimited.
	// The clock is Go's monotonic one, which stands still while the host sleeps.
	Patience time.Duration
	// MaxInFlightBytes bounds the memory for requests in progress of all
	// connections together, beyond 1 MiB that each of them has for itself; 0 is
	// 1 GiB, and less than 32 MiB is taken as that. A connection that would exceed
	// it is not read from until there is room. If it reads and sends, it does not
	// wait for those who do not: who leaves replies unread, or a payload half sent,
	// for more than a second, plus one for every 4 MiB, is closed. Writes that wait
	// for space may have as much again; one that would exceed it is treated as one
	// above MaxHeld.
	MaxInFlightBytes int64
	// MaxHeld is how many requests of one connection may wait for space with
	// all their patience at a time; the next is answered ENOSPC after 2 s. 0 is
	// 8; negative is none, each is answered ENOSPC at once.
	MaxHeld int
	// TLS requires every client to begin with STARTTLS; nil serves without
	// encryption and refuses STARTTLS. Set ClientAuth to RequireAndVerifyClientCert
	// and ClientCAs to serve only clients that have a certificate; the chains that
	// verify it are in what VerifyConnection gets.
	TLS *tls.Config
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.MaxConnections = defaulted(o.MaxConnections, connectionsDefault)
	o.HandshakeTimeout = defaulted(o.HandshakeTimeout, handshakeDefault)
	o.WriteTimeout = defaulted(o.WriteTimeout, writeTimeoutDefault)
	o.Patience = defaulted(o.Patience, patienceDefault)
	o.MaxInFlightBytes = defaulted(o.MaxInFlightBytes, serverBytesDefault)
	o.MaxHeld = max(defaulted(o.MaxHeld, heldDefault), 0)
	return o
}

func defaulted[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}

// transferTime is how long a client may take to send or read n bytes.
func (srv *Server) transferTime(n int) time.Duration {
	return srv.opts.WriteTimeout + time.Duration(n)*time.Second/writeRateMin
}
