package nbd

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// tlsParties are a server's configuration and those of its clients.
type tlsParties struct {
	pki           *testenv.PKI
	client        tls.Certificate
	server, right *tls.Config
}

func newTLSParties(t testing.TB) tlsParties { return tlsPartiesOf(t, testenv.NewPKI(t)) }

func tlsPartiesOf(t testing.TB, pki *testenv.PKI) tlsParties {
	p := tlsParties{pki: pki, client: pki.Issue(t, "client", x509.ExtKeyUsageClientAuth)}
	p.server = &tls.Config{
		Certificates: []tls.Certificate{pki.Issue(t, "server", x509.ExtKeyUsageServerAuth)},
		ClientCAs:    pki.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	}
	p.right = p.as(p.client)
	return p
}

// as is a client that trusts the server and shows these certificates.
func (p tlsParties) as(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: p.pki.Pool(), ServerName: "localhost", Certificates: certs}
}

// serveTLS is on TCP, where the tools want it.
func serveTLS(t testing.TB, o Options, exports ...Export) *testServer {
	srv := NewServer(o)
	for _, x := range exports {
		require.NoError(t, srv.AddExport(x))
	}
	var tcp net.Listener
	ts := serveListener(t, srv, func(l net.Listener) net.Listener {
		_ = l.Close()
		var err error
		tcp, err = net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		return tcp
	})
	ts.network, ts.address = "tcp", tcp.Addr().String()
	return ts
}

// Everything that a Device does goes through TLS, of both versions, in pieces of
// every size.
func TestTLS(t *testing.T) {
	p := newTLSParties(t)
	d := newMemDevice(8 << 20)
	ts := serveTLS(t, Options{TLS: p.server}, Export{Name: "x", Description: "disk", Device: d})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		o := p.right.Clone()
		o.MinVersion, o.MaxVersion = version, version
		c := ts.dial(t, ClientOptions{Export: "x", TLS: o})
		for i, n := range []int{1, 512, recordBytes - simpleBytes, recordBytes, recordBytes + 1, 3*recordBytes + 7, 4 << 20} {
			data := bytes.Repeat([]byte{byte(i + 1), byte(version)}, n/2+1)[:n]
			require.NoError(t, c.WriteAt(t.Context(), data, int64(i)*511, FUA))
			got := make([]byte, n)
			require.NoError(t, c.ReadAt(t.Context(), got, int64(i)*511, 0))
			require.True(t, bytes.Equal(data, got), "%d bytes", n)
		}
		require.NoError(t, c.Flush(t.Context()))
		extents, err := c.AppendExtents(t.Context(), nil, 0, 8<<20)
		require.NoError(t, err)
		require.Greater(t, len(extents), 1)
	}
	list, err := List(t.Context(), ts.network, ts.address, p.right)
	require.NoError(t, err)
	require.Len(t, list, 1)
	x, err := Info(t.Context(), ts.network, ts.address, "x", p.right)
	require.NoError(t, err)
	require.EqualValues(t, 8<<20, x.Size)
}

