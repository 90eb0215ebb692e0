package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

func TestParseObject(t *testing.T) {
	o, err := parseObject("authz-simple,id=a0,identity=CN=me,,O=Test")
	require.NoError(t, err)
	require.Equal(t, object{"authz-simple", "a0", map[string]string{"identity": "CN=me,O=Test"}}, o)
	o, err = parseObject("qom-type=tls-creds-x509,endpoint=server,id=t,dir=/a=b")
	require.NoError(t, err)
	require.Equal(t, object{"tls-creds-x509", "t", map[string]string{"endpoint": "server", "dir": "/a=b"}}, o)
}

func TestTLSOptionErrors(t *testing.T) {
	const x509 = "--object tls-creds-x509,id=t,"
	for _, c := range []struct{ args, text string }{
		{"--object tls-creds-psk,id=t,dir=/d a", "Go's TLS has none"},
		{"--object tls-creds-anon,id=t a", "use tls-creds-x509"},
		{"--object secret,id=s,data=x a", "not supported"},
		{"--object authz-list,id=s a", "authz-simple"},
		{"--object iothread,id=s a", "an object of this kind is not supported"},
		{"--object tls-creds-x509,dir=/d a", "expected id=NAME"},
		{x509 + "priority=NORMAL a", "priority is not supported"},
		{x509 + "dir a", `expected name=value, found "dir"`},
		{x509 + "dir=/d " + x509 + "dir=/d a", "the id t is given twice"},
		{x509 + "dir=/d --tls-creds t a", "expected credentials with endpoint=server, found client"},
		{x509 + "dir=/d,endpoint=server -L --tls-creds t", "expected credentials with endpoint=client, found server"},
		{x509 + "endpoint=server --tls-creds t a", "expected dir=DIRECTORY"},
		{x509 + "endpoint=server,dir=/d,verify-peer=maybe --tls-creds t a", "expected yes or no"},
		{"--tls-creds other a", "expected the id of an --object"},
		{"--tls-creds /nowhere/ a", "/nowhere/ca-cert.pem: "},
		{"--tls-authz a0 a", "give --tls-creds"},
		{"--tls-creds /nowhere/ --tls-authz a0 a", "expected the id of an --object authz-simple"},
		{"--tls-creds /nowhere/ --tls-hostname h a", "it is the server's"},
		{x509 + "endpoint=server,dir=/d,verify-peer=no --object authz-simple,id=z,identity=CN=x --tls-creds t --tls-authz z a", "verify-peer=yes"},
		{x509 + "endpoint=server,dir=/d,verify-peer=no --tls-creds t -b 0.0.0.0 a", "add --insecure"},
	} {
		r := cli(t, append([]string{"nbd"}, strings.Fields(c.args)...)...)
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, c.text, r)
	}
	require.NoError(t, (&nbdOptions{bind: "0.0.0.0", port: 1}).planAddress(
		&nbdPlan{tls: tlsPlan{dir: "/d", verifyPeer: true}}, func(string) bool { return false }), "verified clients need no --insecure")
}

// The command line is qemu-nbd's: its object, a directory, who is allowed and who
// was revoked; the client is QEMU's, and ours with -L.
func TestServeTLS(t *testing.T) {
	qemuImg := testenv.Tool(t, "qemu-img")
	pki := testenv.NewPKI(t)
	issue := func(name string) string {
		return pki.Dir(t, "client", pki.Issue(t, name, x509.ExtKeyUsageClientAuth))
	}
	server := pki.Dir(t, "server", pki.Issue(t, "server", x509.ExtKeyUsageServerAuth))
	me, somebody, nobody := issue("me"), issue("somebody"), pki.Dir(t, "client", tls.Certificate{})
	taken := pki.Issue(t, "taken", x509.ExtKeyUsageClientAuth)
	withList := pki.Dir(t, "server", pki.Issue(t, "server", x509.ExtKeyUsageServerAuth))
	require.NoError(t, os.WriteFile(filepath.Join(withList, "ca-crl.pem"), pki.Revoke(t, taken), 0o600))
	revoked := pki.Dir(t, "client", taken)

	for _, row := range []struct {
		name    string
		options []string
		served  []string
		refused []string
	}{
		{"directory", []string{"--tls-creds", server + "/"}, []string{me, somebody, revoked}, []string{nobody, ""}},
		{"object", []string{"--object", "tls-creds-x509,id=t0,endpoint=server,dir=" + server, "--tls-creds", "t0"}, []string{me, somebody}, []string{nobody, ""}},
		{"nobody is verified", []string{"--object", "tls-creds-x509,id=t0,endpoint=server,verify-peer=no,dir=" + server, "--tls-creds", "t0"}, []string{me, nobody}, []string{""}},
		{"revocation list", []string{"--tls-creds", withList}, []string{me}, []string{revoked, nobody, ""}},
		{"one identity", []string{"--tls-creds", server, "--object", "authz-simple,id=z,identity=CN=me,,O=Test", "--tls-authz", "z"}, []string{me}, []string{somebody, nobody, ""}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, socket := startNBD(t, append(row.options, "-t", newImage(t, "4M"))...)
			info := func(dir string) testenv.Result {
				disk := fmt.Sprintf("driver=nbd,path=%s", socket)
				if dir == "" {
					return testenv.Try(t, qemuImg, "info", "--image-opts", disk)
				}
				return testenv.Try(t, qemuImg, "info", "--object", "tls-creds-x509,id=c,endpoint=client,dir="+dir,
					"--image-opts", disk+",tls-creds=c,tls-hostname=localhost")
			}
			for _, dir := range row.served {
				r := info(dir)
				require.NoError(t, r.Err, r)
				l := cli(t, "nbd", "-L", "-k", socket, "--tls-creds", dir+"/", "--tls-hostname", "localhost")
				require.Zero(t, l.code, l)
				require.Contains(t, l.stdout, "size:  4194304")
			}
			for _, dir := range row.refused {
				r := info(dir)
				require.Error(t, r.Err, r)
			}
			require.NotZero(t, cli(t, "nbd", "-L", "-k", socket).code, "without TLS")
			require.NotZero(t, cli(t, "nbd", "-L", "-k", socket, "--tls-creds", me+"/", "--tls-hostname", "example.org").code)
			require.Contains(t, cli(t, "nbd", "-L", "-k", socket, "--tls-creds", me+"/").stderr, "--tls-hostname")
			stopped(t, p)
		})
	}
}
