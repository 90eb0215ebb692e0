//go:build linux

package hostfile_test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
)

func TestLockAgainstOurselves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	f, err := hostfile.Create(path, 4096, hostfile.CreateOptions{})
	require.NoError(t, err)
	for i, first := range modes {
		require.NoError(t, f.Close())
		f, err = hostfile.Open(path, first.opts)
		require.NoError(t, err)
		for j, second := range modes {
			g, err := hostfile.Open(path, second.opts)
			if together[i][j] {
				require.NoError(t, err, "%s, then %s", first.name, second.name)
				require.NoError(t, g.Close())
				continue
			}
			require.ErrorIs(t, err, block.ErrInUse, "%s, then %s", first.name, second.name)
			require.ErrorContains(t, err, fmt.Sprintf("hostfile.test (pid %d)", os.Getpid()))
		}
		// What failed or was closed has taken nothing from the first.
		over, err := hostfile.Create(path, 4096, hostfile.CreateOptions{Overwrite: true})
		require.Equal(t, first.name == "reader with -U", err == nil, "%v", err)
		if err == nil {
			require.NoError(t, over.Close())
		}
		who, err := hostfile.Holder(path)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("hostfile.test (pid %d)", os.Getpid()), who)
	}
	require.NoError(t, f.Close())
	who, err := hostfile.Holder(path)
	require.NoError(t, err)
	require.Empty(t, who)
}

func TestLockNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	f, err := hostfile.Create(path, 4096, hostfile.CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	g, err := hostfile.Open(path, hostfile.Options{Lock: hostfile.LockNone})
	require.NoError(t, err)
	require.NoError(t, g.Close())
	_, err = hostfile.Open(path, hostfile.Options{Lock: hostfile.LockShared})
	require.ErrorIs(t, err, block.ErrUnsupported, "a writer that shares")
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	for path, kind := range map[string]string{dir: "a directory", fifo: "a named pipe", "/dev/null": "a character device"} {
		for _, ro := range []bool{false, true} {
			_, err := hostfile.Open(path, hostfile.Options{ReadOnly: ro})
			require.ErrorContains(t, err, path)
			require.ErrorContains(t, err, kind)
		}
	}
	_, err := hostfile.Open(filepath.Join(dir, "absent"), hostfile.Options{})
	require.ErrorIs(t, err, os.ErrNotExist)
}
