//go:build linux

package main_test

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// The sequence that VDSM's users know: from nothing to a sparse COW volume, which is
// served then, and QEMU writes into it.
func TestVDSMSequence(t *testing.T) {
	testenv.Tool(t, "qemu-io")
	t.Run("directory", func(t *testing.T) {
		h := newVDSMHost(t)
		dir := h.newDir("domain")
		domain, image, volume := h.runScript(dir)
		useImage(t, h, dir, domain, image, volume)
	})
	t.Run("group", func(t *testing.T) {
		g := newGroup(t, 1, 6*gib)
		h := newVDSMHost(t, g.paths()...)
		domain, image, volume := h.newDomains(g)[0], uuid.NewString(), uuid.NewString()
		h.run("createVolume", h.newVolume(domain, image, volume, 10*gib, nil))
		useImage(t, h, g, domain, image, volume)
		g.lvm(t, "vgck", g.name)
	})
}

// useImage lets QEMU write into an image through its server, and read that back: there,
// and without us.
func useImage(t *testing.T, h *vdsmHost, p place, domain, image, volume string) {
	uri, _ := h.prepare(domain, image)
	runQEMUIO(t, uri, "raw", "write -P 0x5a 1G 64M", "write -P 0xa5 9G 64k", "flush")
	runQEMUIO(t, uri, "raw", "read -P 0x5a 1G 64M", "read -P 0xa5 9G 64k", "read -P 0 2G 1M")
	again, _ := h.prepare(domain, image)
	require.Equal(t, uri, again)
	h.teardown(domain, image)
	h.teardown(domain, image)
	look := func() {
		t.Helper()
		file := chainFile(t, p, h.volumes(domain), volume)
		testenv.Run(t, "qemu-img", "check", file)
		runQEMUIO(t, file, "qcow2", "read -P 0x5a 1G 64M", "read -P 0xa5 9G 64k", "read -P 0 2G 1M")
	}
	look()
	liveOperations(t, h, p, domain, image, volume)
	look()
}

// A liveWriter writes a pattern, block after block, until it is told to stop.
type liveWriter struct {
	c       *nbd.Client
	written atomic.Int64
	stop    context.CancelFunc
	done    chan error
}

// The area that it writes is behind what the test has written before.
const liveAt, liveStep, liveSeed = 3 * gib, 256 << 10, 7

func startWriter(t *testing.T, socket string) *liveWriter {
	c, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	w := &liveWriter{c: c, stop: stop, done: make(chan error, 1)}
	go func() {
		for ctx.Err() == nil {
			at := liveAt + w.written.Load()%gib
			if err := c.WriteAt(context.WithoutCancel(ctx), patterned(liveSeed, at, liveStep), at, 0); err != nil {
				w.done <- err
				return
			}
			w.written.Add(liveStep)
		}
		w.done <- nil
	}()
	t.Cleanup(func() { stop(); _ = c.Close() })
	return w
}

// more waits until it has written some more.
func (w *liveWriter) more(t *testing.T) {
	t.Helper()
	until := w.written.Load() + 8*mib
	testenv.Eventually(t, startLimit, "the client goes on writing", func() bool {
		select {
		case err := <-w.done:
			t.Fatalf("the client ended: %v", err)
		default:
		}
		return w.written.Load() >= until
	})
}

// liveOperations makes a snapshot of the image and merges it again, twice, while a
// client writes; in between the disk becomes larger.
func liveOperations(t *testing.T, h *vdsmHost, p place, domain, image, volume string) {
	_, socket := h.prepare(domain, image)
	w := startWriter(t, socket)
	for range 2 {
		w.more(t)
		snapshot := uuid.NewString()
		h.run("createVolume", h.newVolume(domain, image, snapshot, 0, arguments{"srcImgUUID": image, "srcVolUUID": volume}))
		w.more(t)
		chain := chainOf(t, h.volumes(domain), snapshot)
		require.Len(t, chain, 2)
		require.Equal(t, []string{"INTERNAL", "LEAF"}, []string{chain[0].Type, chain[1].Type})
		require.True(t, chain[1].Served)
		if _, dir := p.(dirPlace); dir {
			requireQuiet(t, chain[0].Path, func() { w.more(t) })
		}
		h.run("mergeSnapshots", arguments{"sdUUID": domain, "spUUID": h.pool, "vmUUID": "", "imgUUID": image, "ancestor": volume, "successor": snapshot})
		w.more(t)
		all := h.volumes(domain)
		require.Len(t, all, 1)
		require.Equal(t, []string{volume, "LEAF", "LEGAL"}, []string{all[0].ID, all[0].Type, all[0].Legality})
	}
	w.stop()
	require.NoError(t, <-w.done)
	require.NoError(t, w.c.Flush(t.Context()))
	n := min(w.written.Load(), gib) / mib * mib
	requirePattern(t, w.c, liveSeed, liveAt, n)
	require.NoError(t, w.c.Close())
	h.teardown(domain, image)
	t.Logf("%d MiB written meanwhile", w.written.Load()/mib)
	requireContent(t, chainFile(t, p, h.volumes(domain), volume), n)
}

// requireQuiet requires that nobody writes to a file meanwhile.
func requireQuiet(t *testing.T, path string, meanwhile func()) {
	t.Helper()
	before, err := os.Stat(path)
	require.NoError(t, err)
	meanwhile()
	after, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, before.ModTime(), after.ModTime(), "somebody writes to what the snapshot is based on")
}

// requireContent requires that QEMU finds what the writer has written.
func requireContent(t *testing.T, file string, n int64) {
	t.Helper()
	socket, qemu := serveByQEMU(t, file)
	defer qemu.Kill()
	c, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
	require.NoError(t, err)
	defer c.Close()
	requirePattern(t, c, liveSeed, liveAt, n)
}

// serveByQEMU lets QEMU alone open a file with what it is based on, and serve it.
func serveByQEMU(t *testing.T, file string) (socket string, p *testenv.Process) {
	t.Helper()
	dir, err := os.MkdirTemp("", "qemu")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	socket = filepath.Join(dir, "s")
	p = testenv.Start(t, testenv.Command(t, testenv.Tool(t, "qemu-nbd"), "-r", "-t", "-f", "qcow2", "-k", socket, file))
	ready(t, p, func() error {
		c, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
		if err != nil {
			return err
		}
		return c.Close()
	})
	return socket, p
}
