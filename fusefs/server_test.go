//go:build linux

package fusefs

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/testenv"
)

// asServer makes the test program serve a mount: its value is a serverSpec.
// Programs that use a mount as their users do belong to another process than the
// one that serves it.
const asServer = "TIDEMARK_FUSEFS_SERVER"

// A serverSpec is what a serving process shows.
type serverSpec struct {
	Target   string
	Disk     string // a file of the host; "" is memory
	Size     int64  // of a disk in memory
	MaxWrite int

	ReadOnly, AllowOther bool
}

func TestMain(m *testing.M) {
	if spec := os.Getenv(asServer); spec != "" {
		if err := serveSpec(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serveSpec serves until SIGTERM or umount.
func serveSpec(encoded string) error {
	var spec serverSpec
	if err := json.Unmarshal([]byte(encoded), &spec); err != nil {
		return err
	}
	var d block.Device = blocktest.NewMemDevice(spec.Size)
	if spec.Disk != "" {
		var err error
		if d, err = newFileDevice(spec.Disk); err != nil {
			return err
		}
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	fs, err := Mount(spec.Target, []File{{Name: "disk.raw", Device: d}}, Options{
		MaxWrite: spec.MaxWrite, ReadOnly: spec.ReadOnly, AllowOther: spec.AllowOther, Logger: log,
	})
	if err != nil {
		return err
	}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	fmt.Println("ready")
	select {
	case <-stop.Done():
	case <-fs.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	if err := fs.Close(ctx); err != nil {
		return err
	}
	return d.Close()
}

// startServer serves a disk as a file in a process of its own, and returns the
// file. The mount is gone when the test ends, whatever became of the process.
func startServer(t testing.TB, spec serverSpec, env ...string) (p *testenv.Process, path string) {
	t.Helper()
	return startServerAs(t, nil, spec, env...)
}

// startServerAs does so as another user.
func startServerAs(t testing.TB, as *syscall.Credential, spec serverSpec, env ...string) (p *testenv.Process, path string) {
	t.Helper()
	needMount(t)
	if spec.Target == "" {
		spec.Target = filepath.Join(t.TempDir(), "disk.raw")
		require.NoError(t, os.WriteFile(spec.Target, nil, 0o600))
	}
	p = launchServer(t, as, spec, env...)
	testenv.Eventually(t, closeLimit, "the server is ready", func() bool {
		select {
		case <-p.Done():
			t.Fatalf("the server has ended:\n%s", p.Output())
		default:
		}
		return strings.Contains(p.Output(), "ready\n")
	})
	return p, spec.Target
}

// launchServer starts a server and does not wait for it.
func launchServer(t testing.TB, as *syscall.Credential, spec serverSpec, env ...string) *testenv.Process {
	t.Helper()
	encoded, err := json.Marshal(spec)
	require.NoError(t, err)
	// The test program lies where only its user can reach it.
	cmd := testenv.Command(t, fmt.Sprintf("/proc/self/fd/%d", open(t, "/proc/self/exe", unix.O_RDONLY)))
	cmd.Env = append(append(os.Environ(), env...), asServer+"="+string(encoded))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	t.Cleanup(func() { _ = unix.Unmount(spec.Target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) }) // after the process
	return testenv.Start(t, cmd)
}

// stopServer ends a server as an administrator does.
func stopServer(t testing.TB, p *testenv.Process) {
	t.Helper()
	require.NoError(t, p.Signal(syscall.SIGTERM))
	require.NoError(t, p.Wait(t, closeLimit), p.Output())
}
