package qcow2_test

import (
	"bytes"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// deadWithRing is what a process leaves that died with a completed write in its
// ring, which is in dir.
func deadWithRing(t *testing.T, dir string) (d *simdisk.Disk, want []byte) {
	d = newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096})
	im, err := qcow2.Open(t.Context(), d, qcow2.Options{RedoDir: dir, CommitInterval: -1})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(t.Context(), []byte{1}, 0, block.FUA))
	want = bytes.Repeat([]byte{7}, 64<<10)
	require.NoError(t, im.WriteAt(t.Context(), want, 128<<10, 0))
	im.WaitIdle()
	return d.Crash(simdisk.KeepAll), want
}

// TestReplayMeetsFaults: whatever fails while a ring is replayed, the next opening
// finds what was completed, or says that it must not be believed.
func TestReplayMeetsFaults(t *testing.T) {
	for i := 1; ; i++ {
		dir := t.TempDir()
		d, want := deadWithRing(t, dir)
		f := faultfile.New(d, faultfile.Fault{At: i, Err: syscall.EIO})
		var failed faultfile.Op
		f.Hook(nil, func(op faultfile.Op, err error) {
			if err != nil {
				failed = op
			}
		})
		im, err := qcow2.Open(t.Context(), f, qcow2.Options{RedoDir: dir, CommitInterval: -1})
		if f.Injected() == 0 {
			require.NoError(t, err)
			require.Greater(t, i, 8, "the scenario became too small")
			return
		}
		if err == nil {
			<-im.Settled()
			_ = im.Close()
		} else {
			require.ErrorIs(t, err, syscall.EIO, "%v", failed)
		}
		im, err = qcow2.Open(t.Context(), d, qcow2.Options{RedoDir: dir})
		if failed.Kind == faultfile.Sync || failed.Kind == faultfile.Write {
			var distrust *qcow2.DistrustError
			require.ErrorAs(t, err, &distrust, "%v", failed)
			continue
		}
		require.NoError(t, err, "%v", failed)
		got := make([]byte, len(want))
		require.NoError(t, im.ReadAt(t.Context(), got, 128<<10, 0))
		requireSame(t, want, got, failed.String())
		require.NoError(t, im.Close())
	}
}

// TestImagesWithBackingFileHaveARing: they have no place for its number unless it
// was made with the image.
func TestImagesWithBackingFileHaveARing(t *testing.T) {
	for _, cs := range []int64{512, 4096, 64 << 10} {
		below := blocktest.NewMemDevice(1 << 20)
		d := newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: cs, BackingFile: "/some/where/below", BackingFormat: "raw"})
		dir := t.TempDir()
		im, err := qcow2.Open(t.Context(), d, qcow2.Options{RedoDir: dir, Backing: below})
		require.NoError(t, err)
		require.NoError(t, im.WriteAt(t.Context(), []byte{1}, 0, 0))
		rings, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, rings, 1, "clusters of %d bytes", cs)
		require.NoError(t, im.Close())
		requireClean(t, d)
	}
}
