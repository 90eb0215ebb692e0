//go:build linux && !race && !lockcheck

package qcow2_test

import (
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/qcow2"
)

// A syncCounter is a file that counts what makes something durable.
type syncCounter struct {
	block.File
	syncs atomic.Int64
}

func (f *syncCounter) Sync() error {
	f.syncs.Add(1)
	return f.File.Sync()
}

func (f *syncCounter) WriteAtSync(p []byte, off int64) (int, error) {
	f.syncs.Add(1)
	return f.File.WriteAtSync(p, off)
}

func newCosted(t *testing.T, c qcow2.CreateOptions, o qcow2.Options) (*qcow2.Image, *syncCounter) {
	host, err := hostfile.Create(filepath.Join(t.TempDir(), "image"), 0, hostfile.CreateOptions{})
	require.NoError(t, err)
	c.Size, o.CommitInterval, o.RedoDir = 1<<30, -1, t.TempDir()
	require.NoError(t, qcow2.Create(t.Context(), host, c))
	f := &syncCounter{File: host}
	im, err := qcow2.Open(t.Context(), f, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, im.Close())
		require.NoError(t, host.Close())
	})
	require.NoError(t, im.WriteAt(t.Context(), []byte{1}, 1<<29, 0)) // reserves
	im.WaitIdle()
	require.NoError(t, im.Flush(t.Context()))
	im.WaitIdle()
	return im, f
}

// TestNothingIsAllocated: requests of the hot paths allocate no memory in the engine.
// (The race detector and the order of locks do, so not there.)
func TestNothingIsAllocated(t *testing.T) {
	ctx, p := t.Context(), make([]byte, 4096)
	im, _ := newCosted(t, qcow2.CreateOptions{}, qcow2.Options{})
	next := int64(1 << 29)
	for name, request := range map[string]func() error{
		"overwrite": func() error { return im.WriteAt(ctx, p, 1<<29, block.NoWait) },
		"read":      func() error { return im.ReadAt(ctx, p, 1<<29, 0) },
		"read now":  func() error { return im.ReadAt(ctx, p, 1<<29, block.NoWait) },
		"allocating write": func() error {
			next += 64 << 10
			return im.WriteAt(ctx, p, next, block.NoWait)
		},
		"overwrite that may wait": func() error { return im.WriteAt(ctx, p, 1<<29, 0) },
		"allocating write that may wait": func() error {
			next += 64 << 10
			return im.WriteAt(ctx, p, next, 0)
		},
	} {
		require.Zero(t, testing.AllocsPerRun(40, func() {
			if err := request(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}), name)
	}
	require.NoError(t, im.Flush(ctx))
	require.Zero(t, testing.AllocsPerRun(40, func() { _ = im.Flush(ctx) }), "clean flush")
}

// An endedDisk ends what it begins at once.
type endedDisk struct{ *laterDisk }

func (endedDisk) WriteLater(_ []byte, _ int64, to block.Later) bool {
	to.Ended(true)
	return true
}

// TestNothingIsAllocatedToBegin: a write that is begun allocates no memory in the engine
// either.
func TestNothingIsAllocatedToBegin(t *testing.T) {
	d := endedDisk{&laterDisk{Disk: newDisk(t, qcow2.CreateOptions{Size: 8 << 20})}}
	im, err := qcow2.Open(t.Context(), d, qcow2.Options{RedoDir: t.TempDir(), CommitInterval: -1})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(t.Context(), make([]byte, cluster), 0, 0))
	to, p := make(told, 1), make([]byte, 4096)
	require.Zero(t, testing.AllocsPerRun(40, func() {
		if !im.WriteLater(p, 0, to) || !<-to {
			t.Error("it was not begun")
		}
	}))
	require.NoError(t, im.Close())
}

// TestSyncsPerFlush: a write and a flush cost one sync in place and in a fresh cluster,
// and two where a cluster is copied; a flush of nothing costs none.
func TestSyncsPerFlush(t *testing.T) {
	const size = 1 << 30
	for _, c := range []struct {
		name  string
		apart int64 // bytes between two writes
		copy  bool
		want  int64
	}{
		{name: "overwrite", want: 1},
		{name: "fresh", apart: 64 << 10, want: 1},
		{name: "copy", apart: 64 << 10, copy: true, want: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			var co qcow2.CreateOptions
			var o qcow2.Options
			if c.copy {
				co.BackingFile, co.BackingFormat = "base", "raw"
				o.Backing = fullBacking{size: size}
			}
			im, f := newCosted(t, co, o)
			for i := range int64(20) {
				before := f.syncs.Load()
				require.NoError(t, im.WriteAt(t.Context(), make([]byte, 4096), 1<<29+i*c.apart+c.apart, 0))
				require.NoError(t, im.Flush(t.Context()))
				require.Equal(t, c.want, f.syncs.Load()-before, "write %d", i)
				require.NoError(t, im.Flush(t.Context()))
				require.Equal(t, c.want, f.syncs.Load()-before, "a flush of nothing")
			}
		})
	}
}
