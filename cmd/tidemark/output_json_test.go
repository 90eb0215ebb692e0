package main

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
)

// Whatever is printed can be had as JSON.
func TestCreateTellsJSON(t *testing.T) {
	dir := t.TempDir()
	base, top := filepath.Join(dir, "base"), filepath.Join(dir, "top")
	code, out, errs := inProcess(t, "create", "--output=json", base, "1G")
	require.Zero(t, code, errs)
	var c createdJSON
	require.NoError(t, json.Unmarshal([]byte(out), &c))
	require.Equal(t, createdJSON{Filename: base, Format: "qcow2", VirtualSize: 1 << 30, ClusterSize: 64 << 10}, c)
	code, out, errs = inProcess(t, "create", "--output", "json", "-b", base, "-F", "qcow2", top)
	require.Zero(t, code, errs)
	require.NoError(t, json.Unmarshal([]byte(out), &c))
	require.Equal(t, base, c.BackingFile)
	code, out, _ = inProcess(t, "create", "-q", "--output=json", base, "1G")
	require.Zero(t, code)
	require.Empty(t, out)
}

func TestDemoTellsJSON(t *testing.T) {
	code, out, errs := inProcess(t, "demo", "--dir", t.TempDir(), "--size", "256M", "--seed", "7", "--output=json")
	require.Zero(t, code, errs)
	var d demoJSON
	require.NoError(t, json.Unmarshal([]byte(out), &d), out)
	require.EqualValues(t, 7, d.Seed)
	require.EqualValues(t, 256<<20, d.Size)
	require.Positive(t, d.Writing)
	require.True(t, d.Clean)
	require.Contains(t, errs, "tidemark check: clean", "what goes on is told beside it")
}

func TestRunTellsJSON(t *testing.T) {
	dir := t.TempDir()
	p := startProcess(t, "run", "--dir", dir, "--capacity", "1G", "--size", "4G", "--output=json", "disk1")
	awaitOutput(t, p, "}\n")
	ok, _, errs := inProcess(t, "nbd", "-L", "-k", filepath.Join(dir, "nbd.sock"))
	require.Zero(t, ok, "the first line comes when it is ready: %s", errs)
	c := dialNBD(t, filepath.Join(dir, "nbd.sock"), "disk1")
	require.NoError(t, c.WriteAt(t.Context(), make([]byte, 1<<20), 0, 0))
	testenv.Eventually(t, serveLimit, "a line says that it has grown", func() bool { return strings.Count(p.Output(), "\n") >= 2 })
	require.NoError(t, c.Close())
	stopped(t, p)
	lines := bufio.NewScanner(strings.NewReader(p.Output()))
	var last serviceJSON
	for lines.Scan() {
		require.NoError(t, json.Unmarshal(lines.Bytes(), &last), lines.Text())
	}
	require.Len(t, last.Disks, 1)
	require.Equal(t, "disk1", last.Disks[0].Name)
	require.EqualValues(t, 4<<30, last.Disks[0].Virtual)
	require.Positive(t, last.Disks[0].Extensions)
	require.Contains(t, last.Disks[0].URI, "nbd+unix:///disk1?socket=")
}

// The manager tells its state, and what it keeps in --state is a cache: nonsense in
// it is replaced, and that it cannot be written stops nobody.
func TestSPMStateIsACache(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	start := func(state string) (*testenv.Process, spm.PoolReply) {
		p := startProcess(t, "spm", "--dir", filepath.Join(dir, "pool"), "--capacity", "1G", "--state", state, "--output=json", "--log-level=error")
		awaitOutput(t, p, "\n}\n")
		var r struct {
			Socket string
			spm.PoolReply
		}
		require.NoError(t, json.Unmarshal([]byte(p.Output()), &r), p.Output())
		require.Equal(t, filepath.Join(dir, "pool", "spm.sock"), r.Socket)
		return p, r.PoolReply
	}
	p, pool := start(state)
	require.EqualValues(t, 1<<30, pool.Capacity)
	path := filepath.Join(state, pool.PoolUUID+".json")
	read := func() (s poolState) {
		text, err := os.ReadFile(path)
		if err == nil {
			_ = json.Unmarshal(text, &s)
		}
		return s
	}
	testenv.Eventually(t, serveLimit, "the state is there", func() bool { return read().Pool.PoolUUID == pool.PoolUUID })
	code, _, errs := inProcess(t, "volume", "create", "--spm", filepath.Join(dir, "pool", "spm.sock"), "--size", "1G", "a")
	require.Zero(t, code, errs)
	stopped(t, p)
	require.NoError(t, os.WriteFile(path, []byte("nonsense"), 0o600))
	p, again := start(state)
	require.Equal(t, pool.PoolUUID, again.PoolUUID)
	require.Equal(t, 1, again.Volumes)
	testenv.Eventually(t, serveLimit, "it is written anew", func() bool { return len(read().Volumes) == 1 })
	stopped(t, p)
	p, again = start("/dev/null/state")
	require.Equal(t, 1, again.Volumes, "without a cache")
	stopped(t, p)
}

// startProcess starts a command of this program.
func startProcess(t testing.TB, args ...string) *testenv.Process {
	t.Helper()
	return testenv.Start(t, tidemark(t, args...))
}
