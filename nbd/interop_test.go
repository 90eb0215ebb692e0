package nbd

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// The tools of QEMU and libnbd against the server.

func tool(t *testing.T, name string) func(args ...string) string {
	t.Helper()
	path := testenv.Tool(t, name)
	return func(args ...string) string {
		t.Helper()
		return testenv.Run(t, path, args...)
	}
}

func (ts *testServer) uri(export string) string {
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", export, ts.address)
}

func TestInteropInfo(t *testing.T) {
	t.Parallel()
	nbdinfo := tool(t, "nbdinfo")
	d := newMemDevice(1 << 20)
	ts := serve(t, Options{}, Export{Name: "disk", Description: "a disk", Device: d})
	var got struct {
		Protocol string `json:"protocol"`
		Exports  []struct {
			Name        string   `json:"export-name"`
			Description string   `json:"description"`
			Size        int64    `json:"export-size"`
			Contexts    []string `json:"contexts"`
			Flush       bool     `json:"can_flush"`
			FUA         bool     `json:"can_fua"`
			Trim        bool     `json:"can_trim"`
			Zero        bool     `json:"can_zero"`
			FastZero    bool     `json:"can_fast_zero"`
			MultiConn   bool     `json:"can_multi_conn"`
			DF          bool     `json:"can_df"`
			Cache       bool     `json:"can_cache"`
			Preferred   int      `json:"block_size_preferred"`
		} `json:"exports"`
	}
	out := nbdinfo("--json", "--list", ts.uri(""))
	require.NoError(t, json.Unmarshal([]byte(out), &got), out)
	require.Equal(t, "newstyle-fixed", got.Protocol)
	require.Len(t, got.Exports, 1)
	x := got.Exports[0]
	require.Equal(t, "disk", x.Name)
	require.Equal(t, "a disk", x.Description)
	require.EqualValues(t, 1<<20, x.Size)
	require.Equal(t, []string{contextAllocation}, x.Contexts)
	require.True(t, x.Flush && x.FUA && x.Trim && x.Zero && x.FastZero && x.MultiConn && x.DF && x.Cache, out)
	require.Equal(t, 4096, x.Preferred)

	require.NoError(t, ts.dial(t, ClientOptions{}).WriteAt(t.Context(), make([]byte, 4096), 8192, 0))
	require.Regexp(t, `(?s)^\s+0\s+8192\s+3\s.*8192\s+4096\s+0\s.*12288\s+1036288\s+3\s`, nbdinfo("--map", ts.uri("disk")))
}

func TestInteropCopy(t *testing.T) {
	t.Parallel()
	nbdcopy := tool(t, "nbdcopy")
	d := newMemDevice(8 << 20)
	ts := serve(t, Options{}, Export{Device: d})
	in, out := filepath.Join(t.TempDir(), "in"), filepath.Join(t.TempDir(), "out")
	data := make([]byte, 8<<20)
	for i := range data[:3<<20] {
		data[i] = byte(i * 7 >> 3)
	}
	require.NoError(t, os.WriteFile(in, data, 0o600))
	nbdcopy("--connections=4", in, ts.uri(""))
	require.Equal(t, data, d.snapshot())
	nbdcopy(ts.uri(""), out)
	got, err := os.ReadFile(out)
	require.NoError(t, err)
	require.Equal(t, data, got)
}

func TestInteropQEMU(t *testing.T) {
	t.Parallel()
	qemuIO, qemuImg := tool(t, "qemu-io"), tool(t, "qemu-img")
	d := newMemDevice(4 << 20)
	ts := serve(t, Options{}, Export{Name: "x", Device: d})
	qemuIO("-f", "raw", "-c", "write -P 0x5a 0 1M", "-c", "write -f -P 0x17 1M 64k", "-c", "write -z -u 64k 64k",
		"-c", "write -z 128k 4k", "-c", "discard 256k 64k", "-c", "flush", "-c", "read -P 0x5a 512k 512k", "-c", "read -P 0 64k 64k", ts.uri("x"))
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, d.snapshot(), 0o600))
	require.Contains(t, qemuImg("compare", "-f", "raw", "-F", "raw", ts.uri("x"), file), "identical")
	var extents []struct {
		Start, Length int64
		Zero, Data    bool
	}
	require.NoError(t, json.Unmarshal([]byte(qemuImg("map", "-f", "raw", "--output=json", ts.uri("x"))), &extents))
	require.Greater(t, len(extents), 3)
}

// Every command and flag by libnbd, with its own checks switched off.
func TestInteropLibnbd(t *testing.T) {
	t.Parallel()
	python := testenv.Python(t)
	d := newMemDevice(1 << 20)
	ts := serve(t, Options{}, Export{Device: d})
	script := `
import nbd
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri("` + ts.uri("") + `")
h.set_strict_mode(0)
h.pwrite(b"abcd" * 1024, 4096, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 4096) == b"abcd" * 1024
seen = []
h.pread_structured(8192, 0, lambda buf, off, st, err: seen.append((off, len(buf), st)), nbd.CMD_FLAG_DF)
assert seen == [(0, 8192, nbd.READ_DATA)], seen
h.zero(4096, 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
h.trim(4096, 4096, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()
ex = []
def status(ctx, off, e, err): ex.extend(e)
h.block_status(1 << 20, 0, status)
assert ex == [1 << 20, 3], ex
def fails(errno, f, *a):
    try: f(*a)
    except nbd.Error as e: assert e.errno == errno, (e.errno, errno, a)
    else: assert False, a
fails("EINVAL", h.pread, 512, 1 << 20)
fails("ENOSPC", h.pwrite, b"x" * 512, 1 << 20)
fails("ENOSPC", h.zero, 512, 1 << 20)
fails("EINVAL", h.trim, 512, 1 << 20)
fails("EINVAL", h.block_status, 0, 0, status)
fails("ENOTSUP", h.zero, 100, 0, nbd.CMD_FLAG_FAST_ZERO)
h.pread(512, 0)
h.shutdown()
`
	testenv.Run(t, python, "-c", script)
}
