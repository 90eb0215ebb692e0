package main

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/nbd"
)

func TestInheritedSockets(t *testing.T) {
	for _, c := range []struct {
		pid, fds string
		want     int
	}{
		{"7", "1", 1}, {"7", "3", 3}, {"8", "1", 0}, {"", "1", 0}, {"7", "", 0}, {"7", "x", 0}, {"7", "-1", 0}, {"07", "1", 0},
	} {
		env := map[string]string{"LISTEN_PID": c.pid, "LISTEN_FDS": c.fds}
		require.Equal(t, c.want, inheritedSockets(func(s string) string { return env[s] }, 7), c)
	}
}

func TestListenOptions(t *testing.T) {
	for _, c := range []struct {
		o       nbdOptions
		changed string
		text    string // of the error; "" is none
	}{
		{nbdOptions{inherited: 1}, "", ""},
		{nbdOptions{inherited: 2}, "", "expected one socket"},
		{nbdOptions{inherited: 1, socket: "s"}, "socket", "expected no -k"},
		{nbdOptions{inherited: 1}, "port", "expected no -k"},
		{nbdOptions{inherited: 1, vsock: true}, "", "expected no -k"},
		{nbdOptions{inherited: 1, fork: true}, "", "--fork"},
		{nbdOptions{inherited: 1, list: true, socket: "s", socketMode: "600"}, "socket", ""},
		{nbdOptions{vsock: true, insecure: true, port: 7}, "port", ""},
		{nbdOptions{vsock: true, insecure: true}, "bind", "expected no -k"},
		{nbdOptions{vsock: true, insecure: true, socket: "s"}, "socket", "expected no -k"},
		{nbdOptions{vsock: true, insecure: true, list: true}, "", "not supported"},
		{nbdOptions{vsock: true}, "", "add --insecure"},
	} {
		var p nbdPlan
		err := c.o.planAddress(&p, func(s string) bool { return s == c.changed })
		if c.text == "" {
			require.NoError(t, err, c)
			require.NotEmpty(t, p.network)
		} else {
			require.ErrorContains(t, err, c.text, c)
		}
	}
}

// systemd makes the socket, starts the server at the first connection, and keeps the
// socket.
func TestServeInherited(t *testing.T) {
	activate := testenv.Tool(t, "systemd-socket-activate")
	for _, kind := range []string{"unix", "tcp"} {
		t.Run(kind, func(t *testing.T) {
			address := filepath.Join(t.TempDir(), "s")
			if kind == "tcp" {
				address = freeAddress(t)
			}
			own := tidemark(t, "nbd", "-x", "n", newImage(t, "4M"))
			p := testenv.Start(t, testenv.Command(t, activate, append([]string{"-l", address, "-E", asMain + "=1"}, own.Args...)...))
			awaitOutput(t, p, "Listening on")
			c, err := nbd.Dial(t.Context(), kind, address, nbd.ClientOptions{Export: "n"})
			require.NoError(t, err)
			require.NoError(t, c.WriteAt(t.Context(), []byte("tide"), 0, 0))
			require.NoError(t, c.Close())
			require.NoError(t, p.Wait(t, serveLimit), "without -t it ends with the last client: %s", p.Output())
			require.Contains(t, p.Output(), "listening")
			if kind == "unix" {
				require.FileExists(t, address, "the socket is the service manager's")
			}
		})
	}
	t.Run("beyond loopback", func(t *testing.T) {
		_, port, err := net.SplitHostPort(freeAddress(t))
		require.NoError(t, err)
		own := tidemark(t, "nbd", newImage(t, "4M"))
		p := testenv.Start(t, testenv.Command(t, activate, append([]string{"-l", "0.0.0.0:" + port, "-E", asMain + "=1"}, own.Args...)...))
		awaitOutput(t, p, "Listening on")
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		require.NoError(t, err)
		defer c.Close()
		require.Error(t, p.Wait(t, serveLimit))
		require.Contains(t, p.Output(), "add --insecure")
	})
	t.Run("no socket", func(t *testing.T) {
		own := tidemark(t, "nbd", newImage(t, "4M"))
		sh := testenv.Command(t, "sh", append([]string{"-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh"}, own.Args...)...)
		sh.Env = own.Env
		null, err := os.Open(os.DevNull)
		require.NoError(t, err)
		defer null.Close()
		sh.ExtraFiles = []*os.File{null}
		p := testenv.Start(t, sh)
		require.Error(t, p.Wait(t, serveLimit))
		require.Contains(t, p.Output(), "the socket that the service manager passed")
	})
}

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// Where the kernel has vsock it is listened on, otherwise it is said what is missing.
func TestServeVsock(t *testing.T) {
	p := testenv.Start(t, tidemark(t, "nbd", "-t", "--vsock", "--insecure", "-p", strconv.Itoa(20000+os.Getpid()%40000), newImage(t, "4M")))
	testenv.Eventually(t, serveLimit, "an answer", func() bool {
		return strings.Contains(p.Output(), "vsock=any:") || strings.Contains(p.Output(), "this kernel has no vsock")
	})
	if strings.Contains(p.Output(), "vsock=any:") {
		stopped(t, p)
	} else {
		require.Error(t, p.Wait(t, serveLimit))
	}
}

// --fork returns when the socket is there, and the pid file has the server's number.
func TestServeFork(t *testing.T) {
	image, dir := newImage(t, "4M"), t.TempDir()
	socket, pid := filepath.Join(dir, "s"), filepath.Join(dir, "pid")
	p := testenv.Start(t, tidemark(t, "nbd", "-t", "--fork", "--pid-file", pid, "-k", socket, image))
	require.NoError(t, p.Wait(t, serveLimit), p.Output())
	b, err := os.ReadFile(pid)
	require.NoError(t, err)
	number, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	require.NotEqual(t, p.Cmd.Process.Pid, number)
	server, err := os.FindProcess(number)
	require.NoError(t, err)
	defer server.Kill() //nolint:errcheck // it has ended, if the test has not failed
	c := dialNBD(t, socket, "")
	require.NoError(t, c.WriteAt(t.Context(), []byte("tide"), 0, 0))
	require.NoError(t, c.Close())
	require.NoError(t, server.Signal(syscall.SIGTERM))
	testenv.Eventually(t, serveLimit, "it has ended", func() bool {
		_, err := os.Stat(pid)
		return os.IsNotExist(err)
	})
	require.NoFileExists(t, socket)

	p = testenv.Start(t, tidemark(t, "nbd", "--fork", "-k", socket, filepath.Join(dir, "none.qcow2")))
	require.ErrorContains(t, p.Wait(t, serveLimit), "exit status 1")
	require.Contains(t, p.Output(), "none.qcow2")
}

// What -L prints is what qemu-nbd -L prints, except for what only one of them can be
// told.
func TestListAsQEMU(t *testing.T) {
	qemu := testenv.Tool(t, "qemu-nbd")
	for _, args := range [][]string{{"-x", "n", "-D", "a disk"}, {"-A"}, {"-r"}, {"-e", "1"}, {"--rotational"}} {
		p, socket := startNBD(t, append(args, "-t", newImage(t, "4M"))...)
		theirs := testenv.Run(t, qemu, "-L", "-k", socket)
		ours := cli(t, "nbd", "-L", "-k", socket)
		require.Zero(t, ours.code, ours)
		require.Equal(t, theirs, ours.stdout)
		require.Equal(t, args[0] == "--rotational", strings.Contains(theirs, "rotational"))
		stopped(t, p)
	}
}
