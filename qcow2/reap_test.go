package qcow2_test

import (
	"encoding/binary"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// TestReaperMissesNoEnd: whatever begins and ends while clusters are unlinked, they
// are free when nothing is in progress any more. Each round ends with that, so that each
// may end just as the reaper finds nothing left to do.
func TestReaperMissesNoEnd(t *testing.T) {
	ctx := t.Context()
	im, err := qcow2.Open(ctx, newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096}), qcow2.Options{CommitInterval: -1})
	require.NoError(t, err)
	for range scaled(2000) {
		var wg sync.WaitGroup
		for c := range int64(4) {
			wg.Go(func() {
				off := c * 64 << 10
				for range 2 {
					_ = im.WriteAt(ctx, []byte{1}, off, 0)
					_ = im.Discard(ctx, off, 4096, 0)
					_ = im.Flush(ctx)
				}
			})
		}
		idle := make(chan struct{})
		go func() {
			wg.Wait()
			im.WaitIdle()
			close(idle)
		}()
		select {
		case <-idle:
		case <-time.After(time.Minute):
			t.Fatal("the reaper waits for a request to end that has ended, and writes wait for the reaper")
		}
	}
	require.NoError(t, im.Close())
}

// TestFullImageWaitsForNoLaterRequest: an image that must not become larger waits for the
// requests that may know what was unlinked before, not for those that began since, of
// which there may always be some.
func TestFullImageWaitsForNoLaterRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const cs = 4096
		ctx := t.Context()
		c := qcow2.CreateOptions{Size: 1 << 20, ClusterSize: cs}
		g, err := c.Geometry()
		require.NoError(t, err)
		d := simdisk.New(0, simdisk.Options{MaxSize: qcow2.Bound(g, c.Size)})
		require.NoError(t, qcow2.Create(ctx, d, c))
		f := faultfile.New(d, faultfile.Fault{})
		im, err := qcow2.Open(ctx, f, qcow2.Options{CommitInterval: -1})
		require.NoError(t, err)
		require.NoError(t, im.WriteAt(ctx, pattern(c.Size), 0, 0))
		require.NoError(t, im.Flush(ctx))
		s := stopsOf(f)
		slowRead := func(cluster int64) (*stop, chan error) {
			read := s.at(func(op faultfile.Op) bool { return op.Kind == faultfile.Read && op.Len == 100 })
			done := make(chan error, 1)
			go func() { done <- im.ReadAt(ctx, make([]byte, 100), cluster*cs, 0) }()
			<-read.reached
			return read, done
		}
		before, beforeDone := slowRead(0)
		require.NoError(t, im.Discard(ctx, cs, 100*cs, 0))
		require.NoError(t, im.Flush(ctx))
		written, waits := make(chan error, 1), false
		for n := int64(1); !waits; n++ { // up to the bound
			require.LessOrEqual(t, n, int64(100), "there is no space for all of it")
			go func() { written <- im.WriteAt(ctx, []byte{1}, n*cs, 0) }()
			select {
			case err := <-written:
				require.NoError(t, err)
			case <-time.After(time.Second):
				waits = true
			}
		}
		later, laterDone := slowRead(200)
		require.NoError(t, im.Discard(ctx, 150*cs, cs, 0))
		require.NoError(t, im.Flush(ctx))
		before.release()
		require.NoError(t, <-beforeDone)
		synctest.Wait()
		require.Len(t, written, 1, "100 clusters are free, and the write waits for a read that began later")
		later.release()
		require.NoError(t, <-laterDone)
		require.NoError(t, <-written)
		require.NoError(t, im.Close())
		requireClean(t, d)
	})
}

// TestReaperStopsWithTheImage: the reaper finds a count that contradicts an entry, and
// the image stops. What it has counted down before that is not counted down again when a
// commit ends that was in progress: what a snapshot shares would lose its bytes.
func TestReaperStopsWithTheImage(t *testing.T) {
	const cs, own = 4096, 512 << 10
	m := subject{name: "a count is wrong", size: 1 << 20, options: "cluster_size=4k", script: []string{"write -P 1 0 32k"}}.make(t)
	m.snapshot(t, "last")
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		f := faultfile.New(m.disk, faultfile.Fault{})
		im := m.open(t, f, qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir()})
		require.NoError(t, im.WriteAt(ctx, pattern(2*cs), own, 0))
		require.NoError(t, im.Flush(ctx))
		synctest.Wait()
		_, err := m.disk.WriteAt([]byte{0, 0}, refcountBlock(t, m.disk)+2*clusterOf(t, m.disk, 7))
		require.NoError(t, err)
		im.Evict()
		s := stopsOf(f)
		read := s.at(func(op faultfile.Op) bool { return op.Kind == faultfile.Read && op.Len == 100 })
		slow := make(chan error, 1)
		go func() { slow <- im.ReadAt(ctx, make([]byte, 100), own+cs, 0) }()
		<-read.reached
		require.NoError(t, im.Discard(ctx, 0, 8*cs, 0))
		require.NoError(t, im.Flush(ctx))
		require.NoError(t, im.Discard(ctx, own, cs, 0))
		sync := s.at(kindOf(faultfile.Sync))
		flushed := make(chan error, 1)
		go func() { flushed <- im.Flush(ctx) }()
		<-sync.reached
		read.release()
		require.NoError(t, <-slow)
		synctest.Wait()
		require.Error(t, im.Stats().Poisoned)
		sync.release()
		<-flushed
		synctest.Wait()
		require.Error(t, im.Close())
	})
	m.judgeSnapshots(t, m.disk, "behind a reaper that has stopped")
}

// clusterOf is the host cluster of guest cluster gc, which is under the first L2 table.
func clusterOf(t *testing.T, d *simdisk.Disk, gc int64) int64 {
	h, err := qcow2.ReadHeader(d)
	require.NoError(t, err)
	var b [8]byte
	_, err = d.ReadAt(b[:], l2TableOf(t, d)+gc*8)
	require.NoError(t, err)
	return format.L2Entry(binary.BigEndian.Uint64(b[:])).Offset() >> h.ClusterBits
}
