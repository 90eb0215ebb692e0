package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// serveLimit is for what takes a moment: the machine is others' too.
const serveLimit = time.Minute

// newImage makes an image with Tidemark's own create.
func newImage(t testing.TB, size string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	r := cli(t, "create", "-q", path, size)
	require.Zero(t, r.code, r)
	return path
}

// startNBD starts tidemark nbd -k in a process of its own and waits until it
// serves.
func startNBD(t testing.TB, args ...string) (p *testenv.Process, socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	p = testenv.Start(t, tidemark(t, append([]string{"nbd", "-k", socket}, args...)...))
	awaitOutput(t, p, "listening")
	return p, socket
}

func dialNBD(t testing.TB, socket, export string) *nbd.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), serveLimit)
	defer cancel()
	c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{Export: export})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func stopped(t testing.TB, p *testenv.Process) {
	t.Helper()
	require.NoError(t, p.Signal(syscall.SIGTERM))
	require.NoError(t, p.Wait(t, serveLimit), p.Output())
}

// A signal commits, gives reserved space back, removes the socket and the pid
// file, and is no failure.
func TestServeEndsCleanly(t *testing.T) {
	image := newImage(t, "1G")
	pid := filepath.Join(t.TempDir(), "pid")
	p, socket := startNBD(t, "-t", "--pid-file", pid, image)
	require.FileExists(t, pid)
	c := dialNBD(t, socket, "")
	require.EqualValues(t, 1<<30, c.Info().Size)
	data := []byte(strings.Repeat("tide", 1024))
	require.NoError(t, c.WriteAt(t.Context(), data, 3<<20, 0))

	stopped(t, p)
	require.Contains(t, p.Output(), "everything is committed")
	require.NoFileExists(t, socket)
	require.NoFileExists(t, pid)
	r := cli(t, "check", image)
	require.Zero(t, r.code, r)
	st, err := os.Stat(image)
	require.NoError(t, err)
	require.Less(t, st.Size(), int64(1<<20), "reserved space was given back")

	d, err := openDisk(t.Context(), diskSpec{Image: image, ReadOnly: true})
	require.NoError(t, err)
	got := make([]byte, len(data))
	require.NoError(t, d.Device().ReadAt(t.Context(), got, 3<<20, 0))
	require.Equal(t, data, got, "what was not flushed was committed at the end")
	require.NoError(t, d.Close())
}

func TestServeEndsWithTheLastClient(t *testing.T) {
	p, socket := startNBD(t, newImage(t, "1M"))
	looker, err := net.Dial("unix", socket)
	require.NoError(t, err)
	require.NoError(t, looker.Close(), "who only looks is no client")
	first, second := dialNBD(t, socket, ""), dialNBD(t, socket, "")
	require.NoError(t, first.Close())
	require.NoError(t, second.WriteAt(t.Context(), make([]byte, 512), 0, 0), "one is left")
	require.NoError(t, second.Close())
	require.NoError(t, p.Wait(t, serveLimit), p.Output())
	require.Contains(t, p.Output(), "the last client has gone")
	require.NoFileExists(t, socket)
}

func TestServeLimitsClients(t *testing.T) {
	p, socket := startNBD(t, "-t", "-e", "1", newImage(t, "1M"))
	first := dialNBD(t, socket, "")
	require.False(t, first.Info().MultiConn)
	ctx, cancel := context.WithTimeout(t.Context(), serveLimit)
	defer cancel()
	second := make(chan error, 1)
	go func() {
		c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{})
		if err == nil {
			err = c.Close()
		}
		second <- err
	}()
	require.NoError(t, first.WriteAt(t.Context(), make([]byte, 512), 0, 0))
	select {
	case err := <-second:
		t.Fatalf("the second client did not wait: %v", err)
	case <-time.After(100 * time.Millisecond): // nothing can tell that somebody is not served
	}
	require.NoError(t, first.Close())
	require.NoError(t, <-second, "it is served when the first has gone")
	stopped(t, p)
}

