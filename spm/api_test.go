package spm

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/internal/thin"
	"tidemark/internal/unixsock"
)

// The handle is an Extender by its shape; this package needs not know thin.
var _ thin.Extender = (*VolumeHandle)(nil)

// serve opens the pool in dir and serves it on sock, until kill.
func serve(t *testing.T, dir, sock string, o Options) (m *Manager, kill func()) {
	t.Helper()
	m, err := openManager(dir, o)
	require.NoError(t, err)
	l, err := Listen(sock, unixsock.Options{})
	require.NoError(t, err)
	requests, hangUp := context.WithCancel(context.Background()) // as a host: those that wait are answered first
	server := NewServer(requests, JSONRPC(Methods(m)), m.o.Log)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	var once sync.Once
	kill = func() {
		once.Do(func() {
			require.NoError(t, m.Close())
			require.NoError(t, shutDown([]*http.Server{server}))
			hangUp()
			require.ErrorIs(t, <-served, http.ErrServerClosed)
		})
	}
	t.Cleanup(kill)
	return m, kill
}

func socketPath(t *testing.T) string { return filepath.Join(t.TempDir(), "spm.sock") }

func dial(t *testing.T, sock string) *Client {
	t.Helper()
	c, err := Dial(sock)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// tooLong is after how long nobody believes any more that something is only slow: a step
// of a task that is tried again takes more than a second, and the disk of a machine on
// which other tests run may take several for a sync.
const tooLong = time.Minute

// eventually polls what another goroutine brings about.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, tooLong, 5*time.Millisecond)
}

func TestClient(t *testing.T) {
	sock := socketPath(t)
	m, _ := serve(t, t.TempDir(), sock, testOptions())
	c := dial(t, sock)
	v := create(t, c, "web1", 10*gib)
	direct, err := m.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: "web1"}})
	require.NoError(t, err)
	require.Equal(t, direct.Volume, v, "the same in process and over the wire")
	require.EqualValues(t, 300*mib, extend(t, c, "web1", 200*mib, 300*mib))
	list, err := c.ListVolumes(t.Context(), VolumeListRequest{})
	require.NoError(t, err)
	require.Len(t, list.Volumes, 1)
	p := pool(t, c)
	require.Equal(t, WireVersion, p.Version)
	require.NotEmpty(t, p.RequestID)
	require.EqualValues(t, 1, p.SPMEpoch)
	require.EqualValues(t, 1, p.HostID)
	require.EqualValues(t, 1, p.Extensions)
	require.EqualValues(t, 300*mib, p.Granted)

	_, err = c.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib})
	requireCode(t, CodeExists, err)
	require.ErrorIs(t, err, fs.ErrExist)
	_, err = c.ExtendVolume(t.Context(), extendRequest("web1", 1<<50, 0))
	requireCode(t, CodeBound, err)
	require.True(t, thin.IsFinal(err))
	require.ErrorIs(t, err, block.ErrNoSpace)
	_, err = c.Volume(t.Context(), VolumeRef{Volume: "nothing"})
	requireCode(t, CodeNotFound, err)
	require.ErrorContains(t, err, "web1")
	remove(t, c, "web1")
}

// What a request made by hand gets.
func TestWire(t *testing.T) {
	m := openPool(t, t.TempDir(), testOptions())
	server := httptest.NewServer(JSONRPC(Methods(m)))
	defer server.Close()
	post := func(body string) string {
		r, err := http.Post(server.URL, "application/json", strings.NewReader(body))
		require.NoError(t, err)
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		return string(b)
	}
	for name, c := range map[string]struct{ body, says string }{
		"no version is 1": {`{"jsonrpc":"2.0","id":7,"method":"Pool.getInfo"}`, `"id":7,"result":{"version":1`},
		"newer version":   {`{"jsonrpc":"2.0","id":7,"method":"Pool.getInfo","params":{"version":2}}`, `"code":1002`},
		"says so":         {`{"jsonrpc":"2.0","id":7,"method":"Volume.extend","params":{"version":2}}`, `newer than 1`},
		"no such method":  {`{"jsonrpc":"2.0","id":"x","method":"Volume.shrink"}`, `"id":"x","error":{"code":-32601`},
		"wrong type":      {`{"jsonrpc":"2.0","id":7,"method":"Pool.getInfo","params":{"version":"one"}}`, `"code":-32602`},
		"no JSON":         {`{`, `"code":-32700`},
		"no method":       {`{"jsonrpc":"2.0","id":7}`, `"code":-32600`},
		"empty":           {``, `"error"`},
		"empty batch":     {` [ ] `, `"id":null,"error":{"code":-32600`},
		"null is an id":   {`{"jsonrpc":"2.0","id":null,"method":"Pool.getInfo"}`, `"id":null,"result":{"version":1`},
		"null in a batch": {`[{"jsonrpc":"2.0","method":"Pool.getInfo"},{"jsonrpc":"2.0","id": null,"method":"Pool.shrink"}]`, `[{"jsonrpc":"2.0","id":null,"error":{"code":-32601`},
		"batch": {`[{"jsonrpc":"2.0","id":1,"method":"Pool.getInfo"},{"jsonrpc":"2.0","id":2,"method":"Volume.list"}]`,
			`"id":2,"result"`},
		"notification": {`{"jsonrpc":"2.0","method":"Pool.getInfo"}`, ``},
		"too large":    {strings.Repeat(" ", requestMax+1), `too large`},
	} {
		out := post(c.body)
		require.Contains(t, out, c.says, name)
		if c.says == "" {
			require.Empty(t, out, name)
		} else if name != "too large" {
			require.True(t, json.Valid([]byte(out)), "%s: %s", name, out)
		}
	}
	r, err := http.Get(server.URL)
	require.NoError(t, err)
	r.Body.Close()
	require.Equal(t, http.StatusMethodNotAllowed, r.StatusCode)
}

