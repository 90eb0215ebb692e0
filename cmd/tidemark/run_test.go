package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// asMain makes the test program be tidemark, for tests that need a process.
const asMain = "TIDEMARK_TEST_AS_MAIN"

// runDirVar is where the tests and the programs that they start keep what lives as
// long as the host is up, instead of in the host's own place: killed servers leave
// redo rings there.
const runDirVar = "TIDEMARK_TEST_RUN_DIR"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		if dir := os.Getenv(runDirVar); dir != "" {
			runDir = dir
		}
		main()
	}
	os.Exit(inRunDir(m.Run))
}

// inRunDir runs the tests with a directory of their own, on a tmpfs if there is one.
func inRunDir(tests func() int) int {
	dir, err := os.MkdirTemp("/dev/shm", "tidemark-test-")
	if err != nil {
		dir, err = os.MkdirTemp("", "tidemark-test-")
	}
	if err == nil {
		defer os.RemoveAll(dir) //nolint:errcheck // the tests have said what is wrong
		err = os.Setenv(runDirVar, dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	runDir = dir
	return tests()
}

// tidemark is a command line of this program as a process of its own.
func tidemark(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	own, err := os.Executable()
	require.NoError(t, err)
	c := testenv.Command(t, own, args...)
	c.Env = append(os.Environ(), asMain+"=1")
	return c
}

// inProcess runs a command line to its end and returns what it has written. It
// is interrupted when it has not ended by itself after a while.
func inProcess(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), serveLimit)
	defer cancel()
	var o, e bytes.Buffer
	code = run(ctx, args, &o, &e)
	require.NoError(t, ctx.Err(), "tidemark %q did not end by itself", args)
	return code, o.String(), e.String()
}

// startRun starts tidemark run and waits until it serves.
func startRun(t testing.TB, args ...string) *testenv.Process {
	t.Helper()
	p := testenv.Start(t, tidemark(t, append([]string{"run"}, args...)...))
	awaitOutput(t, p, "extensions 0")
	return p
}

// awaitOutput waits until a process has written text, or has ended.
func awaitOutput(t testing.TB, p *testenv.Process, text string) {
	t.Helper()
	testenv.Eventually(t, serveLimit, fmt.Sprintf("the output has %q:\n%s", text, p.Output()), func() bool {
		select {
		case <-p.Done():
			t.Fatalf("ended without %q:\n%s", text, p.Output())
		default:
		}
		return strings.Contains(p.Output(), text)
	})
}

// interrupt sends Ctrl-C and expects a clean end.
func interrupt(t testing.TB, p *testenv.Process) {
	t.Helper()
	require.NoError(t, p.Signal(os.Interrupt))
	require.NoError(t, p.Wait(t, serveLimit), p.Output())
	require.Contains(t, p.Output(), "stopped; everything that was written is in")
}

func TestRunKeepsTheData(t *testing.T) {
	qemuIO := testenv.Tool(t, "qemu-io")
	dir := filepath.Join(t.TempDir(), "pool")
	uri := nbdURI(filepath.Join(dir, "nbd.sock"), "disk1")

	p := startRun(t, "--dir", dir, "--capacity", "2G", "--size", "10G", "disk1")
	testenv.Run(t, qemuIO, "-f", "raw", "-c", "write -P 7 0 200M", "-c", "write -P 9 9G 1M", uri)
	awaitOutput(t, p, "used 201 MiB")
	interrupt(t, p)

	p = startRun(t, "--dir", dir)
	out := testenv.Run(t, qemuIO, "-f", "raw", "-r", "-c", "read -P 7 0 200M", "-c", "read -P 9 9G 1M", "-c", "read -P 0 1G 1M", uri)
	require.NotContains(t, out, "verification failed")
	interrupt(t, p)
	require.NoFileExists(t, filepath.Join(dir, "nbd.sock"))
	require.NoFileExists(t, filepath.Join(dir, "spm.sock"))

	volumes, err := filepath.Glob(filepath.Join(dir, "*", "images", "*", "*.meta"))
	require.NoError(t, err)
	require.Len(t, volumes, 1)
	testenv.Run(t, testenv.Tool(t, "qemu-img"), "check", strings.TrimSuffix(volumes[0], ".meta"))
}

