package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
)

// A pool has a template, and what is based on it; both have names.
func TestVolumesOnTemplates(t *testing.T) {
	root := managedRoot(t)
	does(t, "domain create only "+root+"/a --capacity 2G")
	does(t, "pool create office only")
	domain := told[[]domainView](t, "domain list")[0]
	require.Contains(t, does(t, "volume create --size 1G --domain "+domain.UUID+" web1"), "created web1: 1.0 GiB, ")
	does(t, "image copy web1 --template --name server --description tidy --wait")
	require.Contains(t, does(t, "volume create --template server web2"), "created web2: 1.0 GiB, ")
	var v spm.Volume
	require.NoError(t, json.Unmarshal([]byte(does(t, "volume create --template server --size 2G --output=json web3")), &v))
	require.EqualValues(t, 2<<30, v.Size)
	for _, i := range told[[]imageView](t, "image list") {
		if i.Name == "server" {
			require.Equal(t, "SHARED", i.leaf().Type)
			require.Len(t, i.leaf().Children, 2)
			require.Equal(t, `{"DiskAlias":"server","DiskDescription":"tidy"}`, i.leaf().Description)
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"create", "--template", "web1", "x"}, "is no template: make one of it with: tidemark image copy --template web1"},
		{[]string{"create", "--template", "server", "web1"}, "has the name web1 already: choose another"},
		{[]string{"create", "--template", "server", "a/b"}, "contains a slash"},
		{[]string{"create", "--template", "server", "--format", "raw", "x"}, "a volume on a template is qcow2"},
		{[]string{"create", "--template", "server", "--size", "512M", "x"}, "less than the"},
		{[]string{"create", "--size", "1G", "--domain", "nix", "x"}, `there is no domain "nix"`},
		{[]string{"copy", "web1", "--name", "server"}, "has the name server already: choose another"},
	} {
		r := cli(t, append([]string{"volume"}, c.args...)...)
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, c.want, r)
	}
}

// In a pool of two domains a volume lies where it is asked for.
func TestVolumeInDomain(t *testing.T) {
	root := managedRoot(t)
	does(t, "domain create first "+root+"/a --capacity 1G")
	does(t, "domain create second "+root+"/b --capacity 1G")
	does(t, "pool create office first second")
	does(t, "volume create --size 1G --domain second web1")
	does(t, "volume create --size 1G web2")
	require.Equal(t, "web1", told[[]imageView](t, "image list --domain second")[0].Name)
	listed := does(t, "volume list")
	require.Contains(t, listed, "\ndomain "+root+"/a: 1.0 GiB, ")
	require.Contains(t, listed, "\ndomain "+root+"/b: 1.0 GiB, ")
	require.NotContains(t, listed, "pool ", "what is free in one domain is of no use in the other")
	does(t, "image copy web1 --template --name server --wait")
	r := cli(t, "volume", "create", "--template", "server", "--domain", "first", "x")
	require.Contains(t, r.stderr, "leave --domain out, or copy the template: tidemark image copy --template --to first server")
	does(t, "volume create --template server --domain second web3")
	require.Len(t, told[[]imageView](t, "image list --domain second"), 3)
}

// managedRoot is where domains may be connected to the manager that TIDEMARK_SPM names,
// which is a process of its own: it starts others.
func managedRoot(t *testing.T) string {
	t.Helper()
	root, socket := t.TempDir(), filepath.Join(t.TempDir(), "spm.sock")
	for _, d := range []string{"a", "b"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, d), 0o755))
	}
	p := testenv.Start(t, tidemark(t, "spm", "--root", root, "--socket", socket))
	awaitOutput(t, p, "ready: ")
	t.Setenv("TIDEMARK_SPM", socket)
	return root
}

// A place that is not there is said to be that, once, by the number that VDSM's users know.
func TestConnectNothing(t *testing.T) {
	root := managedRoot(t)
	r := cli(t, "domain", "connect", root+"/nix")
	require.Equal(t, exitFailure, r.code, r)
	require.Equal(t, "tidemark: connect "+root+"/nix: there is no such directory (code 453)\n", r.stderr)
}
