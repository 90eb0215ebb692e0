//go:build linux

package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// The clients that matter (QEMU's tools, libnbd's tools and its Python binding)
// against tidemark nbd, over images of several geometries.

// An nbdGeometry is a kind of image.
type nbdGeometry struct {
	name    string
	options string // of qemu-img create; empty: tidemark create
	cluster int64  // bytes
}

func nbdGeometries() []nbdGeometry {
	return []nbdGeometry{
		{"512", "cluster_size=512,refcount_bits=64", 512},
		{"4K-v2", "cluster_size=4K,compat=0.10", 4 << 10},
		{"64K", "", 64 << 10},
		{"2M", "cluster_size=2M,refcount_bits=1", 2 << 20},
	}
}

// nbdSize is no multiple of any cluster but the smallest.
const nbdSize = 12*mib + 3*512

// An nbdExport is an image that is being served.
type nbdExport struct {
	*server
	geometry nbdGeometry
	dir      string
	image    string
}

// serveGeometry makes an image and serves it; the directory's name is short
// enough for a socket.
func serveGeometry(t testing.TB, g nbdGeometry, args ...string) *nbdExport {
	t.Helper()
	x := &nbdExport{geometry: g, dir: shortDir(t)}
	x.image = filepath.Join(x.dir, "disk.qcow2")
	if g.options == "" {
		ok(t, "create", "-q", x.image, strconv.Itoa(nbdSize))
	} else {
		testenv.Run(t, testenv.Tool(t, "qemu-img"), "create", "-q", "-f", "qcow2", "-o", g.options, x.image, strconv.Itoa(nbdSize))
	}
	x.server = serve(t, x.dir, append(args, x.image)...)
	return x
}

func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tm")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// finish stops the server; the image must be clean and hold want.
func (x *nbdExport) finish(want []byte) {
	x.t.Helper()
	x.stop()
	requireClean(x.t, x.image)
	if want != nil {
		raw := x.file("want.raw", want)
		testenv.Run(x.t, testenv.Tool(x.t, "qemu-img"), "compare", "-f", "qcow2", "-F", "raw", x.image, raw)
	}
}

func (x *nbdExport) file(name string, content []byte) string {
	x.t.Helper()
	path := filepath.Join(x.dir, name)
	require.NoError(x.t, os.WriteFile(path, content, 0o600))
	return path
}

// eachGeometry runs a test with an image of each kind.
func eachGeometry(t *testing.T, test func(t *testing.T, x *nbdExport)) {
	for _, g := range nbdGeometries() {
		t.Run(g.name, func(t *testing.T) { test(t, serveGeometry(t, g)) })
	}
}

// sparse returns a disk's content: random bytes in the named parts, which are
// pairs of offset and length, and zeroes elsewhere.
func sparse(rng *rand.Rand, parts ...[2]int) []byte {
	p := make([]byte, nbdSize)
	for _, part := range parts {
		for i := range p[part[0] : part[0]+part[1]] {
			p[part[0]+i] = byte(rng.Uint32())
		}
	}
	return p
}

// nbdTool returns a way to run a program that must succeed.
func nbdTool(t testing.TB, name string) func(args ...string) string {
	path := testenv.Tool(t, name)
	return func(args ...string) string {
		t.Helper()
		return testenv.Run(t, path, args...)
	}
}

// ---- nbdinfo ---------------------------------------------------------------

type nbdinfoReply struct {
	Protocol   string `json:"protocol"`
	TLS        bool
	Structured bool `json:"structured"`
	Exports    []struct {
		Name        string   `json:"export-name"`
		Description string   `json:"description"`
		Size        int64    `json:"export-size"`
		Contexts    []string `json:"contexts"`
		ReadOnly    bool     `json:"is_read_only"`
		Minimum     int64    `json:"block_size_minimum"`
		Preferred   int64    `json:"block_size_preferred"`
		Maximum     int64    `json:"block_size_maximum"`
	} `json:"exports"`
}