func TestRunTwiceIsRefused(t *testing.T) {
	dir := t.TempDir()
	p := startRun(t, "--dir", dir, "--capacity", "1G", "--size", "1G", "disk1")
	holder := fmt.Sprint(p.Cmd.Process.Pid)

	for _, command := range []string{"run", "spm"} {
		code, _, stderr := inProcess(t, command, "--dir", dir)
		require.Equal(t, exitFailure, code)
		require.Contains(t, stderr, "is managed by process "+holder)
	}
	code, stdout, stderr := inProcess(t, "volume", "list", "--spm", filepath.Join(dir, "spm.sock"))
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "disk1")

	code, _, stderr = inProcess(t, "volume", "remove", "--spm", filepath.Join(dir, "spm.sock"), "disk1")
	require.Equal(t, exitFailure, code)
	require.Contains(t, stderr, holder, "who has it open")
	interrupt(t, p)
}

// TestRunHeld: a full pool holds the write and says so, and Ctrl-C ends it all
// the same.
func TestRunHeld(t *testing.T) {
	qemuIO := testenv.Tool(t, "qemu-io")
	dir := t.TempDir()
	uri := nbdURI(filepath.Join(dir, "nbd.sock"), "disk1")
	p := startRun(t, "--dir", dir, "--capacity", "128M", "--size", "1G", "disk1")
	writer := testenv.Start(t, testenv.Command(t, qemuIO, "-f", "raw", "-c", "write 0 160M", uri))
	awaitOutput(t, p, "waiting for ")
	interrupt(t, p)
	require.Error(t, writer.Wait(t, serveLimit), "the write was not done")
}

func TestRunPatience(t *testing.T) {
	qemuIO := testenv.Tool(t, "qemu-io")
	dir := t.TempDir()
	p := startRun(t, "--dir", dir, "--capacity", "128M", "--size", "1G", "--patience", "300ms", "disk1")
	began := time.Now()
	r := testenv.Try(t, qemuIO, "-f", "raw", "-c", "write 0 160M", nbdURI(filepath.Join(dir, "nbd.sock"), "disk1"))
	require.Contains(t, r.Stdout+r.Stderr, "No space left on device")
	require.Less(t, time.Since(began), 10*time.Second, "the default is 20 s")
	interrupt(t, p)
}

// TestRunCommands pastes what tidemark run prints, from a path that a shell,
// QEMU and a URI each have to quote. Only the amounts are made smaller.
func TestRunCommands(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b,c'd")
	p := startRun(t, "--dir", dir, "--capacity", "1G", "--size", "4G", "disk1")
	smaller := strings.NewReplacer("300M", "20M", "--size=1G", "--size=20M")
	expect := map[string]string{
		"nbdinfo": "4294967296", "qemu-io": "read 20971520/20971520", "fio": "err= 0", "qemu-system-x86_64": "tidemark0",
	}
	for line := range strings.Lines(p.Output()) {
		line = strings.TrimSpace(line)
		tool, _, _ := strings.Cut(line, " ")
		want, ok := expect[tool]
		if !ok {
			continue
		}
		delete(expect, tool)
		testenv.Tool(t, tool)
		if tool == "qemu-system-x86_64" {
			line = `printf 'info block\nquit\n' | ` + line + " -S -nodefaults -monitor stdio"
		}
		require.Contains(t, testenv.Run(t, "sh", "-c", smaller.Replace(line)), want, line)
	}
	require.Empty(t, expect, "not printed")
	interrupt(t, p)
}

// TestRunCommandsInDeepDirectory: the path of a socket has a limit, and what is
// printed keeps to it.
func TestRunCommandsInDeepDirectory(t *testing.T) {
	deep := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	require.NoError(t, os.Mkdir(deep, 0o700))
	cmd := tidemark(t, "run", "--dir", "pool", "--capacity", "1G", "--size", "1G", "disk1")
	cmd.Dir = deep
	p := testenv.Start(t, cmd)
	awaitOutput(t, p, "Ctrl-C ends it.")
	require.Contains(t, p.Output(), "?socket=pool/nbd.sock'")
	require.Contains(t, p.Output(), "TIDEMARK_SPM=pool/spm.sock")
	interrupt(t, p)
}

