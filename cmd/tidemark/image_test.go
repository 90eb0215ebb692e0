package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// made is an image that qemu-img created and qemu-io ran commands on.
func made(t *testing.T, options string, commands ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	args := []string{"create", "-q", "-f", "qcow2"}
	if options != "" {
		args = append(args, "-o", options)
	}
	testenv.Run(t, "qemu-img", append(args, path, "100M")...)
	if len(commands) > 0 {
		args = []string{"-d", "unmap"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		testenv.Run(t, "qemu-io", append(args, path)...)
	}
	return path
}

// busy are commands that leave clusters of every kind.
var busy = []string{
	"write -P 1 0 64k", "write -z 128k 64k", "write -P 2 1M 128k", "discard 1M 64k", "write -P 3 5M 3M",
	"write -P 4 20M 1M", "write -z 20M 512k", "write -P 5 99M 1M", "write -P 9 66M 12345",
}

// geometries are the images that every command is compared on.
var geometries = []string{
	"", "compat=0.10", "cluster_size=512", "cluster_size=2M,refcount_bits=64", "refcount_bits=1,lazy_refcounts=on",
}

// same asserts that two JSON values agree in every field of the first; ours may
// have more, which it returns.
func same(t *testing.T, theirs, ours string) (more map[string]any) {
	t.Helper()
	var a, b map[string]any
	require.NoError(t, json.Unmarshal([]byte(theirs), &a), theirs)
	require.NoError(t, json.Unmarshal([]byte(ours), &b), ours)
	for k, v := range a {
		require.Equal(t, v, b[k], "field %s", k)
		delete(b, k)
	}
	return b
}

func digest(t *testing.T, path string) [32]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return sha256.Sum256(b)
}

// patched writes b at off of a file.
func patched(t *testing.T, path string, off int64, b ...byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(b, off)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func word(t *testing.T, path string, off int64) int64 {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	var b [8]byte
	_, err = f.ReadAt(b[:], off)
	require.NoError(t, err)
	return int64(binary.BigEndian.Uint64(b[:]) & 0x00fffffffffffe00)
}

// leaked adds a cluster that is counted and not referred to, at the end.
func leaked(t *testing.T, path string) {
	t.Helper()
	block := word(t, path, word(t, path, 48))
	st, err := os.Stat(path)
	require.NoError(t, err)
	n := (st.Size() + 65535) / 65536
	patched(t, path, block+2*n, 0, 1)
	patched(t, path, (n+1)*65536-1, 0)
}

// corrupted sets the count of the first data cluster to 0.
func corrupted(t *testing.T, path string) {
	t.Helper()
	block := word(t, path, word(t, path, 48))
	l2 := word(t, path, word(t, path, 40))
	patched(t, path, block+2*(word(t, path, l2)/65536), 0, 0)
}

func TestInfoAgreesWithQEMU(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	for _, g := range append(geometries, "extended_l2=on,compression_type=zstd", "data_file_raw=off") {
		t.Run(g, func(t *testing.T) {
			path := made(t, g)
			r := cli(t, "info", "--output=json", path)
			require.Zero(t, r.code, r)
			more := same(t, testenv.Run(t, "qemu-img", "info", "--output=json", path), r.stdout)
			require.Greater(t, more["bound"], float64(100<<20))
			require.Len(t, more, 1, "nothing else is ours")

			r = cli(t, "info", path)
			require.Zero(t, r.code, r)
			ours, bound, ok := strings.Cut(r.stdout, "bound: ")
			require.True(t, ok, r)
			require.Equal(t, testenv.Run(t, "qemu-img", "info", path), ours)
			require.Contains(t, bound, "MiB")
		})
	}
}

// Images that cannot be opened can be described, and nothing else is opened for it.
func TestInfoOfWhatCannotBeOpened(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	dir := t.TempDir()
	make := func(args ...string) string {
		path := filepath.Join(dir, "image.qcow2")
		testenv.Run(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "1M")...)
		return path
	}
	t.Run("backing file", func(t *testing.T) {
		path := make("-u", "-b", "base\x1b[2J.qcow2", "-F", "qcow2")
		r := cli(t, "info", "--output=json", path)
		require.Zero(t, r.code, r)
		same(t, testenv.Run(t, "qemu-img", "info", "--output=json", path), r.stdout)
		r = cli(t, "info", path)
		require.Contains(t, r.stdout, "backing file: base?[2J.qcow2 (actual path: "+dir+"/base")
		r = cli(t, "info", "--backing-chain", path)
		require.Equal(t, exitFailure, r.code)
		require.Contains(t, r.stderr, "--backing auto opens it")
		require.Contains(t, r.stderr, "--backing qcow2:FILE")
	})
	t.Run("encrypted", func(t *testing.T) {
		path := make("--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s")
		r := cli(t, "info", "--output=json", path)
		require.Zero(t, r.code, r)
		same(t, testenv.Run(t, "qemu-img", "info", "--output=json", path), r.stdout)
	})
	t.Run("data file", func(t *testing.T) {
		path := make("-o", "data_file="+filepath.Join(dir, "data"))
		r := cli(t, "info", "--output=json", path)
		require.Zero(t, r.code, r)
		require.NoError(t, os.Remove(filepath.Join(dir, "data")))
		require.Equal(t, r.stdout, cli(t, "info", "--output=json", path).stdout, "nobody looks at the data file")
	})
	t.Run("unknown feature", func(t *testing.T) {
		path := make()
		patched(t, path, 72, 0x80)
		r := cli(t, "info", path)
		require.Zero(t, r.code, r)
		require.Contains(t, r.stdout, "feature bit 63 (the image cannot be opened)")
	})
}

