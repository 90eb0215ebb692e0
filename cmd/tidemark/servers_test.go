package main

import (
	"bytes"
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
	"tidemark/spm"
)

// newServers is the tool of a manager, whose servers are stopped with the test.
func newServers(t testing.TB, p *chainPool, dir string, images ...string) *imageServers {
	t.Helper()
	s := &imageServers{spm: p.socket, dir: dir, env: []string{asMain + "=1"}}
	t.Cleanup(func() {
		for _, image := range images {
			require.NoError(t, s.Stop(context.Background(), image))
		}
	})
	return s
}

func TestServersOutliveTheManager(t *testing.T) {
	p := newChainPool(t, liveSpecs("qcow2", 8<<20)...)
	dir, image := shortPath(t), p.volumes["a"].ImageUUID
	s := newServers(t, p, dir, image)
	ctx := t.Context()
	_, err := s.Find(ctx, image)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorIs(t, s.Resize(ctx, image, 1), fs.ErrNotExist)
	require.NoError(t, s.Stop(ctx, image), "nobody is there")

	stale := filepath.Join(dir, image) // of a server that died
	require.NoError(t, os.MkdirAll(stale, 0o700))
	l, err := net.Listen("unix", filepath.Join(stale, "control.sock"))
	require.NoError(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	require.NoError(t, os.WriteFile(filepath.Join(stale, "remains"), nil, 0o600))

	var wg sync.WaitGroup
	all := make([]spm.Server, 4)
	for i := range all {
		wg.Go(func() {
			var err error
			all[i], err = s.Start(ctx, spm.Serve{Image: image, Leaf: p.id("a")})
			require.NoError(t, err)
		})
	}
	wg.Wait()
	require.Equal(t, all[0].PID, all[3].PID, "it is started once")
	require.NoFileExists(t, filepath.Join(stale, "remains"))
	c := dialNBD(t, all[0].Socket, "")
	require.NoError(t, c.WriteAt(ctx, bytes.Repeat([]byte{3}, 64<<10), 1<<20, 0))
	_, err = s.Start(ctx, spm.Serve{Image: image, Leaf: p.id("b")})
	require.ErrorIs(t, err, block.ErrInUse)

	require.NoError(t, p.Close()) // the manager restarts
	p.open(t)
	s = newServers(t, p, dir)
	found, err := s.Find(ctx, image)
	require.NoError(t, err)
	require.Equal(t, all[0].PID, found.PID)
	require.Equal(t, p.id("a"), found.Leaf)
	require.NoError(t, s.Snapshot(ctx, image, p.id("b")))
	require.NoError(t, c.WriteAt(ctx, bytes.Repeat([]byte{4}, 64<<10), 2<<20, 0))
	require.NoError(t, s.MergeStart(ctx, image, p.id("b")))
	testenv.Eventually(t, serveLimit, "the merge is ready", func() bool {
		found, err = s.Find(ctx, image)
		require.NoError(t, err)
		return found.Merge == "ready"
	})
	require.Equal(t, found.MergeTotal, found.MergeDone)
	require.NoError(t, s.MergePivot(ctx, image, p.id("b")))
	require.NoError(t, s.MergePivot(ctx, image, p.id("b")), "again")
	require.NoError(t, s.MergeCancel(ctx, image, p.id("b")))
	require.NoError(t, s.Resize(ctx, image, 9<<20))
	require.NoError(t, s.Stop(ctx, image))
	require.NoDirExists(t, stale)
	testenv.Eventually(t, serveLimit, "the process has gone", func() bool { return syscall.Kill(found.PID, 0) == syscall.ESRCH })

	want := make([]byte, 9<<20)
	fillBytes(want, 3, 1<<20, 64<<10)
	fillBytes(want, 4, 2<<20, 64<<10)
	require.True(t, bytes.Equal(want, p.content(t, "a")))
	r, err := s.Start(ctx, spm.Serve{Image: image, Leaf: p.id("a"), ReadOnly: true})
	require.NoError(t, err)
	require.True(t, r.ReadOnly)
}

// A server that does not get so far says why.
func TestServersSayWhatFails(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "a", size: 1 << 20})
	s := newServers(t, p, shortPath(t), "image")
	_, err := s.Start(t.Context(), spm.Serve{Image: "image", Leaf: "nobody"})
	require.ErrorContains(t, err, `"nobody"`)
	_, err = s.Start(t.Context(), spm.Serve{Image: "../image", Leaf: p.id("a")})
	require.ErrorContains(t, err, "expected UUIDs")
}

// A server that ends when it is told to stop, before it has answered, has been stopped.
func TestStopOfAServerThatEnds(t *testing.T) {
	const asServer = "TIDEMARK_TEST_ENDING_SERVER"
	if socket := os.Getenv(asServer); socket != "" {
		l, err := net.Listen("unix", socket)
		require.NoError(t, err)
		for n := 0; n == 0; { // until somebody asks for something
			c, err := l.Accept()
			require.NoError(t, err)
			n, _ = c.Read(make([]byte, 1))
			require.NoError(t, c.Close())
		}
		return
	}
	s := &imageServers{dir: shortPath(t)}
	dir, socket := s.of("image"), s.client("image").socket
	require.NoError(t, os.MkdirAll(dir, 0o700))
	own, err := os.Executable()
	require.NoError(t, err)
	cmd := testenv.Command(t, own, "-test.run=^TestStopOfAServerThatEnds$")
	cmd.Env = append(os.Environ(), asServer+"="+socket)
	p := testenv.Start(t, cmd)
	testenv.Eventually(t, serveLimit, "it answers", func() bool {
		c, err := net.Dial("unix", socket)
		return err == nil && c.Close() == nil
	})
	require.NoError(t, s.Stop(t.Context(), "image"))
	require.NoDirExists(t, dir)
	require.NoError(t, p.Wait(t, serveLimit))
}
