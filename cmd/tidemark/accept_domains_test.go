//go:build linux

package main_test

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/internal/xmlrpc"
	"tidemark/spm"
)

// An endpoint is a manager whose domains come through the API, as a client of
// XML-RPC sees it.
type endpoint struct {
	socket string
	http   http.Client
}

func newEndpoint(socket string) *endpoint {
	var d net.Dialer
	return &endpoint{socket, http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
	}}}
}

// call calls a verb, which must succeed.
func (e *endpoint) call(t testing.TB, verb string, args ...any) map[string]any {
	t.Helper()
	body, err := xmlrpc.EncodeCall(verb, args...)
	require.NoError(t, err)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://spm/RPC2", bytes.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "text/xml")
	answer, err := e.http.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(answer.Body)
	require.NoError(t, err)
	v, err := xmlrpc.DecodeReply(b.Bytes())
	require.NoError(t, err)
	reply := v.(map[string]any)
	require.EqualValues(t, 0, reply["status"].(map[string]any)["code"], "%s: %v", verb, reply)
	return reply
}

// wait waits for a task, and clears it.
func (e *endpoint) wait(t testing.TB, task string) {
	t.Helper()
	testenv.Eventually(t, time.Minute, "the end of task "+task, func() bool {
		s := e.call(t, "getTaskStatus", task)["taskStatus"].(map[string]any)
		if s["taskState"] != "finished" {
			return false
		}
		require.Equal(t, "success", s["taskResult"], "%v", s)
		return true
	})
	e.call(t, "clearTask", task)
}

// startHost starts a manager, and waits until it says that it is ready.
func startHost(t testing.TB, ready string, args ...string) *testenv.Process {
	t.Helper()
	p := testenv.Start(t, program(t, args...))
	testenv.Eventually(t, 20*time.Second, ready, func() bool { return strings.Contains(p.Output(), ready) })
	return p
}

// The classic sequence makes a volume; the manager is killed, and the next one is
// what it was without being asked.
func TestDomainsInDirectories(t *testing.T) {
	testenv.Tool(t, "python3")
	root, dir := t.TempDir(), t.TempDir()
	domain := filepath.Join(root, "domain")
	require.NoError(t, os.Mkdir(domain, 0o755))
	socket := filepath.Join(dir, "spm.sock")
	args := []string{"spm", "--root", root, "--socket", socket, "--state", filepath.Join(dir, "state")}
	p := startHost(t, "ready", args...)
	r := testenv.Try(t, "python3", "../../spm/testdata/create_volume.py", "http+unix://"+socket, domain)
	require.NoError(t, r.Err, "%s", r)
	p.Kill()

	startHost(t, "ready: pool of", args...)
	c, err := spm.Dial(socket)
	require.NoError(t, err)
	defer c.Close()
	l, err := c.ListVolumes(t.Context(), spm.VolumeListRequest{})
	require.NoError(t, err)
	require.Len(t, l.Volumes, 1)
	require.EqualValues(t, 2, l.SPMEpoch)
	testenv.Run(t, "qemu-img", "check", l.Volumes[0].Path)
}

// A domain of another pool, which says that it is active there, is in nobody's way.
func TestVolumesBesideAnotherPool(t *testing.T) {
	root, socket := t.TempDir(), filepath.Join(t.TempDir(), "spm.sock")
	startHost(t, "ready", "spm", "--root", root, "--socket", socket)
	run := func(args ...string) string {
		out, err := program(t, append(args, "--spm", socket)...).CombinedOutput()
		require.NoError(t, err, "%s: %s", args, out)
		return string(out)
	}
	for _, name := range []string{"ours", "theirs"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, name), 0o755))
		run("domain", "create", name, filepath.Join(root, name), "--capacity", "2G")
	}
	run("pool", "create", "--only", "other", "theirs")
	run("pool", "create", "office", "ours")
	run("volume", "create", "--size", "1G", "web1")
	require.Contains(t, run("image", "list"), "web1")
	require.Contains(t, run("image", "info", "web1"), "LEAF")
}

