package unixsock

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// stale leaves a socket that nobody listens on.
func stale(t *testing.T, path string) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
}

func TestListenAnswersAndIsRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path, Options{})
	require.NoError(t, err)
	require.Equal(t, path, l.Addr().String())
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), st.Mode().Perm())
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, l.Close())
	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Empty(t, left, "neither the socket nor its private directory stays")
}

func TestListenModeAndGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path, Options{Mode: 0o660, Group: os.Getgid()})
	require.NoError(t, err)
	defer l.Close()
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o660), st.Mode().Perm())
}

func TestLiveSocketIsRefusedAndStaleOneReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	stale(t, path)
	l, err := Listen(path, Options{})
	require.NoError(t, err, "nobody answers on it")
	_, err = Listen(path, Options{})
	require.ErrorIs(t, err, block.ErrInUse)
	require.ErrorContains(t, err, path)
	c, err := net.Dial("unix", path)
	require.NoError(t, err, "the refused one did no harm")
	require.NoError(t, c.Close())
	require.NoError(t, l.Close())
}

func TestWhatIsNoSocketIsNotTouched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	require.NoError(t, os.WriteFile(path, []byte("dear"), 0o644))
	_, err := Listen(path, Options{})
	require.ErrorContains(t, err, "expected a socket")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "dear", string(b))
}

func TestPathTooLong(t *testing.T) {
	_, err := Listen("/tmp/"+strings.Repeat("x", 200), Options{})
	require.ErrorContains(t, err, "1 to 107 bytes, found 205")
}

// The private directory's name is longer than the socket's: that must not
// shorten what is possible.
func TestLongestPath(t *testing.T) {
	dir := t.TempDir()
	if len(dir) > PathMax-2 {
		t.Skipf("the temporary directory's path has %d bytes", len(dir))
	}
	path := dir + "/" + strings.Repeat("x", PathMax-len(dir)-1)
	l, err := Listen(path, Options{})
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

func TestCloseLeavesASuccessor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := Listen(path, Options{})
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	second, err := Listen(path, Options{})
	require.NoError(t, err)
	require.NoError(t, first.Close())
	require.FileExists(t, path, "it is the successor's")
	require.NoError(t, second.Close())
	require.NoFileExists(t, path)
}

func TestOfManyThatStartTogetherOneWins(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	stale(t, path)
	var mu sync.Mutex
	var won []net.Listener
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			l, err := Listen(path, Options{})
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			won = append(won, l)
		})
	}
	wg.Wait()
	require.Len(t, won, 1)
	require.NoError(t, won[0].Close())
}

// Without the lock, one that found a stale socket would remove the new one of
// another that has found the same.
func TestListenTakesTurns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	unlock, err := lockDir(filepath.Dir(path))
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		l, err := Listen(path, Options{})
		if err == nil {
			err = l.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("it did not wait for its turn: %v", err)
	case <-time.After(50 * time.Millisecond): // nothing can tell that somebody waits for flock
	}
	unlock()
	require.NoError(t, <-done)
}