func FuzzDispatcher(f *testing.F) {
	m, err := openManager(f.TempDir(), testOptions())
	require.NoError(f, err)
	f.Cleanup(func() { m.Close() })
	d := dispatcher{Methods(m)}
	f.Add([]byte(`{"jsonrpc":"2.0","id":7,"method":"Volume.extend","params":{"volume":"a","need":1}}`))
	f.Add([]byte(`[{"jsonrpc":"2.0","id":null,"method":"Volume.getInfo"},1]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if bytes.Contains(b, []byte("create")) {
			return // its subject is the disk
		}
		if out := d.answer(t.Context(), b); out != nil {
			require.True(t, json.Valid(out), "%s", out)
		}
	})
}

func TestListen(t *testing.T) {
	sock := socketPath(t)
	l, err := Listen(sock, unixsock.Options{})
	require.NoError(t, err)
	info, err := os.Stat(sock)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())

	_, err = Listen(sock, unixsock.Options{})
	require.ErrorIs(t, err, block.ErrInUse, "a live one")
	require.ErrorContains(t, err, sock)
	require.NoError(t, l.Close())
	require.NoFileExists(t, sock)

	stale, err := net.Listen("unix", sock)
	require.NoError(t, err)
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, stale.Close())
	l, err = Listen(sock, unixsock.Options{})
	require.NoError(t, err, "a stale one is replaced")

	require.NoError(t, os.Remove(sock))
	other, err := Listen(sock, unixsock.Options{})
	require.NoError(t, err)
	require.NoError(t, l.Close())
	require.FileExists(t, sock, "the socket of somebody else stays")
	require.NoError(t, other.Close())

	require.NoError(t, os.WriteFile(sock, []byte("precious"), 0o600))
	_, err = Listen(sock, unixsock.Options{})
	require.ErrorContains(t, err, "not a socket")
	require.FileExists(t, sock)
	_, err = Listen("/"+strings.Repeat("x", 200), unixsock.Options{})
	require.ErrorContains(t, err, "107")
	left, err := os.ReadDir(filepath.Dir(sock))
	require.NoError(t, err)
	require.Len(t, left, 1, "nothing temporary is left")
}

// A listener without descriptors fails for a while; that is for the log, in the
// form that was asked for.
func TestAcceptErrorsGoToTheLog(t *testing.T) {
	var log bytes.Buffer
	o := testOptions()
	o.Log = slog.New(slog.NewJSONHandler(&log, nil))
	h, err := OpenHost(HostOptions{Options: o})
	require.NoError(t, err)
	l, err := Listen(socketPath(t), unixsock.Options{})
	require.NoError(t, err)
	require.ErrorIs(t, h.Serve(&exhausted{Listener: l}, JSONRPC(Methods(h))), net.ErrClosed)
	require.NoError(t, h.Close())
	for line := range strings.Lines(log.String()) {
		require.True(t, json.Valid([]byte(line)), line)
	}
	require.Contains(t, log.String(), "too many open files")
}

// exhausted fails once as accept does without descriptors, then for good.
type exhausted struct {
	net.Listener
	again bool
}

func (l *exhausted) Accept() (net.Conn, error) {
	if l.again {
		return nil, net.ErrClosed
	}
	l.again = true
	return nil, &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept4", unix.EMFILE)}
}

func TestDialNobody(t *testing.T) {
	sock := socketPath(t)
	_, err := Dial(sock)
	require.ErrorContains(t, err, "no such socket")
	require.ErrorContains(t, err, "tidemark spm")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// A client that hangs up gives its place up, and the others have their turn.
func TestHangUpOverTheWire(t *testing.T) {
	sock := socketPath(t)
	m, _ := serve(t, t.TempDir(), sock, testOptions())
	c := dial(t, sock)
	create(t, c, "a", 10*gib)
	h, err := c.Volume(t.Context(), VolumeRef{Volume: "a"})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := h.Extend(ctx, 4*gib, 4*gib)
		done <- err
	}()
	eventually(t, func() bool { return len(pool(t, m).Waiting) == 1 })
	cancel()
	err = <-done
	require.ErrorIs(t, err, context.Canceled)
	require.False(t, thin.IsFinal(err))
	eventually(t, func() bool { return len(pool(t, m).Waiting) == 0 })
}

// The manager tells its patience to those that serve volumes.
func TestPatienceIsTold(t *testing.T) {
	for _, want := range []time.Duration{0, 1500 * time.Millisecond} {
		sock, o := socketPath(t), testOptions()
		o.Patience = want
		serve(t, t.TempDir(), sock, o)
		c := dial(t, sock)
		create(t, c, "a", gib)
		h, err := c.Volume(t.Context(), VolumeRef{Volume: "a"})
		require.NoError(t, err)
		require.Equal(t, want, h.Patience())
	}
}

// The manager dies while a request is held and comes back with more space.
func TestExtendOutlivesTheManager(t *testing.T) {
	dir, sock := t.TempDir(), socketPath(t)
	m, kill := serve(t, dir, sock, testOptions())
	c := dial(t, sock)
	create(t, c, "a", 10*gib)
	h, err := c.Volume(t.Context(), VolumeRef{Volume: "a"})
	require.NoError(t, err)
	type answer struct {
		size int64
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		size, err := h.Extend(t.Context(), 3*gib, 3*gib)
		done <- answer{size, err}
	}()
	eventually(t, func() bool { return len(pool(t, m).Waiting) == 1 })
	kill()
	require.NoFileExists(t, sock)
	o := testOptions()
	o.Capacity = 4 * gib
	m, _ = serve(t, dir, sock, o)
	select {
	case a := <-done:
		require.NoError(t, a.err)
		require.EqualValues(t, 3*gib, a.size)
	case <-time.After(tooLong):
		t.Fatal("the request has not come back")
	}
	require.EqualValues(t, 2, h.epoch.Load())
	requireSum(t, m)
}

// staleAPI answers as a manager that a newer one has replaced.
type staleAPI struct{ API }

func (a staleAPI) ExtendVolume(ctx context.Context, r VolumeExtendRequest) (VolumeExtendReply, error) {
	r.SPMEpoch = 0
	reply, err := a.API.ExtendVolume(ctx, r)
	reply.SPMEpoch = 1
	return reply, err
}

func TestAnswerOfAnOldEpochIsDropped(t *testing.T) {
	m := openPool(t, t.TempDir(), testOptions())
	create(t, m, "a", 10*gib)
	h, err := openVolume(t.Context(), staleAPI{m}, VolumeRef{Volume: "a"})
	require.NoError(t, err)
	h.epoch.Store(9)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = h.Extend(ctx, gib, gib)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// A manager that a newer one has replaced changes nothing.
func TestManagerOfAnOldEpochRefuses(t *testing.T) {
	m := openPool(t, t.TempDir(), testOptions())
	create(t, m, "a", 10*gib)
	h, err := m.Volume(t.Context(), VolumeRef{Volume: "a"})
	require.NoError(t, err)
	h.epoch.Store(9)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = h.Extend(ctx, gib, gib)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.EqualValues(t, chunkSize, pool(t, m).Granted)
}

// All of it: a thin file over a volume whose pool is behind a socket.
func TestThinVolumeGrows(t *testing.T) {
	sock := socketPath(t)
	m, _ := serve(t, t.TempDir(), sock, testOptions())
	c := dial(t, sock)
	create(t, c, "a", 10*gib)
	h, err := c.Volume(t.Context(), VolumeRef{Volume: "a"})
	require.NoError(t, err)
	inner, err := hostfile.Open(h.Path(), hostfile.Options{Fixed: true})
	require.NoError(t, err)
	f := thin.New(inner, h, thin.Options{Bound: h.Bound(), Name: "a"})
	for end := int64(0); end < gib; end += 16 * mib {
		size, err := f.Grow(t.Context(), end+1, end+16*mib)
		require.NoError(t, err)
		require.LessOrEqual(t, size-end, int64(512*mib))
		_, err = f.WriteAt([]byte{1}, end)
		require.NoError(t, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = f.Grow(ctx, 3*gib, 3*gib)
	require.ErrorIs(t, err, block.ErrNoSpace)
	_, err = f.Grow(t.Context(), 11*gib, 11*gib)
	require.True(t, thin.IsFinal(err))
	_, err = c.RemoveVolume(t.Context(), VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: "a"}})
	requireCode(t, CodeInUse, err)
	require.NoError(t, f.Close())
	requireSum(t, m)
	remove(t, c, "a")
}
