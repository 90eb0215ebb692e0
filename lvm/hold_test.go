package lvm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
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
