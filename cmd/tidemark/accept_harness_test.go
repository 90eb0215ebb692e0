//go:build linux

package main_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
	"tidemark/nbd"
	"tidemark/spm"
)

// The acceptance tests run the real binary: a manager, servers, and as their
// clients fio, QEMU's tools and nbdcopy. Whatever they look at they see from
// outside: through sockets, and in the volumes' files.

const (
	mib = 1 << 20
	gib = 1 << 30

	// chunk is what a new volume is granted, and what it grows by.
	chunk = 128 * mib

	// startLimit is how long a process may take to be ready, stopLimit to end.
	startLimit = 20 * time.Second
	stopLimit  = 30 * time.Second
)

// built builds the program once for all tests. The file is unlinked while it
// is open, so that nothing is left however the tests end.
var built = sync.OnceValues(func() (*os.File, error) {
	dir, err := os.MkdirTemp("", "tidemark-acceptance-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // the error of the build says more
	path := filepath.Join(dir, "tidemark")
	build := exec.Command("go", "build", "-ldflags", "-X main.deathVar="+deathVar+" -X main.runDir="+testRunDir(), "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the Makefile does
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return os.Open(path)
})

// deathVar is where the program is told when to die: see main.deathVar.
const deathVar = "TIDEMARK_TEST_DEATH"

// testRunDir is the place of what lives as long as the host is up: see runDirVar.
func testRunDir() string { return os.Getenv("TIDEMARK_TEST_RUN_DIR") }

// program returns a command of the real binary that ends with the test, and
// with the test process.
func program(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	f, err := built()
	require.NoError(t, err)
	cmd := testenv.Command(t, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()), args...)
	cmd.Args[0] = "tidemark"
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "TIDEMARK_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	diesWithUs(cmd)
	return cmd
}

// diesWithUs ends cmd also if the test process is killed.
func diesWithUs(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
}

// ok runs the real binary to its end, which must be a success.
func ok(t testing.TB, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := program(t, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Run(), "%s: %s", strings.Join(cmd.Args, " "), &stderr)
	return stdout.String()
}

// workspace is a directory on a disk with enough space; it is gone when the
// test ends. Make it first, so that it is removed last.
func workspace(t testing.TB) string {
	t.Helper()
	testenv.Need(t, "long")
	const need = 8 * gib
	dir := t.TempDir()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(dir, &st))
	if free := int64(st.Bavail) * st.Bsize; free < need {
		t.Fatalf("%s has %d MiB free, expected at least %d MiB: free some space, or set TMPDIR to another disk", dir, free/mib, need/mib)
	}
	return dir
}

// A testPool is a pool whose manager is a process.
type testPool struct {
	t        testing.TB
	args     []string // of the manager
	env      []string // of the manager, besides ours
	dir      string   // of the pool, or for what goes with one on a volume group
	socket   string
	capacity int64
	proc     *testenv.Process
	client   *spm.Client
}

// newPool makes a pool and starts its manager.
func newPool(t testing.TB, dir string, capacity int64) *testPool {
	t.Helper()
	p := &testPool{
		t: t, dir: dir, socket: filepath.Join(dir, "spm.sock"), capacity: capacity,
		args: []string{"--dir", dir, "--capacity", fmt.Sprint(capacity)},
	}
	p.start()
	t.Cleanup(func() { _ = p.client.Close() })
	return p
}

// start starts the manager and waits until it answers.
func (p *testPool) start() {
	p.t.Helper()
	cmd := program(p.t, append([]string{"spm"}, p.args...)...)
	cmd.Env = append(cmd.Env, p.env...)
	p.proc = testenv.Start(p.t, cmd)
	ready(p.t, p.proc, func() error {
		c, err := spm.Dial(p.socket)
		if err != nil {
			return err
		}
		if p.client != nil {
			return c.Close()
		}
		p.client = c
		return nil
	})
}

