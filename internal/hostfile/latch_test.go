//go:build linux

package hostfile

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestFirstSyncErrorIsFinal injects the system call's error: there is no cheap
// way to make a real disk fail once.
func TestFirstSyncErrorIsFinal(t *testing.T) {
	f, err := Create(filepath.Join(t.TempDir(), "disk"), 4096, CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	require.ErrorIs(t, f.syncAs(func(int) error { return unix.EIO }), unix.EIO)
	require.ErrorIs(t, f.Sync(), unix.EIO)
	_, err = f.WriteAtSync([]byte{1}, 0)
	require.ErrorIs(t, err, unix.EIO)
	_, err = f.Grow(t.Context(), 8192, 8192)
	require.ErrorIs(t, err, unix.EIO)
	require.EqualValues(t, 4096, f.Size(), "what is not durable is not offered")
}

// TestNoSyncSucceedsBesideAFailedOne: the kernel reports an error once; a sync
// that ran at the same time must not report success.
func TestNoSyncSucceedsBesideAFailedOne(t *testing.T) {
	f, err := Create(filepath.Join(t.TempDir(), "disk"), 4096, CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	failing, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = f.syncAs(func(int) error { // the outcome is asked for below
			close(failing)
			<-release
			return unix.EIO
		})
	})
	<-failing
	second := make(chan error)
	go func() { second <- f.Sync() }()
	select {
	case err := <-second:
		t.Fatalf("a second sync ended before the first was known to have failed: %v", err)
	default:
	}
	close(release)
	require.ErrorIs(t, <-second, unix.EIO)
	wg.Wait()
}

func TestWriteAtSyncWithoutDsync(t *testing.T) {
	f, err := Create(filepath.Join(t.TempDir(), "disk"), 4096, CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	f.noDsync.Store(true)
	n, err := f.WriteAtSync([]byte("abc"), 5)
	require.NoError(t, err)
	require.Equal(t, 3, n)
	p := make([]byte, 3)
	_, err = f.ReadAt(p, 5)
	require.NoError(t, err)
	require.Equal(t, "abc", string(p))
}

func TestZeroesWithoutFallocate(t *testing.T) {
	f, err := Create(filepath.Join(t.TempDir(), "disk"), 3<<20, CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	ones := make([]byte, 3<<20)
	for i := range ones {
		ones[i] = 1
	}
	for _, punch := range []bool{true, false} {
		_, err = f.WriteAt(ones, 0)
		require.NoError(t, err)
		f.noZeroRange.Store(true)
		f.noPunch.Store(!punch)
		require.NoError(t, f.WriteZeroes(7, 2<<20+9))
		p := make([]byte, 3<<20)
		_, err = f.ReadAt(p, 0)
		require.NoError(t, err)
		for i, b := range p {
			if zero := i >= 7 && i < 7+2<<20+9; zero != (b == 0) {
				t.Fatalf("byte %d: %d", i, b)
			}
		}
	}
}

func TestParseLock(t *testing.T) {
	for line, want := range map[string]heldLock{
		"lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:9977974 100 101\n": {9977974, 100, 101},
		"lock:\t1: POSIX  ADVISORY  WRITE 71 00:2a:2 0 EOF\n":        {2, 0, 1<<63 - 1},
	} {
		l, err := parseLock(line)
		require.NoError(t, err)
		require.Equal(t, want, l)
	}
	for _, line := range []string{"", "pos:\t0\n", "lock:\t1: -> OFDLCK", "lock:\t1: OFDLCK ADVISORY READ -1 fe:00:x 100 101"} {
		_, err := parseLock(line)
		require.Error(t, err, line)
	}
}

// A lock on another file of the same bytes is not one on this one.
func TestHoldsLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fdinfo")
	require.NoError(t, os.WriteFile(path, []byte("pos:\t0\nino:\t7\nlock:\t1: OFDLCK ADVISORY  READ -1 fe:00:7 201 201\n"), 0o600))
	require.True(t, holdsLock(path, 7))
	require.False(t, holdsLock(path, 8))
}

func FuzzParseLock(f *testing.F) {
	f.Add("lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:9977974 100 101\n")
	f.Add("lock:\t1: POSIX  ADVISORY  WRITE 71 fe:00:2 0 EOF\n")
	f.Add("lock:\t1: -> OFDLCK")
	f.Fuzz(func(_ *testing.T, line string) {
		if l, err := parseLock(line); err == nil {
			isLockByte(l.first, l.last)
		}
	})
}