// The same on a volume group of loop devices; then the group is imported by a manager
// that knows nothing, and formatted.
func TestDomainOnAVolumeGroup(t *testing.T) {
	g := &groupPool{name: "tidemark" + strconv.Itoa(os.Getpid()) + "_domain"}
	testenv.Tool(t, "lvm")
	g.devices = append(g.devices, testenv.Loop(t, 4<<30), testenv.Loop(t, 4<<30))
	t.Cleanup(g.tidyUp)
	devices := g.devices[0].Path + "," + g.devices[1].Path
	g.lvm(t, "vgcreate", "-qq", "-s", "128m", "--metadatasize", "128m", g.name, g.devices[0].Path, g.devices[1].Path)
	socket := filepath.Join(t.TempDir(), "spm.sock")
	args := []string{"spm", "--devices", devices, "--socket", socket}
	p := startHost(t, "ready", args...)

	e := newEndpoint(socket)
	blank := uuid.Nil.String()
	pool, domain, image, volume := uuid.NewString(), uuid.NewString(), uuid.NewString(), uuid.NewString()
	connection := []any{map[string]any{"id": uuid.NewString(), "connection": devices}}
	e.call(t, "connectStorageServer", 2, blank, connection)
	e.call(t, "createStorageDomain", 2, domain, "block", g.name, 1, 0)
	e.call(t, "createStoragePool", 2, pool, "pool", domain, []any{domain}, 1)
	e.call(t, "connectStoragePool", pool, 1, "key", domain, 1)
	e.wait(t, e.call(t, "spmStart", pool, -1, -1, -1, 0)["uuid"].(string))
	e.wait(t, e.call(t, "createVolume", domain, pool, image, 10*2097152, 4, 2, 8, volume, "volly", blank, blank)["uuid"].(string))
	info := e.call(t, "getVolumeInfo", domain, pool, image, volume)["info"].(map[string]any)
	require.Equal(t, "10737418240", info["capacity"])
	require.Contains(t, g.lvm(t, "lvs", "--noheadings", "-o", "lv_name,lv_tags", g.name), "IU_"+image)
	p.Kill()

	startHost(t, "ready", args...)
	e.call(t, "connectStorageServer", 2, blank, connection)
	found := e.call(t, "getStorageDomainInfo", domain)["info"].(map[string]any)
	require.Equal(t, []any{pool}, found["pool"])
	e.call(t, "connectStoragePool", pool, 1, "key", domain, 1)
	e.wait(t, e.call(t, "spmStart", pool, -1, -1, -1, 0)["uuid"].(string))
	require.Len(t, e.call(t, "getVolumesList", domain, pool)["uuidlist"], 1)
	e.call(t, "destroyStoragePool", pool, 1, "key")
	e.call(t, "formatStorageDomain", domain)
	require.Empty(t, strings.TrimSpace(g.lvm(t, "lvs", "--noheadings", "-o", "lv_name", g.name)))
	require.Empty(t, g.field(t, "vgs", "vg_tags"))
	g.lvm(t, "vgck", g.name)
}

// The master of a pool is lost, and a manager that knows nothing makes another domain the
// master; what the old one says when it is back is not believed.
func TestPoolWithoutItsMaster(t *testing.T) {
	root, socket := t.TempDir(), filepath.Join(t.TempDir(), "spm.sock")
	args := []string{"spm", "--root", root, "--socket", socket}
	p := startHost(t, "ready", args...)
	try := func(args ...string) (string, error) {
		out, err := program(t, append(args, "--spm", socket)...).CombinedOutput()
		return string(out), err
	}
	run := func(args ...string) string {
		out, err := try(args...)
		require.NoError(t, err, "%s: %s", args, out)
		return out
	}
	for _, name := range []string{"first", "second"} {
		require.NoError(t, os.Mkdir(filepath.Join(root, name), 0o755))
		run("domain", "create", name, filepath.Join(root, name), "--capacity", "2G")
	}
	run("pool", "create", "office", "first", "second")
	run("volume", "create", "--size", "1G", "--domain", "second", "web1")
	p.Kill()
	require.NoError(t, os.Rename(filepath.Join(root, "first"), filepath.Join(root, ".lost")))

	startHost(t, "ready", args...)
	run("domain", "connect", filepath.Join(root, "second"))
	pool := strings.Fields(strings.Split(run("pool", "list"), "\n")[1])[1]
	out, err := try("pool", "start", pool)
	require.Error(t, err)
	require.Contains(t, out, "tidemark pool reconstruct")
	out, err = try("pool", "reconstruct", pool, "--master", "second")
	require.Error(t, err)
	require.Contains(t, out, "give one that is higher with --version")
	require.Contains(t, run("pool", "reconstruct", pool, "--master", "second", "--name", "office", "--version", "2"), "office: has a new master")
	run("pool", "start", pool)
	require.Contains(t, run("image", "info", "web1"), "LEAF")

	require.NoError(t, os.Rename(filepath.Join(root, ".lost"), filepath.Join(root, "first")))
	run("domain", "connect", filepath.Join(root, "first"))
	require.Regexp(t, `role +Master`, run("domain", "info", "second"))
	require.Regexp(t, `role +Regular`, run("domain", "info", "first"))
}