func TestNBDInfo(t *testing.T) {
	eachGeometry(t, func(t *testing.T, x *nbdExport) {
		nbdinfo := nbdTool(t, "nbdinfo")
		var r nbdinfoReply
		require.NoError(t, json.Unmarshal([]byte(nbdinfo("--json", x.uri())), &r))
		require.Equal(t, "newstyle-fixed", r.Protocol)
		require.True(t, r.Structured && !r.TLS)
		require.Len(t, r.Exports, 1)
		e := r.Exports[0]
		require.EqualValues(t, nbdSize, e.Size)
		require.Equal(t, []string{"base:allocation"}, e.Contexts)
		require.EqualValues(t, 1, e.Minimum)
		require.Equal(t, min(x.geometry.cluster, 64<<10), e.Preferred)
		require.EqualValues(t, 32*mib, e.Maximum)
		require.Equal(t, strconv.Itoa(nbdSize), strings.TrimSpace(nbdinfo("--size", x.uri())))
		x.finish(nil)
	})
}

// Several exports, one of them read-only: what can be done with each is what is
// promised.
func TestNBDInfoMatrix(t *testing.T) {
	nbdinfo := testenv.Tool(t, "nbdinfo")
	dir := shortDir(t)
	a, b := filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "b.qcow2")
	ok(t, "create", "-q", a, "1M")
	ok(t, "create", "-q", b, "2M")
	always := []string{"--can connect", "--can read", "--can cache", "--can df", "--can flush", "--can fua", "--can multi-conn", "--is structured"}
	never := []string{"--is rotational", "--is tls"}
	writes := []string{"--can write", "--can trim", "--can zero", "--can fast-zero"}
	for _, readOnly := range []bool{false, true} {
		args := []string{"-x", "first", "-D", "the first one", a, "--export", "second=" + b}
		yes, no := append(append([]string(nil), always...), writes...), append([]string(nil), never...)
		if readOnly { // a read-only export has nothing to make durable, but flushing it is no error
			args = append(args, "-r")
			yes, no = []string{"--can connect", "--can read", "--can cache", "--can df", "--can multi-conn", "--is structured", "--is read-only"}, append(no, writes...)
		} else {
			no = append(no, "--is read-only")
		}
		s := serve(t, dir, args...)
		for _, name := range []string{"", "first", "second"} {
			uri := "nbd+unix:///" + name + "?socket=" + s.sock
			for code, questions := range map[int][]string{0: yes, 2: no} {
				for _, q := range questions {
					r := testenv.Try(t, nbdinfo, append(strings.Fields(q), uri)...)
					require.Equal(t, code, r.ExitCode, "read-only %v, export %q: %s", readOnly, name, r)
				}
			}
		}
		require.NotZero(t, testenv.Try(t, nbdinfo, "nbd+unix:///third?socket="+s.sock).ExitCode)

		var r nbdinfoReply
		require.NoError(t, json.Unmarshal([]byte(testenv.Run(t, nbdinfo, "--list", "--json", s.uri())), &r))
		require.Len(t, r.Exports, 2)
		require.Equal(t, "first", r.Exports[0].Name)
		require.Equal(t, "the first one", r.Exports[0].Description)
		require.Equal(t, "second", r.Exports[1].Name)
		require.EqualValues(t, 2*mib, r.Exports[1].Size)
		require.Equal(t, readOnly, r.Exports[1].ReadOnly)
		for _, out := range []string{
			testenv.Run(t, testenv.Tool(t, "qemu-nbd"), "-L", "-k", s.sock),
			ok(t, "nbd", "-L", "-k", s.sock),
		} {
			require.Contains(t, out, "exports available: 2")
			require.Regexp(t, `(?s)'first'\s+description: the first one\s+size:  1048576\s.*'second'\s+size:  2097152\s`, out)
			require.Contains(t, out, "multi")
			require.Equal(t, readOnly, strings.Contains(out, "readonly"), out)
		}
		s.stop()
	}
}

// ---- Maps ------------------------------------------------------------------

// A mapped is a run of bytes as NBD can express it.
type mapped struct {
	Start, Length int64
	Zero, Data    bool
}

// qemuMap is qemu-img map without what NBD cannot tell, runs that then look the
// same joined.
func qemuMap(t testing.TB, format, image string) (out []mapped) {
	t.Helper()
	var all []mapped
	require.NoError(t, json.Unmarshal([]byte(nbdTool(t, "qemu-img")("map", "-f", format, "--output=json", image)), &all))
	for _, m := range all {
		if last := len(out) - 1; last >= 0 && out[last].Zero == m.Zero && out[last].Data == m.Data {
			out[last].Length += m.Length
			continue
		}
		out = append(out, m)
	}
	return out
}

