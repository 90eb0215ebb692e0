package lvm

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
)

func TestLocks(t *testing.T) {
	l := Locks{Dir: filepath.Join(t.TempDir(), "made", "when needed")}
	w, err := l.Hold("uuid-1", Writing)
	require.NoError(t, err)
	for _, how := range []Holding{Writing, Reading} {
		_, err = l.Hold("uuid-1", how)
		require.ErrorIs(t, err, block.ErrInUse)
		require.ErrorContains(t, err, "pid ", "who has it")
	}
	other, err := l.Hold("uuid-2", Writing)
	require.NoError(t, err, "another volume")
	require.NoError(t, other.Release())
	select {
	case <-w.Lost():
		t.Fatal("a lock of this host is never lost")
	default:
	}
	require.NoError(t, w.Release())

	r1, err := l.Hold("uuid-1", Reading)
	require.NoError(t, err)
	r2, err := l.Hold("uuid-1", Reading)
	require.NoError(t, err)
	_, err = l.Hold("uuid-1", Writing)
	require.ErrorIs(t, err, block.ErrInUse)
	require.NoError(t, r1.Release())
	require.NoError(t, r2.Release())

	w, err = l.Hold("uuid-1", Writing)
	require.NoError(t, err)
	require.NoError(t, l.Removed("uuid-1"))
	require.NoError(t, l.Removed("uuid-1"))
	require.NoFileExists(t, filepath.Join(l.Dir, "uuid-1"))
	require.NoError(t, w.Release())
	for _, bad := range []string{"", "..", "a/b", ".x"} {
		_, err = l.Hold(bad, Writing)
		require.Error(t, err, bad)
	}
}

// A lock on a file that has lost its name excludes nobody, so it is not taken.
func TestLocksNoticeARemovedFile(t *testing.T) {
	l := Locks{Dir: t.TempDir()}
	path := filepath.Join(l.Dir, "u")
	f, err := lockFile(path, Writing)
	require.NoError(t, err)
	require.True(t, sameFile(f, path))
	require.NoError(t, os.Remove(path))
	require.False(t, sameFile(f, path))
	h, err := l.Hold("u", Writing)
	require.NoError(t, err)
	require.False(t, sameFile(f, path), "another file has the name now")
	require.NoError(t, h.Release())
	require.NoError(t, f.Close())
}

// Whoever removes a volume takes its lock file away while others wait for it.
func TestLocksWhileFilesComeAndGo(t *testing.T) {
	l := Locks{Dir: t.TempDir()}
	var holders atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 300 {
				h, err := l.Hold("u", Writing)
				if errors.Is(err, block.ErrInUse) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold the volume", n)
				}
				runtime.Gosched()
				holders.Add(-1) // with its file the volume is gone, and a new one may have the name
				if err := errors.Join(l.Removed("u"), h.Release()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// A lock ends with Release, although a child that was just begun has a copy of the descriptor.
func TestLockEndsUnderACopy(t *testing.T) {
	l := Locks{Dir: t.TempDir()}
	for _, how := range []Holding{Writing, Reading} {
		h, err := l.Hold("u", how)
		require.NoError(t, err)
		testenv.CopyDescriptors(t, filepath.Join(l.Dir, "u"))
		require.NoError(t, h.Release())
	}
	h, err := l.Hold("u", Writing)
	require.NoError(t, err)
	require.NoError(t, h.Release())
}
