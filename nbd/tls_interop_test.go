package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// The tools of QEMU and libnbd over TLS: with the right certificate they read and
// write, with none or somebody else's they get nothing, and without TLS neither. The
// keys are of both kinds that there are: GnuTLS 3.7 shows no RSA certificate to a
// server that names its authorities.
func TestTLSInterop(t *testing.T) {
	for name, newPKI := range map[string]func(testing.TB) *testenv.PKI{"EC": testenv.NewPKI, "RSA": testenv.NewRSAPKI} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testTLSInterop(t, tlsPartiesOf(t, newPKI(t)), newPKI(t))
		})
	}
}

func testTLSInterop(t *testing.T, p tlsParties, other *testenv.PKI) {
	d := newMemDevice(1 << 20)
	ts := serveTLS(t, Options{TLS: p.server}, Export{Name: "x", Device: d})
	_, port, err := net.SplitHostPort(ts.address)
	require.NoError(t, err)
	mixed := p.pki.Dir(t, "client", tls.Certificate{}) // trusts the server, shows what it does not know
	stranger := other.Dir(t, "client", other.Issue(t, "client", x509.ExtKeyUsageClientAuth))
	for _, name := range []string{"client-cert.pem", "client-key.pem"} {
		b, err := os.ReadFile(filepath.Join(stranger, name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(mixed, name), b, 0o600))
	}
	for _, row := range []struct {
		name, dir string
		ok        bool
	}{
		{"right", p.pki.Dir(t, "client", p.client), true},
		{"none", p.pki.Dir(t, "client", tls.Certificate{}), false},
		{"somebody else's", mixed, false},
		{"distrusting", stranger, false},
		{"plain", "", false},
	} {
		qemu := []string{"--object", "tls-creds-x509,id=t,endpoint=client,dir=" + row.dir, "--image-opts"}
		url := "nbds://localhost:" + port + "/x?tls-certificates=" + row.dir
		disk := "driver=nbd,host=localhost,port=" + port + ",export=x,tls-creds=t"
		if row.dir == "" {
			qemu, url, disk = []string{"--image-opts"}, "nbd://localhost:"+port+"/x", "driver=nbd,host=localhost,port="+port+",export=x"
		}
		t.Run(row.name+"/qemu-img", func(t *testing.T) {
			r := testenv.Try(t, testenv.Tool(t, "qemu-img"), append(append([]string{"info"}, qemu...), disk)...)
			require.Equal(t, row.ok, r.Err == nil, r)
		})
		t.Run(row.name+"/qemu-io", func(t *testing.T) {
			args := append(append([]string{}, qemu...), "-c", "write -P 0x5a 0 256k", "-c", "flush", "-c", "read -P 0x5a 0 256k", disk)
			r := testenv.Try(t, testenv.Tool(t, "qemu-io"), args...)
			require.Equal(t, row.ok, r.Err == nil, r)
		})
		t.Run(row.name+"/nbdinfo", func(t *testing.T) {
			r := testenv.Try(t, testenv.Tool(t, "nbdinfo"), "--json", url)
			require.Equal(t, row.ok, r.Err == nil, r)
			if row.ok {
				require.Regexp(t, `"TLS":\s*true`, r.Stdout)
			}
		})
		t.Run(row.name+"/nbdsh", func(t *testing.T) {
			r := testenv.Try(t, testenv.Python(t), "-m", "nbd", "-c",
				"h.set_uri_allow_local_file(True)\nh.connect_uri('"+url+"')\nh.pwrite(b'a' * 70000, 100)\nassert h.pread(70000, 100) == b'a' * 70000\nh.flush()\nh.shutdown()")
			require.Equal(t, row.ok, r.Err == nil, r)
		})
	}
	require.Zero(t, ts.Stats().Panics)
	require.Equal(t, 2, d.seen("write"), "by the right qemu-io and nbdsh, and nobody else")
}