func TestRunMistakes(t *testing.T) {
	dir := t.TempDir()
	pool := filepath.Join(dir, "pool")
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, c := range []struct{ args, want string }{
		{"", "give --dir DIR, and --capacity SIZE"},
		{"--dir POOL disk1 --size 1G", "a new one needs a capacity: give --capacity SIZE"},
		{"--dir POOL --capacity 64M", "expected at least 128 MiB"},
		{"--dir POOL --capacity 1Q", "--capacity 1Q: \"1Q\": not a size"},
		{"--dir POOL --capacity 0", "expected more than 0"},
		{"--dir FILE --capacity 1G", "choose a directory, not a file"},
		{"--dir /sys/tidemark --capacity 1G disk1 --size 1G", "choose a directory that you may write to"},
		{"--dir POOL --capacity 1G", "has no volume to serve; name one to be made: tidemark run --dir"},
		{"--dir POOL --capacity 1G --size 1G", "give its NAME"},
		{"--dir POOL --capacity 1G disk1", "to have it made, give its size: tidemark run ... --size 10G disk1"},
		{"--dir POOL --capacity 1G --size 1G a/b", "name"},
		{"--dir POOL --capacity 1G --size 1G disk1 disk2", "expected one NAME"},
		{"--dir POOL --capacity 512M", "may only be raised"},
		{"--dir POOL --patience 0s", "--patience 0s: expected more than nothing"},
		{"--dir POOL --size 1G --socket FILE disk1", "expected a socket or nothing there"},
		{"--dir POOL --size 1G --socket /nope/s disk1", "/nope"},
	} {
		line := strings.NewReplacer("POOL", pool, "FILE", file).Replace(c.args)
		code, stdout, stderr := inProcess(t, append([]string{"run"}, strings.Fields(line)...)...)
		require.Equal(t, exitFailure, code, c.args)
		require.Contains(t, stderr, c.want, c.args)
		require.Empty(t, stdout, c.args)
		require.NoFileExists(t, filepath.Join(pool, "spm.sock"), c.args)
	}
}

// TestRunFailsCleanly: a process that ends as soon as it has opened its pool
// leaves no socket behind.
func TestRunFailsCleanly(t *testing.T) {
	dir := t.TempDir()
	for range 10 {
		p := testenv.Start(t, tidemark(t, "run", "--dir", dir, "--capacity", "1G"))
		require.Error(t, p.Wait(t, serveLimit))
		require.Contains(t, p.Output(), "has no volume to serve")
		_, err := os.Lstat(filepath.Join(dir, "spm.sock"))
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}

func TestRunSocketInUse(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "one", "nbd.sock")
	p := startRun(t, "--dir", filepath.Join(dir, "one"), "--capacity", "1G", "--size", "1G", "disk1")
	code, _, stderr := inProcess(t, "run", "--dir", filepath.Join(dir, "two"), "--capacity", "1G", "--size", "1G", "--socket", socket, "disk1")
	require.Equal(t, exitFailure, code)
	require.Contains(t, stderr, "another process answers on it: stop that one, or choose another path")

	p.Kill() // leaves a stale socket, which the next one replaces
	_, err := os.Lstat(socket)
	require.NoError(t, err)
	interrupt(t, startRun(t, "--dir", filepath.Join(dir, "one")))
}

// TestRunSIGTERM: an unattended stop is as clean as Ctrl-C.
func TestRunSIGTERM(t *testing.T) {
	p := startRun(t, "--dir", t.TempDir(), "--capacity", "1G", "--size", "1G", "disk1")
	require.NoError(t, p.Signal(syscall.SIGTERM))
	require.NoError(t, p.Wait(t, serveLimit))
	require.Contains(t, p.Output(), "stopped;")
}
