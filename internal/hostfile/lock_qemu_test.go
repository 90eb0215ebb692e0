//go:build linux

package hostfile_test

import (
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
)

// qemuHolds starts qemu-io on a QCOW2 image and returns when it has the image
// open; it keeps it until the test ends or the returned function is called.
func qemuHolds(t *testing.T, path string, flags ...string) *testenv.Process {
	t.Helper()
	args := append(append([]string{}, flags...), "-f", "qcow2", path)
	cmd := testenv.Command(t, testenv.Tool(t, "qemu-io"), args...)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	t.Cleanup(func() { _ = in.Close() })
	p := testenv.Start(t, cmd)
	_, err = io.WriteString(in, "length\n") // answered once the image is open
	require.NoError(t, err)
	testenv.Eventually(t, time.Minute, "qemu-io has the image open", func() bool {
		return strings.Contains(p.Output(), "1 MiB")
	})
	return p
}

func newQcow2(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	testenv.Run(t, testenv.Tool(t, "qemu-img"), "create", "-q", "-f", "qcow2", path, "1M")
	return path
}

// modes are what the two sides may do: a row is who has the image open first.
var modes = []struct {
	name  string
	opts  hostfile.Options
	flags []string // of qemu-io
}{
	{"writer", hostfile.Options{}, nil},
	{"reader", hostfile.Options{ReadOnly: true}, []string{"-r"}},
	{"reader with -U", hostfile.Options{ReadOnly: true, Lock: hostfile.LockShared}, []string{"-r", "-U"}},
}

// together says which pairs may have the image open at the same time.
var together = [3][3]bool{
	{false, false, true},
	{false, true, true},
	{true, true, true},
}

func TestLockAgainstQEMU(t *testing.T) {
	path := newQcow2(t)
	for i, first := range modes {
		for j, second := range modes {
			t.Run("qemu "+first.name+", then "+second.name, func(t *testing.T) {
				p := qemuHolds(t, path, first.flags...)
				f, err := hostfile.Open(path, second.opts)
				if together[i][j] {
					require.NoError(t, err)
					require.NoError(t, f.Close())
					return
				}
				require.ErrorIs(t, err, block.ErrInUse)
				require.ErrorContains(t, err, path)
				require.ErrorContains(t, err, "qemu-io (pid "+strconv.Itoa(p.Cmd.Process.Pid)+")")
			})
			t.Run(first.name+", then qemu "+second.name, func(t *testing.T) {
				f, err := hostfile.Open(path, first.opts)
				require.NoError(t, err)
				defer f.Close()
				args := append(append([]string{}, second.flags...), "-f", "qcow2", "-c", "length", path)
				r := testenv.Try(t, testenv.Tool(t, "qemu-io"), args...)
				require.Equal(t, together[i][j], r.Err == nil, "%s", r)
				if r.Err != nil {
					require.Contains(t, r.Stderr, "lock", "%s", r)
				}
			})
		}
	}
}

func TestServedImageIsNotRepaired(t *testing.T) {
	path := newQcow2(t)
	f, err := hostfile.Open(path, hostfile.Options{})
	require.NoError(t, err)
	img := testenv.Tool(t, "qemu-img")
	require.Error(t, testenv.Try(t, img, "check", "-r", "all", path).Err)
	require.Error(t, testenv.Try(t, img, "resize", path, "2M").Err)
	require.NoError(t, f.Close())
	testenv.Run(t, img, "check", "-r", "all", path)
}

func TestHolderIsQEMU(t *testing.T) {
	path := newQcow2(t)
	for _, flags := range [][]string{nil, {"-r"}, {"-r", "-U"}} {
		p := qemuHolds(t, path, flags...)
		who, err := hostfile.Holder(path)
		require.NoError(t, err)
		require.Equal(t, "qemu-io (pid "+strconv.Itoa(p.Cmd.Process.Pid)+")", who)
		p.Kill()
		who, err = hostfile.Holder(path)
		require.NoError(t, err)
		require.Empty(t, who)
	}
}