// Who has no certificate, or one of somebody else, or a server's, reaches nothing, and
// neither does a client that gets one of them from a server (CVE-2024-7383);
// who does not ask for TLS is told nothing.
func TestTLSWrongClients(t *testing.T) {
	p, other := newTLSParties(t), testenv.NewPKI(t)
	d := newMemDevice(4096)
	before := runtime.NumGoroutine()
	t.Run("", func(t *testing.T) {
		log := &lockedBuffer{}
		o := Options{TLS: p.server, Logger: slog.New(slog.NewTextHandler(log, nil))}
		ts := serveTLS(t, o, Export{Name: "x", Device: d})
		for name, c := range map[string]*tls.Config{
			"no certificate":            p.as(),
			"somebody else's authority": p.as(other.Issue(t, "client", x509.ExtKeyUsageClientAuth)),
			"a server's certificate":    p.as(p.pki.Issue(t, "client", x509.ExtKeyUsageServerAuth)),
			"no TLS":                    nil,
			"TLS 1.1": {
				RootCAs: p.pki.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{p.client}, MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10,
			},
			"another server's name": {RootCAs: p.pki.Pool(), ServerName: "example.com", Certificates: []tls.Certificate{p.client}},
			"distrust":              {RootCAs: other.Pool(), ServerName: "localhost", Certificates: []tls.Certificate{p.client}},
		} {
			_, err := Dial(t.Context(), ts.network, ts.address, ClientOptions{Export: "x", TLS: c})
			require.Error(t, err, name)
			_, err = List(t.Context(), ts.network, ts.address, c)
			require.Error(t, err, name)
		}
		require.NoError(t, ts.dial(t, ClientOptions{TLS: p.right}).Flush(t.Context()))
		require.Equal(t, 0, d.seen("read")+d.seen("write"), "nothing else reached the device")
		for _, why := range []string{"client didn't provide a certificate", "the client's certificate: x509: ", "unsupported versions", "remote=127.0.0.1"} {
			eventually(t, why+" is in the log", func() bool { return strings.Contains(log.String(), why) })
		}
		require.Zero(t, ts.Stats().Panics)
	})
	eventually(t, "all goroutines gone", func() bool { return runtime.NumGoroutine() <= before })
}

// A lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Before TLS every option but STARTTLS and ABORT is refused, and the connection may
// go on to ask for TLS.
func TestTLSIsForced(t *testing.T) {
	p := newTLSParties(t)
	ts := serve(t, Options{TLS: p.server}, Export{Name: "x", Device: newMemDevice(4096)})
	r := ts.options(t)
	for _, o := range []option{optList, optInfo, optGo, optStructuredReply, optListMeta, optSetMeta, optExtendedHeaders, 4, 12345} {
		require.Equal(t, []repType{repErrTLSReqd}, r.option(o, goRequest{name: "x"}.append(nil)), "option %d", o)
	}
	require.Equal(t, []repType{repErrInvalid}, r.option(optStartTLS, []byte{1}))
	require.Equal(t, []repType{repAck}, r.option(optStartTLS, nil))
	secure := tls.Client(r.conn, p.right)
	require.NoError(t, secure.Handshake())
	r.conn = secure
	require.Equal(t, []repType{repErrInvalid}, r.option(optStartTLS, nil), "twice")
	require.Equal(t, []repType{repServer, repAck}, r.option(optList, nil))
	require.Equal(t, []repType{repErrInvalid}, r.option(optSetMeta, metaRequest{"x", nil}.append(nil)), "structured replies were not agreed")

	r = ts.options(t)
	require.Equal(t, []repType{repAck}, r.option(optAbort, nil))
	r.closed()
	r = ts.options(t)
	r.send(appendOption(nil, optExportName, []byte("x")))
	r.closed()
}

// What arrives behind STARTTLS in the clear is somebody else's (CVE-2021-3716): the
// connection ends, in one piece or two.
func TestTLSInjection(t *testing.T) {
	p := newTLSParties(t)
	ts := serve(t, Options{TLS: p.server}, Export{Name: "x", Device: newMemDevice(4096)})
	injected := appendOption(nil, optStructuredReply, nil)
	for name, b := range map[string][]byte{
		"an option": injected, "a byte": {0x16}, "half an option": injected[:7],
		"more than the buffer holds": bytes.Repeat(injected, 500), "a client hello": clientHello(t),
	} {
		r := ts.options(t)
		r.send(append(appendOption(nil, optStartTLS, nil), b...))
		r.closed()

		r = ts.options(t)
		require.Equal(t, []repType{repAck}, r.option(optStartTLS, nil))
		if name == "a client hello" {
			continue // it may come now
		}
		r.send(b)
		if c := tls.Client(r.conn, p.right); len(b) >= 5 { // a record's header, which is none
			require.Error(t, c.Handshake(), name)
		} else {
			_ = r.conn.Close()
		}
	}
	require.NoError(t, ts.dial(t, ClientOptions{TLS: p.right}).Flush(t.Context()))
}

func clientHello(t *testing.T) []byte {
	a, b := net.Pipe()
	defer b.Close()
	go func() { _ = tls.Client(a, &tls.Config{ServerName: "localhost"}).Handshake() }()
	buf := make([]byte, 4096)
	n, err := b.Read(buf)
	require.NoError(t, err)
	return buf[:n]
}

