package main

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// This file turns qemu-nbd's options about TLS into a configuration: --object,
// --tls-creds, --tls-authz, --tls-hostname. Credentials are a directory with the
// names that QEMU and libnbd expect:
//
//	ca-cert.pem                     who may vouch for the other side
//	ca-crl.pem                      whom they do not vouch for any more; may be missing
//	server-cert.pem server-key.pem  of a server
//	client-cert.pem client-key.pem  of a client (-L); may be missing

// An object is what --object defines.
type object struct {
	kind, id   string
	properties map[string]string
}

// objectKinds are QEMU's objects that belong to qemu-nbd: the properties of those
// that are here, and why the others are not.
var (
	objectKinds = map[string][]string{
		"tls-creds-x509": {"dir", "endpoint", "verify-peer", "sanity-check"},
		"authz-simple":   {"identity"},
	}
	refusedObjects = map[string]string{
		"tls-creds-psk":   "pre-shared keys are not supported, because Go's TLS has none: use tls-creds-x509",
		"tls-creds-anon":  "anonymous TLS is not supported, because it protects from nobody in the middle: use tls-creds-x509",
		"authz-list":      "not supported: use authz-simple with one identity, or an authority of its own",
		"authz-list-file": "not supported: use authz-simple with one identity, or an authority of its own",
		"authz-pam":       "not supported: use authz-simple with one identity, or an authority of its own",
		"secret":          "not supported: keys in TLS's directory are files without a password, and images are not encrypted",
		"secret_keyring":  "not supported: keys in TLS's directory are files without a password, and images are not encrypted",
	}
)

// parseObject understands "type,id=ID,name=value,..."; a comma in a value is given
// twice.
func parseObject(s string) (object, error) {
	fail := func(format string, args ...any) (object, error) {
		return object{}, fmt.Errorf("--object %s: %s", s, fmt.Sprintf(format, args...))
	}
	o := object{properties: map[string]string{}}
	for i, part := range splitCommas(s) {
		name, value, ok := strings.Cut(part, "=")
		switch {
		case i == 0 && !ok:
			o.kind = name
		case i == 0 && name == "qom-type":
			o.kind = value
		case !ok:
			return fail("expected name=value, found %q", part)
		case name == "id":
			o.id = value
		default:
			o.properties[name] = value
		}
	}
	if why, ok := refusedObjects[o.kind]; ok {
		return fail("%s", why)
	}
	known, ok := objectKinds[o.kind]
	if !ok {
		return fail("an object of this kind is not supported: expected tls-creds-x509 or authz-simple")
	}
	if o.id == "" {
		return fail("expected id=NAME")
	}
	for name := range o.properties {
		if !slices.Contains(known, name) {
			return fail("%s is not supported: expected %s", name, strings.Join(known, ", "))
		}
	}
	return o, nil
}

// splitCommas splits at single commas and makes one of two.
func splitCommas(s string) (parts []string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != ',':
			b.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == ',':
			b.WriteByte(',')
			i++
		default:
			parts = append(parts, b.String())
			b.Reset()
		}
	}
	return append(parts, b.String())
}

// A tlsPlan says how a connection is secured; the zero value: not at all.
type tlsPlan struct {
	dir        string
	verifyPeer bool   // of a server: who has no certificate is refused
	identity   string // the only one that is served; "" is everybody with a certificate
	hostname   string // of a client: whom the server has to prove to be
}

func (p tlsPlan) secure() bool { return p.dir != "" }

// planTLS says what the options mean, without opening anything.
func (o *nbdOptions) planTLS() (tlsPlan, error) {
	objects := map[string]object{}
	for _, s := range o.objects {
		x, err := parseObject(s)
		if err != nil {
			return tlsPlan{}, err
		}
		if _, twice := objects[x.id]; twice {
			return tlsPlan{}, fmt.Errorf("--object %s: the id %s is given twice", s, x.id)
		}
		objects[x.id] = x
	}
	switch {
	case o.tlsCreds == "" && (o.tlsAuthz != "" || o.tlsHostname != ""):
		return tlsPlan{}, errors.New("--tls-authz and --tls-hostname belong to TLS: give --tls-creds")
	case o.tlsCreds == "":
		return tlsPlan{}, nil
	case o.tlsHostname != "" && !o.list:
		return tlsPlan{}, errors.New("--tls-hostname: it is the server's, for -L: expected none here")
	}
	p := tlsPlan{dir: o.tlsCreds, verifyPeer: true, hostname: o.tlsHostname}
	if x, ok := objects[o.tlsCreds]; ok {
		if err := p.take(x, o.list); err != nil {
			return tlsPlan{}, fmt.Errorf("--tls-creds %s: %w", o.tlsCreds, err)
		}
	} else if !strings.Contains(o.tlsCreds, "/") {
		return tlsPlan{}, fmt.Errorf("--tls-creds %s: expected the id of an --object tls-creds-x509, or a directory with a slash in it", o.tlsCreds)
	}
	if o.tlsAuthz != "" {
		x, ok := objects[o.tlsAuthz]
		switch {
		case !ok || x.kind != "authz-simple" || x.properties["identity"] == "":
			return tlsPlan{}, fmt.Errorf("--tls-authz %s: expected the id of an --object authz-simple with an identity", o.tlsAuthz)
		case o.list || !p.verifyPeer:
			return tlsPlan{}, fmt.Errorf("--tls-authz %s: expected a server that verifies its clients (verify-peer=yes)", o.tlsAuthz)
		}
		p.identity = x.properties["identity"]
	}
	return p, nil
}