func TestServeSeveralExports(t *testing.T) {
	a, b, c := newImage(t, "1M"), newImage(t, "2M"), newImage(t, "3M")
	p, socket := startNBD(t, "-t", "-x", "main", "-D", "the first one", "--export", "b="+b, "--export", "c="+c, "--socket-mode", "0660", a)
	st, err := os.Stat(socket)
	require.NoError(t, err)
	require.EqualValues(t, 0o660, st.Mode().Perm())
	for name, size := range map[string]int64{"": 1 << 20, "main": 1 << 20, "b": 2 << 20, "c": 3 << 20} {
		require.Equal(t, size, dialNBD(t, socket, name).Info().Size, name)
	}
	r := cli(t, "nbd", "-L", "-k", socket)
	require.Zero(t, r.code, r)
	require.Contains(t, r.stdout, "exports available: 3\n export: 'main'\n  description: the first one\n  size:  1048576\n")
	stopped(t, p)
}

func TestServeReadOnly(t *testing.T) {
	image := newImage(t, "1M")
	before := digest(t, image)
	p, socket := startNBD(t, "-t", "-r", image)
	c := dialNBD(t, socket, "")
	require.True(t, c.Info().ReadOnly)
	require.Error(t, c.WriteAt(t.Context(), make([]byte, 512), 0, 0))
	stopped(t, p)
	require.Equal(t, before, digest(t, image))
}

func TestServeTCP(t *testing.T) {
	p := testenv.Start(t, tidemark(t, "nbd", "-t", "-p", "0", newImage(t, "1M")))
	awaitOutput(t, p, "listening")
	_, address, ok := strings.Cut(p.Output(), "tcp=")
	require.True(t, ok, p.Output())
	address = strings.Fields(address)[0]
	require.True(t, strings.HasPrefix(address, "127.0.0.1:"), address)
	c, err := nbd.Dial(t.Context(), "tcp", address, nbd.ClientOptions{})
	require.NoError(t, err)
	require.NoError(t, c.WriteAt(t.Context(), make([]byte, 512), 0, nbd.FUA))
	require.NoError(t, c.Close())
	stopped(t, p)
}

// A live socket is refused, by its name, and goes on; a stale one is replaced.
func TestServeSockets(t *testing.T) {
	p, socket := startNBD(t, "-t", newImage(t, "1M"))
	c := dialNBD(t, socket, "")
	other := newImage(t, "1M")
	before := digest(t, other)
	r := cli(t, "nbd", "-k", socket, other)
	require.Equal(t, exitFailure, r.code, r)
	require.Contains(t, r.stderr, "tidemark: socket "+socket+": in use: another process answers on it: stop that one, or choose another path")
	require.Empty(t, r.stdout)
	require.Equal(t, before, digest(t, other), "what was opened for nothing is as it was")
	require.NoError(t, c.WriteAt(t.Context(), make([]byte, 512), 0, 0))

	p.Kill()
	require.FileExists(t, socket, "it is stale now")
	again := testenv.Start(t, tidemark(t, "nbd", "-t", "-k", socket, other))
	awaitOutput(t, again, "listening")
	dialNBD(t, socket, "")
	stopped(t, again)

	plain := filepath.Join(t.TempDir(), "plain")
	require.NoError(t, os.WriteFile(plain, []byte("dear"), 0o644))
	r = cli(t, "nbd", "-k", plain, other)
	require.Equal(t, exitFailure, r.code, r)
	require.Contains(t, r.stderr, "expected a socket")
	require.FileExists(t, plain)
}

// What was opened is closed again when a later step of the start fails.
func TestServeStartFailsHalfWay(t *testing.T) {
	good := newImage(t, "1M")
	before := digest(t, good)
	for _, args := range [][]string{
		{"--export", "b=" + good + ".none"},
		{"--export", "=" + newImage(t, "1M")}, // the name "" is taken
		{"--pid-file", "/nowhere/pid"},
	} {
		socket := filepath.Join(t.TempDir(), "s")
		r := cli(t, append([]string{"nbd", "-t", "-k", socket, good}, args...)...)
		require.Equal(t, exitFailure, r.code, r)
		require.NoFileExists(t, socket)
		require.Equal(t, before, digest(t, good))
		holder, err := hostfile.Holder(good)
		require.NoError(t, err)
		require.Empty(t, holder, "its lock is gone")
	}
}