// The map of the export is the map of the image, and what nbdinfo shows of our
// export is what it shows of qemu-nbd's.
func TestNBDMap(t *testing.T) {
	eachGeometry(t, func(t *testing.T, x *nbdExport) {
		nbdinfo, qemuIO, qemuNBD := nbdTool(t, "nbdinfo"), nbdTool(t, "qemu-io"), testenv.Tool(t, "qemu-nbd")
		qemuIO("-f", "raw", "-c", "write -P 1 0 4096", "-c", "write -P 2 2M 3M", "-c", "write -P 3 12M 1536",
			"-c", "write -z -u 3M 1M", "-c", "write -z 4M 256k", "-c", "discard 4608k 128k", "-c", "discard 8M 2M", "-c", "flush", x.uri())
		ours := qemuMap(t, "raw", x.uri())
		info := nbdinfo("--map", x.uri())
		totals := nbdinfo("--map", "--totals", x.uri())
		x.finish(nil)
		x.fillHoles()
		require.Equal(t, qemuMap(t, "qcow2", x.image), ours)
		require.GreaterOrEqual(t, len(ours), 3)

		sock := filepath.Join(x.dir, "qemu.sock")
		p := testenv.Start(t, testenv.Command(t, qemuNBD, "-r", "-t", "-f", "qcow2", "-k", sock, x.image))
		theirs := "nbd+unix:///?socket=" + sock
		ready(t, p, func() error {
			c, err := nbd.Dial(t.Context(), "unix", sock, nbd.ClientOptions{})
			if err != nil {
				return err
			}
			return c.Close()
		})
		require.Equal(t, nbdinfo("--map", theirs), info)
		require.Equal(t, nbdinfo("--map", "--totals", theirs), totals)
		p.Kill()
	})
}

// fillHoles writes the image's file anew, without holes: QEMU looks for those
// too, and calls data that lies in one zero.
func (x *nbdExport) fillHoles() {
	x.t.Helper()
	content, err := os.ReadFile(x.image)
	require.NoError(x.t, err)
	require.NoError(x.t, os.Remove(x.image))
	x.file(filepath.Base(x.image), content)
}

// ---- Copies ----------------------------------------------------------------

// nbdcopy both ways, with four connections: sparse data stays sparse, random
// data stays what it is.
func TestNBDCopy(t *testing.T) {
	_, rng := testenv.Seed(t)
	eachGeometry(t, func(t *testing.T, x *nbdExport) {
		nbdcopy, nbdkit := nbdTool(t, "nbdcopy"), nbdTool(t, "nbdkit")
		full := sparse(rng, [2]int{0, nbdSize})
		nbdcopy("--flush", "--connections=4", x.file("full", full), x.uri())
		x.requireContent(full)

		// Over what is there, with zeroes for the holes.
		holes := sparse(rng, [2]int{100, 5000}, [2]int{4 * mib, mib}, [2]int{nbdSize - 700, 700})
		source := x.file("holes", holes)
		nbdcopy("--flush", "--connections=4", "--requests=64", source, x.uri())
		x.requireContent(holes)
		for _, m := range qemuMap(t, "raw", x.uri()) {
			if x.geometry.cluster > 256<<10 { // nbdcopy's requests are smaller
				break
			}
			require.False(t, m.Data && m.Start <= 8*mib && m.Start+m.Length > 9*mib, "space that was zeroed is given back: %+v", m)
		}
		copied := filepath.Join(x.dir, "copied")
		nbdcopy("--connections=4", x.uri(), copied)
		requireSameFile(t, source, copied)

		// Simple replies, through a proxy that asks for nothing else.
		nbdkit("--no-sr", "-U", "-", "nbd", "socket="+x.sock, "--run", testenv.Tool(t, "nbdcopy")+` "$uri" `+copied+".2")
		requireSameFile(t, source, copied+".2")
		x.finish(holes)
	})
}

// requireContent reads the whole export, by our own client.
func (x *nbdExport) requireContent(want []byte) {
	x.t.Helper()
	for _, o := range []nbd.ClientOptions{{}, {NoStructured: true, UseExportName: true}} {
		c, err := nbd.Dial(x.t.Context(), "unix", x.sock, o)
		require.NoError(x.t, err)
		got := make([]byte, len(want))
		require.NoError(x.t, c.ReadAt(x.t.Context(), got, 0, 0))
		require.Equal(x.t, -1, differ(want, got), "first byte that differs, %+v", o)
		require.NoError(x.t, c.Close())
	}
}