// ready waits until try succeeds, and no longer than the process lives.
func ready(t testing.TB, p *testenv.Process, try func() error) {
	t.Helper()
	var err error
	testenv.Eventually(t, startLimit, strings.Join(p.Cmd.Args, " ")+" answers", func() bool {
		if err = try(); err == nil {
			return true
		}
		select {
		case <-p.Done():
			t.Fatalf("%s ended before it answered (%v)\n%s", strings.Join(p.Cmd.Args, " "), err, p.Output())
		default:
		}
		return false
	})
}

func (p *testPool) info() spm.PoolReply {
	p.t.Helper()
	r, err := p.client.GetPoolInfo(p.t.Context(), spm.PoolInfoRequest{})
	require.NoError(p.t, err)
	return r
}

func (p *testPool) volume(name string) spm.Volume {
	p.t.Helper()
	r, err := p.client.GetVolumeInfo(p.t.Context(), spm.VolumeInfoRequest{VolumeRef: spm.VolumeRef{Volume: name}})
	require.NoError(p.t, err)
	return r.Volume
}

// create makes a volume with the command, and returns it.
func (p *testPool) create(name string, size int64, options ...string) spm.Volume {
	p.t.Helper()
	ok(p.t, append([]string{"volume", "create", "--spm", p.socket, "--size", fmt.Sprint(size), name}, options...)...)
	return p.volume(name)
}

// requireSum requires that what the manager says is granted is what the files
// are long, and within the capacity. Volumes may grow meanwhile.
func (p *testPool) requireSum() {
	p.t.Helper()
	var before, after spm.PoolReply
	var reported, lengths int64
	testenv.Eventually(p.t, startLimit, "a moment in which no volume grows", func() bool {
		before = p.info()
		l, err := p.client.ListVolumes(p.t.Context(), spm.VolumeListRequest{})
		require.NoError(p.t, err)
		reported, lengths = 0, 0
		for _, v := range l.Volumes {
			reported += v.Granted
			lengths += fileLength(p.t, v.Path)
		}
		after = p.info()
		return before.Granted == after.Granted && before.Extensions == after.Extensions
	})
	require.Equal(p.t, lengths, after.Granted, "granted, of the pool, against the lengths of the files")
	require.Equal(p.t, lengths, reported, "granted, of the volumes, against the lengths of the files")
	require.LessOrEqual(p.t, after.Granted, p.capacity, "granted, against the capacity")
}

// A server is a process of tidemark nbd.
type server struct {
	t    testing.TB
	args []string
	sock string
	proc *testenv.Process
}

// serve starts tidemark nbd with args on a socket in dir.
func serve(t testing.TB, dir string, args ...string) *server {
	t.Helper()
	s := &server{t: t, sock: filepath.Join(dir, "nbd.sock"), args: args}
	s.start()
	return s
}

// serve serves a volume of the pool.
func (p *testPool) serve(name string, options ...string) *server {
	p.t.Helper()
	return serve(p.t, p.dir, append([]string{"--spm", p.socket, name}, options...)...)
}

func (s *server) start() {
	s.t.Helper()
	s.proc = testenv.Start(s.t, program(s.t, append([]string{"nbd", "-t", "-k", s.sock}, s.args...)...))
	ready(s.t, s.proc, func() error {
		c, err := nbd.Dial(s.t.Context(), "unix", s.sock, nbd.ClientOptions{})
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// stop ends the server as an administrator does; it must say that all is well.
func (s *server) stop() {
	s.t.Helper()
	require.NoError(s.t, s.proc.Signal(syscall.SIGTERM))
	require.NoError(s.t, s.proc.Wait(s.t, stopLimit), "tidemark nbd after SIGTERM: %s", s.proc.Output())
}

func (s *server) uri() string { return "nbd+unix:///?socket=" + s.sock }

// dial connects to the server.
func (s *server) dial() *nbd.Client {
	s.t.Helper()
	c, err := nbd.Dial(s.t.Context(), "unix", s.sock, nbd.ClientOptions{})
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}