// A client that does not take its reply keeps a server that was asked to stop,
// for up to drainLimit. A second signal does not wait for that.
func TestServeSecondSignalEndsAtOnce(t *testing.T) {
	image := newImage(t, "64M")
	p, socket := startNBD(t, "-t", image)
	c, err := net.Dial("unix", socket)
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write(rawRequest(0x25609513, 0, 0, 32<<20))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 64<<10)) // the handshake, and the reply's beginning
	require.NoError(t, err)
	require.NoError(t, p.Signal(syscall.SIGTERM))
	awaitOutput(t, p, "stopping: asked to")
	testenv.Eventually(t, serveLimit, "it has ended", func() bool { // the first signal may be at work still
		_ = p.Signal(syscall.SIGINT) // an error: it has ended
		select {
		case <-p.Done():
			return true
		default:
			return false
		}
	})
	status, ok := p.Cmd.ProcessState.Sys().(syscall.WaitStatus)
	require.True(t, ok)
	require.True(t, status.Signaled(), "it was ended, and did not come to its own end: %s", p.Output())
	require.Zero(t, cli(t, "check", image).code)
}

func TestServeOptionErrors(t *testing.T) {
	t.Setenv("TIDEMARK_SPM", "")
	for _, c := range []struct{ args, text string }{
		{"", "expected an IMAGE to serve, found none"},
		{"a b", "expected one IMAGE, found 2 (a b)"},
		{"--export x a", "expected NAME=IMAGE"},
		{"-x name --export a=b", "there is none"},
		{"-k s -p 1 a", "give the one or the other"},
		{"-p 70000 a", "expected a port"},
		{"-b 0.0.0.0 a", "add --insecure"},
		{"-b :: a", "add --insecure"},
		{"-b example.org a", "add --insecure"},
		{"-k s --socket-mode 999 a", "expected an octal mode"},
		{"--socket-mode 0600 a", "belong to a unix socket"},
		{"-k s --socket-group no-such-group a", "there is no such group"},
		{"-e -1 a", "no limit"},
		{"--max-connections 0 a", "expected 1 or more"},
		{"--patience 0s a", "such as 20s"},
		{"--patience x a", "--patience x: expected a time"},
		{"--patience 20 a", "such as 20s"},
		{"--export n=a --export n=b", `name "n" is given twice`},
		{"-x n --export n=a b", `name "n" is given twice`},
		{"--export m=a --export n=a", "a is given twice"},
		{"--handshake-limit 0 a", "1 second or more"},
		{"-f vmdk a", "expected qcow2, raw"},
		{"-f raw --backing auto a", "a raw image has no backing file"},
		{"-f raw --spm /nowhere/s vm1", "its format is its pool's to say"},
		{"--backing auto --spm /nowhere/s vm1", "what is below a volume is its pool's to say"},
		{"--backing raw:b --export n=a --export m=c", "--backing raw:b: expected one image, found 2"},
		{"--backing none a", "without its backing file the disk is another one"},
		{"--backing b a", "expected auto, raw:FILE or qcow2:FILE"},
		{"--backing raw: a", "expected auto, raw:FILE or qcow2:FILE"},
		{"--backing vmdk:b a", "expected auto, raw:FILE or qcow2:FILE"},
		{"--backing raw:b --backing auto a", "found it after raw:b"},
		{"--backing auto --backing raw:b a", "found it after auto"},
		{"--cache none a", "not supported yet"},
		{"--cache writethrough a", "send FUA"},
		{"--detect-zeroes unmap a", "WRITE_ZEROES"},
		{"--discard maybe a", "expected unmap, ignore"},
		{"--spm /nowhere/s ./a", "expected the name or UUID of a volume, found the path ./a"},
		{"--spm /nowhere/s vm1", "socket /nowhere/s: there is no such socket"},
		{"-k /nowhere/s " + newImage(t, "1M"), "socket /nowhere/s: "},
		{"-L -k /nowhere/s", "list the exports of /nowhere/s"},
	} {
		r := cli(t, append([]string{"nbd"}, strings.Fields(c.args)...)...)
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, c.text, r)
		require.Empty(t, r.stdout, r)
	}
}

