package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
)

// What create makes is what qemu-img makes: the same words, the same info, and
// nothing to complain about.
func TestCreateAgreesWithQEMU(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	for _, options := range []string{
		"", "compat=0.10", "compat=v3,cluster_size=512", "cluster_size=2M", "refcount_bits=1", "refcount_bits=64,lazy_refcounts=on",
		"preallocation=off,compression_type=zlib,extended_l2=off,encryption=off",
		"extended_l2=on,compression_type=zstd", "extended_l2=on,cluster_size=16k,lazy_refcounts=on",
	} {
		t.Run(options, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			args := []string{"create", "-f", "qcow2"}
			if options != "" {
				args = append(args, "-o", options)
			}
			args = append(args, path, "1234567k")
			theirs := testenv.Run(t, "qemu-img", args...)
			info := testenv.Run(t, "qemu-img", "info", "--output=json", path)
			require.NoError(t, os.Remove(path))
			r := cli(t, args...)
			require.Zero(t, r.code, r)
			if !strings.Contains(options, "preallocation") { // QEMU echoes what was given
				require.Equal(t, theirs, r.stdout)
			}
			testenv.Run(t, "qemu-img", "check", path)
			ours := testenv.Run(t, "qemu-img", "info", "--output=json", path)
			require.Equal(t, withoutActualSize(info), withoutActualSize(ours))
		})
	}
}

func withoutActualSize(json string) string {
	var kept []string
	for _, line := range strings.Split(json, "\n") {
		if !strings.Contains(line, `"actual-size"`) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}

func TestCreateSizes(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"x", "1"}, " size=512 "},
		{[]string{"-o", "size=1M", "x"}, " size=1048576 "},
		{[]string{"x", "0"}, " size=0 "},
		{[]string{"-f", "raw", "y", "1M"}, "fmt=raw size=1048576"},
	} {
		t.Chdir(dir)
		r := cli(t, append([]string{"create"}, c.args...)...)
		require.Zero(t, r.code, r)
		require.Contains(t, r.stdout, c.want)
	}
	st, err := os.Stat(filepath.Join(dir, "y"))
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, st.Size())
	require.Empty(t, cli(t, "create", "-q", "x", "1M").stdout)
}