func TestCheckAgreesWithQEMU(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	for _, g := range geometries {
		t.Run(g, func(t *testing.T) {
			path := made(t, g, busy...)
			r := cli(t, "check", "--output=json", path)
			require.Zero(t, r.code, r)
			more := same(t, testenv.Run(t, "qemu-img", "check", "--output=json", path), r.stdout)
			if strings.Contains(g, "cluster_size=512") {
				// QEMU does not count a gap between two L2 tables' clusters,
				// of which such an image has many.
				delete(more, "fragmented-clusters")
			} else {
				require.Equal(t, testenv.Run(t, "qemu-img", "check", path), cli(t, "check", path).stdout)
			}
			require.Empty(t, more)
			r = cli(t, "check", "-q", path)
			require.Empty(t, r.stdout)
		})
	}
}

// Snapshots, sub-clusters and compressed clusters are checked, and mended.
func TestCheckAgreesWithQEMUOnFeatures(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	for _, g := range []string{"", "extended_l2=on", "compression_type=zstd"} {
		path := made(t, g, busy...)
		testenv.Run(t, "qemu-img", "snapshot", "-c", "one", path)
		testenv.Run(t, "qemu-io", "-c", "write -P 7 6M 100k", "-c", "write -c -P 8 30M 64k", path)
		leaked(t, path)
		r := cli(t, "check", "--output=json", path)
		require.Equal(t, exitLeaks, r.code, r)
		theirs := testenv.Try(t, "qemu-img", "check", "--output=json", path)
		require.Empty(t, same(t, theirs.Stdout, r.stdout))
		r = cli(t, "check", "-r", "leaks", path)
		require.Zero(t, r.code, r)
		require.Equal(t, testenv.Run(t, "qemu-img", "check", path), cli(t, "check", path).stdout)
	}
}

func TestCheckExitCodes(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	for _, c := range []struct {
		name   string
		damage func(*testing.T, string)
		code   int
	}{
		{"leak", leaked, exitLeaks},
		{"corruption", corrupted, exitCorruptions},
		{"both", func(t *testing.T, p string) { leaked(t, p); corrupted(t, p) }, exitCorruptions},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := made(t, "", busy...)
			c.damage(t, path)
			before := digest(t, path)
			r := cli(t, "check", "--output=json", path)
			require.Equal(t, c.code, r.code, r)
			require.Equal(t, c.code, testenv.Try(t, "qemu-img", "check", path).ExitCode, "QEMU thinks so too")
			require.NotEmpty(t, r.stderr, "it says what")
			theirs := testenv.Try(t, "qemu-img", "check", "--output=json", path).Stdout
			require.Empty(t, same(t, theirs, r.stdout))
			require.Equal(t, before, digest(t, path), "looking changes nothing")
		})
	}
}

func TestCheckRepairsLeaks(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	path := made(t, "", busy...)
	leaked(t, path)
	r := cli(t, "check", "-r", "leaks", "--output=json", path)
	require.Zero(t, r.code, r)
	var report checkReport
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &report))
	require.EqualValues(t, 1, report.LeaksFixed)
	require.Zero(t, report.Leaks)
	require.Zero(t, testenv.Try(t, "qemu-img", "check", path).ExitCode)

	corrupted(t, path)
	leaked(t, path)
	before := digest(t, path)
	r = cli(t, "check", "-r", "leaks", path)
	require.Equal(t, exitCorruptions, r.code, r)
	require.Contains(t, r.stderr, "No leaked cluster was given back")
	require.Equal(t, before, digest(t, path), "an image with corruptions is left alone")
}

func TestCheckRefusals(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	path := made(t, "", busy...)
	for _, c := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"-r", "all", path}, exitFailure, "Tidemark mends leaks only"},
		{[]string{"-r", "leaks", "-U", path}, exitFailure, "exclude each other"},
		{[]string{"-f", "raw", path}, exitNotSupported, "raw image has nothing to check"},
		{[]string{path + ".none"}, exitFailure, "no such file"},
		{[]string{}, exitFailure, "expected FILE, found 0"},
	} {
		r := cli(t, append([]string{"check"}, c.args...)...)
		require.Equal(t, c.code, r.code, r)
		require.Contains(t, r.stderr, c.text)
		require.Empty(t, r.stdout)
	}
	testenv.Run(t, "qemu-img", "bitmap", "--add", path, "b")
	r := cli(t, "check", path)
	require.Equal(t, exitNotSupported, r.code, r)
	require.Contains(t, r.stderr, "persistent bitmaps")
}

func TestMapAgreesWithQEMU(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	for _, g := range geometries {
		path := made(t, g, busy...)
		for _, options := range [][]string{
			{"--output=json"}, {}, {"--output=json", "-s", "32k", "-l", "100k"}, {"--output=json", "-s", "6M"}, {"--start-offset=1M", "--max-length=6M"},
		} {
			t.Run(g+strings.Join(options, " "), func(t *testing.T) {
				args := append(append([]string{"map"}, options...), path)
				r := cli(t, args...)
				require.Zero(t, r.code, r)
				require.Equal(t, testenv.Run(t, "qemu-img", args...), r.stdout)
			})
		}
	}
}

func TestMapRefusals(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	path := made(t, "")
	for _, c := range []struct{ option, text string }{
		{"--start-offset=x", "not a size"}, {"--max-length=-1", "not a size"}, {"--start-offset=101M", "expected a start of at most"},
	} {
		r := cli(t, "map", c.option, path)
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, c.text)
	}
}
