package spm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
)

// Who was killed keeps his locks until the kernel has ended what it does for him. The
// next manager waits for that; it does not wait for one that lives.
func TestLockOfTheDying(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "spm.lock"))
	require.NoError(t, err)
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
	c := exec.Command("cat")
	in, err := c.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	_, err = fmt.Fprintf(f, "process %d\n", c.Process.Pid)
	require.NoError(t, err)
	_, err = lockDir(dir, "held by", "wait")
	require.ErrorIs(t, err, block.ErrInUse, "it lives")
	require.False(t, dying(c.Process.Pid))

	require.NoError(t, c.Process.Kill())
	for !dying(c.Process.Pid) { // nobody has waited for it: it is a zombie
	}
	gone := time.AfterFunc(50*time.Millisecond, func() { _ = f.Close() })
	defer gone.Stop()
	l, err := lockDir(dir, "held by", "wait")
	require.NoError(t, err, "it waits")
	require.NoError(t, l.Release())
	require.NoError(t, in.Close())
	require.Error(t, c.Wait())
}

func TestDyingStatus(t *testing.T) {
	for status, want := range map[string]bool{
		"Name:\tx\nState:\tS (sleeping)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000000\n": false,
		"State:\tZ (zombie)\n": true,
		"State:\tX (dead)\n":   true,
		"State:\tD (disk sleep)\nSigPnd:\t0000000000000100\n":                            true,
		"State:\tD (disk sleep)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000004100\n": true,
		"State:\tD (disk sleep)\nShdPnd:\t0000000000004000\n":                            false,
	} {
		require.Equal(t, want, dyingStatus(status), status)
	}
}

// A lock ends with Release, although a child that was just begun has a copy of the descriptor.
func TestLockEndsUnderACopy(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		l, err := lockDir(dir, "held by", "wait")
		require.NoError(t, err)
		testenv.CopyDescriptors(t, filepath.Join(dir, "spm.lock"))
		require.NoError(t, l.Release())
	}
}