// What is accepted, and means nothing here, does no harm.
func TestServeAcceptedOptions(t *testing.T) {
	p, socket := startNBD(t, "-t", "-v", "-f", "qcow2", "--cache=unsafe", "--aio=io_uring", "--discard=ignore",
		"--detect-zeroes=off", "--patience=1s", "--handshake-limit=3", "--max-connections=2", newImage(t, "1M"))
	require.Contains(t, p.Output(), "option has no effect")
	dialNBD(t, socket, "")
	stopped(t, p)
}

// What the guest discards is given back, unless that is not wanted.
func TestServeDiscard(t *testing.T) {
	for _, mode := range []string{"unmap", "on", "ignore", "off"} {
		p, socket := startNBD(t, "-t", "--discard", mode, newImage(t, "64M"))
		c := dialNBD(t, socket, "")
		require.NoError(t, c.WriteAt(t.Context(), bytes.Repeat([]byte{1}, 1<<20), 0, 0))
		require.NoError(t, c.Discard(t.Context(), 0, 1<<20, 0))
		extents, err := c.AppendExtents(t.Context(), nil, 0, 1<<20)
		require.NoError(t, err)
		kept := mode == "ignore" || mode == "off"
		require.Equal(t, kept, extents[0].State.Has(block.Data), mode)
		stopped(t, p)
	}
}

func TestServeSocketGroup(t *testing.T) {
	testenv.Need(t, "root")
	p, socket := startNBD(t, "-t", "--socket-mode", "660", "--socket-group", "65534", newImage(t, "1M"))
	st, err := os.Stat(socket)
	require.NoError(t, err)
	require.EqualValues(t, 65534, st.Sys().(*syscall.Stat_t).Gid)
	stopped(t, p)
}

func TestServeClosesConnectionsAboveTheLimit(t *testing.T) {
	p, socket := startNBD(t, "-t", "--max-connections", "1", newImage(t, "1M"))
	c := dialNBD(t, socket, "")
	_, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
	require.Error(t, err)
	require.NoError(t, c.Flush(t.Context()))
	stopped(t, p)
}

// Beyond loopback only on demand.
func TestServeAddress(t *testing.T) {
	never := func(string) bool { return false }
	for bind, want := range map[string]string{"127.0.0.1": "127.0.0.1:10809", "::1": "[::1]:10809", "[::1]": "[::1]:10809", "localhost": "localhost:10809", "0.0.0.0": ""} {
		var p nbdPlan
		o := &nbdOptions{bind: bind, port: 10809}
		err := o.planAddress(&p, never)
		require.Equal(t, want, p.address)
		require.Equal(t, want == "", err != nil, bind)
	}
	var p nbdPlan
	require.NoError(t, (&nbdOptions{bind: "0.0.0.0", port: 1, insecure: true}).planAddress(&p, never))
	require.Equal(t, "tcp 0.0.0.0:1", p.network+" "+p.address)
}

func TestVolumeOrFile(t *testing.T) {
	o := &nbdOptions{}
	for _, c := range []struct {
		image, pool string
		volume      bool
	}{
		{"vm1", "", false}, {"./vm1", "", false}, {"vm1", "/s", true}, {"./vm1", "/s", false}, {"/a/b", "/s", false},
	} {
		var p nbdPlan
		require.NoError(t, o.planExports(&p, []string{c.image}, c.pool))
		require.Equal(t, c.volume, p.exports[0].volume, c)
		require.Equal(t, c.volume, p.spm != "", c)
	}
}

// Requests that come while the server stops are answered, or find the connection
// closed; none meets an image that is closed already.
func TestServeDrains(t *testing.T) {
	p, socket := startNBD(t, "-t", newImage(t, "64M"))
	c := dialNBD(t, socket, "")
	wrote := make(chan struct{})
	failed := make(chan error, 1)
	go func() {
		for i := int64(0); ; i++ {
			if err := c.WriteAt(t.Context(), make([]byte, 64<<10), i%1024<<16, 0); err != nil {
				failed <- err
				return
			}
			if i == 100 {
				close(wrote)
			}
		}
	}()
	<-wrote
	stopped(t, p)
	err := <-failed
	var told *nbd.Error
	if errors.As(err, &told) {
		require.ErrorIs(t, err, nbd.ErrShutdown)
	}
	require.Contains(t, p.Output(), "everything is committed")
}