// Whatever is wrong with the options, the file that was there is as it was, and
// one that was not is not there.
func TestCreateRefusals(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("old", []byte("precious"), 0o644))
	require.NoError(t, os.WriteFile("base", []byte("raw"), 0o644))
	for _, c := range []struct {
		args string
		text string
	}{
		{"-b base FILE 1M", "expected its format, which is never guessed"},
		{"-o backing_file=base FILE 1M", "expected its format, which is never guessed"},
		{"-F qcow2 FILE 1M", "expected a backing file with it"},
		{"-o backing_fmt=raw FILE 1M", "expected a backing file with it"},
		{"-b base -F vmdk FILE 1M", "expected raw or qcow2"},
		{"-b none -F raw FILE 1M", "no such file or directory; -u does without it"},
		{"-b none -F raw -u FILE", "expected a size, found none"},
		{"-b base -F qcow2 FILE", "not a QCOW2 image"},
		{"-b nbd:localhost:1 -F raw FILE", "write ./nbd:localhost:1"},
		{"-b json:{} -F raw -u FILE 1M", "takes for a protocol"},
		{"-f raw -b base -F raw FILE 1M", "a raw image has no backing file"},
		{"-b ./FILE -F raw FILE 1M", ""},
		{"-o compression_type=zstd,compat=0.10 FILE 1M", "needs compat 1.1"},
		{"-o extended_l2=on,compat=0.10 FILE 1M", "need compat 1.1"},
		{"-o extended_l2=on,cluster_size=8k FILE 1M", "need at least 16384"},
		{"-b " + strings.Repeat("n", 600) + " -F raw -u -o cluster_size=512 FILE 1M", "do not fit into the first cluster"},
		{"-o data_file=d FILE 1M", "external data files are not supported yet"},
		{"-o encrypt.format=luks FILE 1M", "encryption is not supported yet"},
		{"-o encryption=on FILE 1M", "expected encryption=off"},
		{"-o preallocation=full FILE 1M", "expected preallocation=off"},
		{"-o compression_type=lz4 FILE 1M", "expected zlib or zstd"},
		{"-o extended_l2=maybe FILE 1M", "expected on or off"},
		{"-o nix=1 FILE 1M", "unknown option"},
		{"-o compat=0.10,lazy_refcounts=on FILE 1M", "compat 1.1"},
		{"-o compat=0.10,refcount_bits=8 FILE 1M", "refcount"},
		{"-o compat=2 FILE 1M", "expected 0.10 or 1.1"},
		{"-o lazy_refcounts=maybe FILE 1M", "expected on or off"},
		{"-o refcount_bits=3 FILE 1M", "expected 1, 2, 4"},
		{"-o cluster_size=3 FILE 1M", "power of two"},
		{"-o cluster_size=0 FILE 1M", "512 to 2M"},
		{"-o cluster_size=4M FILE 1M", "cluster"},
		{"-o cluster_size=512 FILE 1P", "expected 0 to"},
		{"-f raw -o cluster_size=64k FILE 1M", "unknown option of format raw"},
		{"-f vmdk FILE 1M", "expected qcow2, raw"},
		{"--object secret,id=s FILE 1M", "objects"},
		{"FILE", "expected a size, found none"},
		{"FILE -1", "unknown shorthand"},
		{"FILE x", "not a size"},
		{"FILE 9E", "size too large"},
		{"FILE 1M 2M", "expected FILE SIZE, found 3"},
		{"--nix FILE 1M", "unknown flag: --nix; see tidemark create --help"},
	} {
		for _, file := range []string{"old", "new"} {
			args := strings.Fields("create " + strings.ReplaceAll(c.args, "FILE", file))
			r := cli(t, args...)
			require.Equal(t, exitFailure, r.code, r)
			require.Contains(t, r.stderr, c.text, r)
			require.Empty(t, r.stdout, r)
		}
		require.NoFileExists(t, "new", c.args)
		b, err := os.ReadFile("old")
		require.NoError(t, err)
		require.Equal(t, "precious", string(b), c.args)
	}
}

func TestCreateOverwrites(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(path, []byte("old"), 0o600))
	r := cli(t, "create", path, "1M")
	require.Zero(t, r.code, r)
	require.Zero(t, cli(t, "check", path).code)

	holder, err := hostfile.Open(path, hostfile.Options{})
	require.NoError(t, err)
	before := digest(t, path)
	r = cli(t, "create", path, "2M")
	require.Equal(t, exitFailure, r.code, r)
	require.Contains(t, r.stderr, "in use")
	require.Equal(t, before, digest(t, path))
	require.NoError(t, holder.Close())

	for _, special := range []string{"/dev/null", dir} {
		r = cli(t, "create", special, "1M")
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, "expected a regular file, found a")
	}
	r = cli(t, "create", filepath.Join(dir, "none", "disk"), "1M")
	require.Equal(t, exitFailure, r.code, r)
	require.Contains(t, r.stderr, "no such file or directory")
}

func TestCreateHelpOfOptions(t *testing.T) {
	r := cli(t, "create", "-o", "help")
	require.Zero(t, r.code, r)
	require.Contains(t, r.stdout, "refcount_bits=N")
}

// A file system without space: nothing half made stays.
func TestCreateWithoutSpaceLeavesNothing(t *testing.T) {
	path := filepath.Join(testenv.Tmpfs(t, 64<<10), "disk")
	r := cli(t, "create", path, "1T")
	require.Equal(t, exitFailure, r.code, r)
	require.Contains(t, r.stderr, "no space", r)
	require.Empty(t, r.stdout)
	require.NoFileExists(t, path)
}