// take takes what a tls-creds-x509 object says.
func (p *tlsPlan) take(x object, client bool) error {
	endpoint, want := x.properties["endpoint"], "server"
	if client {
		want = "client"
	}
	if endpoint == "" {
		endpoint = "client" // as QEMU
	}
	switch p.dir = x.properties["dir"]; {
	case x.kind != "tls-creds-x509":
		return fmt.Errorf("it is the id of an object %s, expected tls-creds-x509", x.kind)
	case endpoint != want:
		return fmt.Errorf("expected credentials with endpoint=%s, found %s", want, endpoint)
	case p.dir == "":
		return errors.New("expected dir=DIRECTORY")
	}
	switch x.properties["verify-peer"] {
	case "", "yes", "on", "true":
	case "no", "off", "false":
		p.verifyPeer = false
	default:
		return fmt.Errorf("verify-peer=%s: expected yes or no", x.properties["verify-peer"])
	}
	return nil
}

// server reads the credentials of a server; nil if there is no TLS.
func (p tlsPlan) server() (*tls.Config, error) {
	if !p.secure() {
		return nil, nil
	}
	c, authorities, revoked, err := p.read("server")
	if err != nil {
		return nil, err
	}
	if p.verifyPeer {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, authorities
	}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if err := revoked.check(s.VerifiedChains, time.Now()); err != nil || p.identity == "" {
			return err
		}
		if name := distinguishedName(s.PeerCertificates[0]); name != p.identity {
			return fmt.Errorf("the client %s is not the one of --tls-authz", name)
		}
		return nil
	}
	return c, nil
}

// client reads the credentials of a client; nil if there is no TLS.
func (p tlsPlan) client(bind string) (*tls.Config, error) {
	if !p.secure() {
		return nil, nil
	}
	c, authorities, revoked, err := p.read("client")
	if err != nil {
		return nil, err
	}
	if c.ServerName = p.hostname; c.ServerName == "" {
		c.ServerName = bind
	}
	if c.ServerName == "" {
		return nil, errors.New("--tls-creds: a unix socket has no name to compare with the server's certificate: give it with --tls-hostname")
	}
	if !p.verifyPeer {
		return nil, errors.New("--tls-creds: a client that does not verify the server is not supported: expected verify-peer=yes")
	}
	c.RootCAs = authorities
	c.VerifyConnection = func(s tls.ConnectionState) error { return revoked.check(s.VerifiedChains, time.Now()) }
	return c, nil
}

// read reads the directory. A client need not have a certificate.
func (p tlsPlan) read(role string) (*tls.Config, *x509.CertPool, *revocations, error) {
	fail := func(name string, err error) (*tls.Config, *x509.CertPool, *revocations, error) {
		return nil, nil, nil, fmt.Errorf("--tls-creds: %s: %w", filepath.Join(p.dir, name), err)
	}
	authorities, err := readPEM(filepath.Join(p.dir, "ca-cert.pem"), "CERTIFICATE", x509.ParseCertificate)
	if err != nil {
		return fail("ca-cert.pem", err)
	}
	pool := x509.NewCertPool()
	for _, a := range authorities {
		pool.AddCert(a)
	}
	revoked, err := readRevocations(filepath.Join(p.dir, "ca-crl.pem"), authorities)
	if err != nil {
		return fail("ca-crl.pem", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	own := role + "-cert.pem"
	pair, err := tls.LoadX509KeyPair(filepath.Join(p.dir, own), filepath.Join(p.dir, role+"-key.pem"))
	switch {
	case err == nil:
		c.Certificates = []tls.Certificate{pair}
	case role == "server" || !errors.Is(err, fs.ErrNotExist):
		return fail(own, err)
	}
	return c, pool, revoked, nil
}

// readPEM reads all blocks of a kind, of which there must be one.
func readPEM[T any](path, kind string, parse func([]byte) (T, error)) (all []T, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for len(b) > 0 {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != kind {
			continue
		}
		x, err := parse(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, x)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("expected PEM with a %s, found none", kind)
	}
	return all, nil
}

// revocations are the certificates that authorities have taken back.
type revocations struct {
	serials map[string]bool // issuer and serial number
	until   time.Time       // after that nothing is known; zero: for ever
}

// readRevocations reads revocation lists; no file is an empty one.
func readRevocations(path string, authorities []*x509.Certificate) (*revocations, error) {
	r := &revocations{serials: map[string]bool{}}
	lists, err := readPEM(path, "X509 CRL", x509.ParseRevocationList)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	for _, l := range lists {
		if !slices.ContainsFunc(authorities, func(a *x509.Certificate) bool { return l.CheckSignatureFrom(a) == nil }) {
			return nil, errors.New("a revocation list is not signed by an authority of ca-cert.pem")
		}
		for _, e := range l.RevokedCertificateEntries {
			r.serials[string(l.RawIssuer)+e.SerialNumber.String()] = true
		}
		if n := l.NextUpdate; !n.IsZero() && (r.until.IsZero() || n.Before(r.until)) {
			r.until = n
		}
	}
	return r, nil
}

// check accepts a side that has a chain in which nothing was taken back.
func (r *revocations) check(chains [][]*x509.Certificate, now time.Time) error {
	if len(chains) == 0 { // nobody was verified, as was asked for
		return nil
	}
	if !r.until.IsZero() && now.After(r.until) {
		return fmt.Errorf("the revocation list ended on %v: expected a newer ca-crl.pem, and a restart", r.until)
	}
	for _, chain := range chains {
		if !slices.ContainsFunc(chain, func(c *x509.Certificate) bool {
			return r.serials[string(c.RawIssuer)+c.SerialNumber.String()]
		}) {
			return nil
		}
	}
	return errors.New("the certificate was revoked")
}

// distinguishedName is a certificate's subject as QEMU and openssl -nameopt RFC2253
// write it.
func distinguishedName(c *x509.Certificate) string {
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(c.RawSubject, &name); err != nil {
		return ""
	}
	return name.String()
}
