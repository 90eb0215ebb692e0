//go:build linux

package main_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// exposure is the most that systemd-analyze security may find of each unit, in
// tenths. Everybody needs disks; a mount cannot have a namespace of its own.
var exposure = map[string]int{
	"tidemark-spm.service":    30,
	"tidemark-nbd@.service":   40,
	"tidemark-mount@.service": 50,
}

func unitPath(name string) string { return filepath.Join("..", "..", "dist", name) }

// systemd finds no fault with the units, and little that they could do without.
func TestUnitsVerify(t *testing.T) {
	analyze := testenv.Tool(t, "systemd-analyze")
	dir := t.TempDir()
	var paths []string
	for name := range exposure {
		text, err := os.ReadFile(unitPath(name))
		require.NoError(t, err)
		paths = append(paths, filepath.Join(dir, name))
		installed := strings.ReplaceAll(string(text), "/usr/bin/tidemark", "/bin/true") // which is there
		require.NotEqual(t, string(text), installed)
		require.NoError(t, os.WriteFile(paths[len(paths)-1], []byte(installed), 0o600))
	}
	r := testenv.Try(t, analyze, append([]string{"verify", "--man=no"}, paths...)...)
	require.Zero(t, r.ExitCode, "%s", r)
	require.Empty(t, strings.TrimSpace(r.Stderr), "remarks of systemd-analyze verify")
	for _, p := range paths {
		most := exposure[filepath.Base(p)]
		r := testenv.Try(t, analyze, "security", "--offline=yes", "--threshold="+strconv.Itoa(most), p)
		require.Zero(t, r.ExitCode, "%s", r)
	}
}

// A mount in a mount namespace of the service's own is seen by nobody else.
func TestMountUnitHasNoNamespace(t *testing.T) {
	text, err := os.ReadFile(unitPath("tidemark-mount@.service"))
	require.NoError(t, err)
	namespaced := regexp.MustCompile(`(?m)^(Protect(System|Home|Kernel\w+|ControlGroups|Hostname|Clock|Proc)|Private\w+|Read\w+Paths|Inaccessible\w+|TemporaryFileSystem|Bind\w*Paths|MountFlags|RootDirectory|DynamicUser)=`)
	require.Empty(t, namespaced.FindString(string(text)))
	require.NotEmpty(t, namespaced.FindString("PrivateTmp=yes"))
}

// A fakeSystemd is what a service with Type=notify speaks to.
type fakeSystemd struct {
	t      *testing.T
	socket string

	mu  sync.Mutex // guards got
	got []string
}

func newFakeSystemd(t *testing.T) *fakeSystemd {
	t.Helper()
	f := &fakeSystemd{t: t, socket: filepath.Join(t.TempDir(), "notify")}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: f.socket})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			f.mu.Lock()
			f.got = append(f.got, strings.Split(string(b[:n]), "\n")...)
			f.mu.Unlock()
		}
	}()
	return f
}

// count is how many assignments begin with that.
func (f *fakeSystemd) count(prefix string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.got {
		if strings.HasPrefix(a, prefix) {
			n++
		}
	}
	return n
}

func (f *fakeSystemd) await(p *testenv.Process, prefix string, n int) {
	f.t.Helper()
	testenv.Eventually(f.t, startLimit, "systemd is told "+prefix+"\n"+p.Output(), func() bool { return f.count(prefix) >= n })
}

// start runs the command of a unit as systemd would, for instance web1 and in
// another directory than /run/tidemark.
func (f *fakeSystemd) start(unit, run string, options map[string]string) *testenv.Process {
	f.t.Helper()
	text, err := os.ReadFile(unitPath(unit))
	require.NoError(f.t, err)
	line := regexp.MustCompile(`(?m)^ExecStart=/usr/bin/tidemark (.*)$`).FindStringSubmatch(string(text))
	require.NotNil(f.t, line)
	var args []string
	for _, w := range strings.Fields(line[1]) {
		if name, ok := strings.CutPrefix(w, "$"); ok {
			args = append(args, strings.Fields(options[name])...)
			continue
		}
		args = append(args, strings.NewReplacer("/run/tidemark", run, "%i", "web1", "%I", "web1").Replace(w))
	}
	cmd := program(f.t, args...)
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+f.socket, "WATCHDOG_USEC=300000")
	return testenv.Start(f.t, cmd)
}

// The commands of the units work together as they are, and tell systemd when they
// are ready, that they live, what they do, and when they stop.
func TestUnitsRun(t *testing.T) {
	testenv.Need(t, "root")
	run := t.TempDir()
	manager, export := newFakeSystemd(t), newFakeSystemd(t)
	spmProcess := manager.start("tidemark-spm.service", run, map[string]string{
		"SPM_OPTIONS": fmt.Sprintf("--dir %s/pool --capacity 256M --socket-mode 0660 --socket-group 65534", run)})
	manager.await(spmProcess, "READY=1", 1)
	socket := filepath.Join(run, "spm.sock")
	st, err := os.Stat(socket)
	require.NoError(t, err)
	require.EqualValues(t, 0o660, st.Mode().Perm())
	require.EqualValues(t, 65534, st.Sys().(*syscall.Stat_t).Gid)
	ok(t, "volume", "create", "--spm", socket, "--size", "1G", "web1")

	nbdProcess := export.start("tidemark-nbd@.service", run, nil)
	export.await(nbdProcess, "READY=1", 1)
	st, err = os.Stat(filepath.Join(run, "nbd-web1.sock"))
	require.NoError(t, err, "READY=1 is sent when the socket is there")
	require.EqualValues(t, 0o600, st.Mode().Perm())
	require.Equal(t, 1, export.count("STATUS=1 exports on unix "))
	export.await(nbdProcess, "WATCHDOG=1", 3)

	// What waits is shown.
	writer := (&server{t: t, sock: filepath.Join(run, "nbd-web1.sock")}).dial()
	held := make(chan error, 1)
	go func() {
		var err error
		for at := int64(0); err == nil; at += mib {
			err = writer.WriteAt(t.Context(), patterned(1, at, mib), at, 0)
		}
		held <- err
	}()
	manager.await(spmProcess, "STATUS=256 MiB granted of 256 MiB to 1 volumes; web1 waits for ", 1)

	require.NoError(t, nbdProcess.Signal(syscall.SIGTERM))
	require.NoError(t, nbdProcess.Wait(t, stopLimit), nbdProcess.Output())
	require.Equal(t, 1, export.count("STOPPING=1"))
	require.Error(t, <-held)
	manager.await(spmProcess, "WATCHDOG=1", 3)
	require.NoError(t, spmProcess.Signal(syscall.SIGTERM))
	require.NoError(t, spmProcess.Wait(t, stopLimit), spmProcess.Output())
	require.Equal(t, 1, manager.count("STOPPING=1"))
	require.NotContains(t, spmProcess.Output()+nbdProcess.Output(), "level=ERROR")
}