// A client that wants TLS never goes on without it, whatever it is answered
// (CVE-2019-14842).
func TestTLSClientIsNotTalkedOut(t *testing.T) {
	p := newTLSParties(t)
	plainServer := serve(t, Options{}, Export{Device: newMemDevice(4096)})
	_, err := Dial(t.Context(), plainServer.network, plainServer.address, ClientOptions{TLS: p.right})
	require.ErrorContains(t, err, "TLS is required here")
	require.ErrorIs(t, err, ErrUnsupported)

	// A man in the middle says yes, and a word of his own before TLS begins.
	a, b := net.Pipe()
	defer b.Close()
	go func() {
		_, _ = b.Write(appendGreeting(nil, flagFixedNewstyle|flagNoZeroes))
		_, _ = io.ReadFull(b, make([]byte, clientFlagsBytes+optionHeaderBytes))
		go func() { _, _ = io.Copy(io.Discard, b) }() // a pipe holds nothing
		_, _ = b.Write(appendOptionReply(appendOptionReply(nil, optStartTLS, repAck, nil), optStructuredReply, repAck, nil))
	}()
	_, err = NewClient(t.Context(), a, ClientOptions{TLS: p.right})
	require.Error(t, err)
}

// The time limit of the handshake includes TLS.
func TestTLSHandshakeIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTLSParties(t) // here: they are valid at the time of the bubble
		srv := NewServer(Options{TLS: p.server})
		require.NoError(t, srv.AddExport(Export{Device: newMemDevice(4096)}))
		a, b := netPipe()
		srv.ServeConn(a)
		good, err := NewClient(t.Context(), b, ClientOptions{TLS: p.right})
		require.NoError(t, err)
		for _, n := range []int{0, 20, math.MaxInt} {
			start := time.Now()
			r := pipeRaw(t, srv)
			r.read(greetingBytes)
			r.send(be.AppendUint32(nil, flagFixedNewstyle|flagNoZeroes))
			require.Equal(t, []repType{repAck}, r.option(optStartTLS, nil))
			if hello := clientHello(t); n > 0 { // a pipe waits for who reads nothing
				r.send(hello[:min(n, len(hello))])
			}
			_, err := io.Copy(io.Discard, r.conn) // until the server hangs up
			require.NoError(t, err)
			require.Equal(t, handshakeDefault, time.Since(start))
		}
		synctest.Wait()
		require.Equal(t, 1, srv.Stats().Connections)
		require.NoError(t, good.Flush(t.Context()))
		require.NoError(t, good.Close())
		require.NoError(t, srv.Shutdown(t.Context()))
	})
}

// A new connection over TLS waits for the requests of one that is dead, as without
// TLS (rule 10), although nobody reads what the dead one may still send.
func TestTLSReconnect(t *testing.T) {
	p := newTLSParties(t)
	s := newSecured(tls.Client(brokenConn(t), p.right), &buffers{})
	eventually(t, "noticed", s.hungUp)
}

// brokenConn is a socket whose other end is gone.
func brokenConn(t *testing.T) net.Conn {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = a.Close() })
	b, err := l.Accept()
	require.NoError(t, err)
	require.NoError(t, b.Close())
	return a
}

// Shutdown ends a connection with TLS's own goodbye, after the last reply.
func TestTLSGoodbye(t *testing.T) {
	p := newTLSParties(t)
	ts := serve(t, Options{TLS: p.server}, Export{Device: newMemDevice(4096)})
	r := ts.options(t)
	require.Equal(t, []repType{repAck}, r.option(optStartTLS, nil))
	r.conn = tls.Client(r.conn, p.right)
	require.Equal(t, []repType{repInfo, repAck}, r.option(optGo, goRequest{}.append(nil)))
	r.ask(requestHeader{cmd: cmdRead, length: 512}, nil, 0)
	r.send(requestHeader{cmd: cmdDisc}.append(nil))
	r.closed() // io.EOF and not io.ErrUnexpectedEOF
}