func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func requireSameFile(t testing.TB, want, got string) {
	t.Helper()
	a, err := os.ReadFile(want)
	require.NoError(t, err)
	b, err := os.ReadFile(got)
	require.NoError(t, err)
	require.Equal(t, -1, differ(a, b), "first byte of %s that differs from %s", got, want)
}

// ---- QEMU ------------------------------------------------------------------

func TestNBDQEMUImg(t *testing.T) {
	_, rng := testenv.Seed(t)
	eachGeometry(t, func(t *testing.T, x *nbdExport) {
		qemuImg := nbdTool(t, "qemu-img")
		want := sparse(rng, [2]int{0, 3000}, [2]int{5*mib + 512, 2 * mib}, [2]int{nbdSize - 512, 512})
		source, back := x.file("source", want), filepath.Join(x.dir, "back.qcow2")
		qemuImg("convert", "-n", "-f", "raw", "-O", "raw", "-m", "8", "-W", source, x.uri())
		require.Contains(t, qemuImg("compare", "-f", "raw", "-F", "raw", x.uri(), source), "identical")
		x.requireContent(want)
		qemuImg("convert", "-f", "raw", "-O", "qcow2", x.uri(), back)
		require.Contains(t, qemuImg("compare", "-f", "qcow2", "-F", "raw", back, source), "identical")
		var info struct {
			Size   int64 `json:"virtual-size"`
			Format string
		}
		require.NoError(t, json.Unmarshal([]byte(qemuImg("info", "--output=json", x.uri())), &info))
		require.EqualValues(t, nbdSize, info.Size)
		require.Equal(t, "raw", info.Format)

		// The target keeps what it had where the source is zero, unless it is told.
		qemuImg("convert", "-n", "-f", "qcow2", "-O", "raw", "--target-is-zero", back, x.uri())
		x.requireContent(want)
		x.finish(want)
	})
}

func TestNBDQEMUIO(t *testing.T) {
	eachGeometry(t, func(t *testing.T, x *nbdExport) {
		qemuIO := nbdTool(t, "qemu-io")
		want := make([]byte, nbdSize)
		fill := func(b byte, off, n int) {
			for i := range want[off : off+n] {
				want[off+i] = b
			}
		}
		script := func(commands ...string) {
			args := []string{"-f", "raw"}
			for _, c := range commands {
				args = append(args, "-c", c)
			}
			out := qemuIO(append(args, x.uri())...)
			require.NotContains(t, out, "failed", out)
			require.NotContains(t, out, "error", out)
		}
		fill(0x11, 0, 2*mib)
		fill(0, 64<<10, 128<<10)
		fill(0, 512<<10, 3<<10)
		fill(0x22, 5*mib+1, 70001)
		fill(0x33, nbdSize-4096, 4096)
		script("write -P 0x11 0 2M", "write -z 64k 128k", "write -z -u 512k 3k", "write -f -P 0x22 5242881 70001", "flush",
			fmt.Sprintf("write -P 0x33 %d 4096", nbdSize-4096), "read -P 0 64k 128k", "read -P 0 512k 3k", "read -P 0x22 5242881 70001")
		x.requireContent(want)

		// Discarded: whole clusters of ours read zero.
		fill(0, 0, 2*mib)
		script("discard 0 2M", "read -P 0 0 2M", "flush")
		x.requireContent(want)

		// Overlapping requests on their way together: every byte is one of theirs.
		var overlapping []string
		for i := range 12 {
			overlapping = append(overlapping, fmt.Sprintf("aio_write -q -P %d %dk 96k", 0x41+i, 3072+i*32))
		}
		fill(0x77, 8*mib, mib)
		overlapping = append(overlapping, "aio_write -q -z -u 8M 1M", "aio_flush", "aio_write -q -P 0x77 8M 1M", "aio_flush", "flush")
		script(overlapping...)
		got := x.read(3*mib, 448<<10)
		for i, b := range got {
			first := max((i>>10-64)/32, 0)
			require.True(t, int(b) >= 0x41+first && int(b) <= min(0x41+(i>>10)/32, 0x41+11), "byte %d is %#x", i, b)
		}
		copy(want[3*mib:], got)
		x.requireContent(want)
		x.finish(want)
	})
}

func (x *nbdExport) read(off int64, n int) []byte {
	x.t.Helper()
	p := make([]byte, n)
	c := x.dial()
	require.NoError(x.t, c.ReadAt(x.t.Context(), p, off, 0))
	require.NoError(x.t, c.Close())
	return p
}
