//go:build linux

package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/fusefs"
	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/internal/rawimage"
	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// A cuttableDisk is a disk that knows what of it was flushed. A loop device over the
// file that shows it, through FUSE, is a disk with a cache.
type cuttableDisk struct {
	block.Device
	size int64

	mu      sync.Mutex // guards flushed
	flushed []byte
	flushes int
}

// Flush remembers what is on the disk now.
func (d *cuttableDisk) Flush(ctx context.Context) error {
	if err := d.Device.Flush(ctx); err != nil {
		return err
	}
	b := make([]byte, d.size)
	if err := d.ReadAt(ctx, b, 0, 0); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushed = b
	d.flushes++
	return nil
}

// afterPowerCut is what would be on it now.
func (d *cuttableDisk) afterPowerCut() (content []byte, flushes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flushed, d.flushes
}

// newCuttableDisk makes one and shows it as a file.
func newCuttableDisk(t *testing.T, content []byte) (d *cuttableDisk, file string, unmount func()) {
	t.Helper()
	testenv.Need(t, "fuse")
	dir := t.TempDir()
	below, file := filepath.Join(dir, "below"), filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(below, content, 0o600))
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	f, err := hostfile.Open(below, hostfile.Options{})
	require.NoError(t, err)
	image, err := rawimage.Open(f, rawimage.Options{})
	require.NoError(t, err)
	d = &cuttableDisk{Device: image, size: int64(len(content)), flushed: content}
	m, err := fusefs.Mount(file, []fusefs.File{{Name: "disk", Device: d}}, fusefs.Options{})
	require.NoError(t, err)
	unmount = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), stopLimit)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			t.Errorf("unmount: %v", err)
		}
		_ = image.Close()
		_ = f.Close()
	})
	t.Cleanup(unmount)
	return d, file, unmount
}

// newGroupOnTwoDisks makes a pool whose metadata is on the first, which is too small
// for anything else, and whose volumes are on the second.
func newGroupOnTwoDisks(t *testing.T, meta, data *testenv.LoopDevice) *groupPool {
	t.Helper()
	testenv.Tool(t, "lvm")
	dir := t.TempDir()
	g := &groupPool{name: fmt.Sprintf("tidemark%d_cut", os.Getpid()), devices: []*testenv.LoopDevice{meta, data}}
	t.Cleanup(g.tidyUp)
	g.lvm(t, "vgcreate", "-qq", "-s", "128m", "--metadatasize", "4m", g.name, meta.Path)
	g.lvm(t, "pvcreate", "-qq", "--metadatacopies", "0", data.Path)
	g.lvm(t, "vgextend", "-qq", g.name, data.Path)
	g.testPool = &testPool{t: t, dir: dir, socket: filepath.Join(dir, "spm.sock")}
	t.Cleanup(func() {
		if g.client != nil {
			_ = g.client.Close()
		}
	})
	return g
}

func (g *groupPool) startOn() {
	g.args = []string{"--vg", g.name, "--devices", g.devices[0].Path + "," + g.devices[1].Path, "--socket", g.socket}
	g.start()
}

// serveInAnotherBoot serves a volume with a place for redo rings that nobody else
// sees: they do not survive a power cut.
func (g *groupPool) serveInAnotherBoot(name string) *server {
	g.t.Helper()
	s := &server{t: g.t, sock: filepath.Join(g.t.TempDir(), "nbd.sock")}
	tidemark := program(g.t, "nbd", "-t", "-k", s.sock, "--spm", g.socket, name)
	cmd := testenv.Command(g.t, testenv.Tool(g.t, "unshare"), "-m", "sh", "-c",
		`mkdir -p -m 700 "$REDO" && mount -t tmpfs -o mode=700 none "$REDO" && exec "$0" "$@"`)
	cmd.Args = append(append(cmd.Args, tidemark.Path), tidemark.Args[1:]...)
	cmd.Env = append(tidemark.Env, "REDO="+filepath.Join(testRunDir(), "redo"))
	diesWithUs(cmd)
	s.proc = testenv.Start(g.t, cmd)
	ready(g.t, s.proc, func() error {
		c, err := nbd.Dial(g.t.Context(), "unix", s.sock, nbd.ClientOptions{})
		if err != nil {
			return err
		}
		return c.Close()
	})
	return s
}

// The disk that holds the group's metadata loses what was not flushed, at some moment
// of many extensions. What the guest had flushed is still inside the volume.
func TestGroupMetadataLosesWhatWasNotFlushed(t *testing.T) {
	workspace(t)
	_, rng := testenv.Seed(t)
	const metaSize, cuts = 16 * mib, 4
	data := testenv.Loop(t, 8*gib)
	disk, file, unmount := newCuttableDisk(t, make([]byte, metaSize))
	meta := testenv.LoopOver(t, file)
	g := newGroupOnTwoDisks(t, meta, data)
	g.startOn()
	v := g.create("disk", 20*gib)
	written := int64(0)
	for cut := range cuts {
		s := g.serveInAnotherBoot("disk")
		c := s.dial()
		var flushed atomic.Int64
		flushed.Store(written)
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			for at := written; ; at += 4 * mib {
				for i := int64(0); i < 4; i++ {
					if c.WriteAt(t.Context(), patterned(1, at+i*mib, mib), at+i*mib, 0) != nil {
						return
					}
				}
				if c.Flush(t.Context()) != nil {
					return
				}
				flushed.Store(at + 4*mib)
			}
		}()
		before := g.volume("disk").Granted
		testenv.Eventually(t, time.Minute, "it has grown", func() bool { return g.volume("disk").Granted >= before+2*chunk })
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond) // any moment will do
		written = flushed.Load()
		content, flushes := disk.afterPowerCut()
		s.proc.Kill()
		g.proc.Kill()
		<-stopped

		require.NoError(t, meta.Detach())
		unmount()
		disk, file, unmount = newCuttableDisk(t, content)
		meta = testenv.LoopOver(t, file)
		g.devices[0] = meta
		g.startOn()
		t.Logf("cut %d: %d MiB flushed by the guest, %d MiB granted, %d flushes of the metadata",
			cut, written/mib, g.volume("disk").Granted/mib, flushes)
		require.Greater(t, flushes, 2)
		s = g.serveInAnotherBoot("disk")
		requirePattern(t, s.dial(), 1, 0, written)
		s.stop()
		r := testenv.Try(t, testenv.Tool(t, "qemu-img"), "check", "-f", "qcow2", g.copyOf(t, v.VolumeUUID))
		require.Contains(t, []int{0, 3}, r.ExitCode, "clean, or leaks: %s", r)
		g.requireAgrees(t)
	}
	require.NotContains(t, strings.ToLower(g.proc.Output()), "panic")
	g.proc.Kill()
	require.NoError(t, meta.Detach())
}
