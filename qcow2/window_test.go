package qcow2_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// Each test here looks into a window between two steps of the engine that no other test
// and no power cut had looked into.

// TestTwoCopiesIntoOneSubcluster: two clients write parts of one sub-cluster of a cluster
// that is ours, whose content is in the backing file. Both copies go to the same place
// (X2), so the second one must not read what is around its bytes before the first one is
// published.
func TestTwoCopiesIntoOneSubcluster(t *testing.T) {
	m := subject{name: "one sub-cluster", size: 512 << 10, options: "cluster_size=16k,extended_l2=on", backing: 512 << 10}.make(t)
	synctest.Test(t, func(t *testing.T) {
		f := faultfile.New(m.disk, faultfile.Fault{})
		im := m.open(t, f, qcow2.Options{CommitInterval: -1})
		m.put(t, im, []byte{1}, 15<<10) // the cluster is ours now
		slow := stopsOf(f).at(func(op faultfile.Op) bool { return op.Kind == faultfile.Write && op.Len == sector })
		done := make(chan error, 2)
		for i := range int64(2) {
			b := bytes.Repeat([]byte{byte(7 + i)}, 10)
			copy(m.content[100*(i+1):], b)
			go func() { done <- im.WriteAt(t.Context(), b, 100*(i+1), 0) }()
			synctest.Wait() // the first one is held, the second one as far as it can come
		}
		<-slow.reached
		slow.release()
		require.NoError(t, <-done)
		require.NoError(t, <-done)
		requireRead(t, im, m.content[:16<<10], 0)
		require.NoError(t, im.Close())
	})
	m.judge(t, m.disk)
}

// TestDiscardWhileACopyIsWritten: a cluster that a snapshot shares is discarded while a
// write copies it. The snapshot's cluster loses one count for that, not another one when
// the copy is done.
func TestDiscardWhileACopyIsWritten(t *testing.T) {
	const cs = 4096
	m := subject{name: "discarded while it is copied", size: 512 << 10, options: "cluster_size=4k", script: []string{"write -P 1 0 300k"}}.make(t)
	m.snapshot(t, "last")
	f := faultfile.New(m.disk, faultfile.Fault{})
	im := m.open(t, f, qcow2.Options{CommitInterval: -1})
	m.put(t, im, []byte{2}, 20*cs) // the table is ours
	slow := stopsOf(f).at(func(op faultfile.Op) bool { return op.Kind == faultfile.Write && op.Len == cs })
	done := make(chan error, 1)
	go func() { done <- im.WriteAt(t.Context(), []byte{3}, 8*cs+9, 0) }()
	<-slow.reached
	require.NoError(t, im.Discard(t.Context(), 8*cs, cs, 0))
	slow.release()
	require.NoError(t, <-done)
	clear(m.content[8*cs : 9*cs])
	m.content[8*cs+9] = 3
	requireRead(t, im, m.content[:16*cs], 0)
	require.NoError(t, im.Flush(t.Context()))
	im.WaitIdle()
	require.NoError(t, im.Close())
	m.judge(t, m.disk)
}

// TestFUAAfterItsSliceWasReadAgain: without a ring, tables are written and not synced
// when a write completes. A slice that has left the cache since, and is read again, is
// not durable for that.
func TestFUAAfterItsSliceWasReadAgain(t *testing.T) {
	m := subject{name: "many slices", size: 2 << 20, options: "cluster_size=512"}.make(t)
	im := m.open(t, m.disk, qcow2.Options{CommitInterval: -1, CacheBytes: 1})
	for off := int64(0); off < m.size; off += 32 << 10 {
		m.put(t, im, bytes.Repeat([]byte{byte(off >> 15), 1}, sector/2), off)
	}
	require.NoError(t, im.Flush(t.Context()))
	m.put(t, im, bytes.Repeat([]byte{5}, sector), 7*sector) // its entry is in the host's cache
	m.evict(t, im)
	p := bytes.Repeat([]byte{6}, sector)
	require.NoError(t, im.WriteAt(t.Context(), p, 7*sector, qcow2.FUA))
	copy(m.content[7*sector:], p)
	m.requireDurable(t)
	require.NoError(t, im.Close())
}

// TestPublishedWhileItsTableIsWritten: a write publishes in a slice of which a commit is
// writing an older copy. Its record stays in the ring until the slice is written again.
func TestPublishedWhileItsTableIsWritten(t *testing.T) {
	const cs = 4096
	m := subject{name: "one slice", size: 1 << 20, options: "cluster_size=4k"}.make(t)
	f, dir := faultfile.New(m.disk, faultfile.Fault{}), t.TempDir()
	im := m.open(t, f, qcow2.Options{CommitInterval: -1, RedoDir: dir})
	m.put(t, im, bytes.Repeat([]byte{1}, cs), 0)
	require.NoError(t, im.Flush(t.Context()))
	m.put(t, im, bytes.Repeat([]byte{2}, cs), cs)
	table := stopsOf(f).at(overlaps(faultfile.Write, l2At(t, m.disk, 0), cs))
	done := make(chan error, 1)
	go func() { done <- im.Flush(t.Context()) }()
	<-table.reached
	m.put(t, im, bytes.Repeat([]byte{3}, cs), 2*cs)
	table.release()
	require.NoError(t, <-done)

	left, ring := m.disk.Crash(simdisk.KeepAll), copyDir(t, dir) // the process dies
	again := m.open(t, left, qcow2.Options{CommitInterval: -1, RedoDir: ring})
	requireRead(t, again, m.content[:3*cs], 0)
	require.NoError(t, again.Close())
	require.NoError(t, im.Close())
}

// TestCloseWaitsForWrites: an image is not closed before a write that has begun is done.
func TestCloseWaitsForWrites(t *testing.T) {
	m := subject{name: "closed under a write", size: 1 << 20, options: "cluster_size=4k"}.make(t)
	synctest.Test(t, func(t *testing.T) {
		f := faultfile.New(m.disk, faultfile.Fault{})
		im := m.open(t, f, qcow2.Options{CommitInterval: -1})
		m.put(t, im, []byte{1}, 0)
		slow := stopsOf(f).at(func(op faultfile.Op) bool { return op.Kind == faultfile.Write && op.Len == sector })
		written, closed := make(chan error, 1), make(chan error, 1)
		p := bytes.Repeat([]byte{4}, sector)
		go func() { written <- im.WriteAt(t.Context(), p, 9*sector, 0) }()
		<-slow.reached
		go func() { closed <- im.Close() }()
		synctest.Wait()
		early := len(closed) > 0
		slow.release()
		require.NoError(t, <-written)
		require.NoError(t, <-closed)
		require.False(t, early, "closed while a write is in progress")
		copy(m.content[9*sector:], p)
	})
	m.requireDurable(t)
	m.judge(t, m.disk)
}

// A oneErrorFile tells the first of two syncs that are in progress together of the error
// that both have met, as the kernel does.
type oneErrorFile struct {
	*simdisk.Disk
	reached, release chan struct{}
	armed            atomic.Bool
}

func (f *oneErrorFile) Sync() error {
	if !f.armed.CompareAndSwap(true, false) {
		return f.Disk.Sync()
	}
	close(f.reached)
	<-f.release
	return syscall.EIO
}

// TestFlushBesideAFailingSync: the Sync of a reservation fails while a flush wants one of
// its own. What the error was about may be what the flush covers.
func TestFlushBesideAFailingSync(t *testing.T) {
	d := simdisk.New(0, simdisk.Options{Foreign: true}) // what is reserved must be zeroed, and synced
	require.NoError(t, qcow2.Create(t.Context(), d, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096}))
	f := &oneErrorFile{Disk: d, reached: make(chan struct{}), release: make(chan struct{})}
	im, err := qcow2.Open(t.Context(), f, qcow2.Options{CommitInterval: -1, ReserveBytes: 8192})
	require.NoError(t, err)
	p := make([]byte, 4096)
	require.NoError(t, im.WriteAt(t.Context(), p, 0, 0))
	im.WaitIdle()
	f.armed.Store(true)
	written, flushed := make(chan error, 1), make(chan error, 1)
	go func() { written <- im.WriteAt(t.Context(), make([]byte, 256<<10), 64<<10, 0) }()
	<-f.reached
	go func() { flushed <- im.Flush(t.Context()) }()
	select {
	case err = <-flushed: // too early; what does it say?
	case <-time.After(100 * time.Millisecond):
		close(f.release)
		err = <-flushed
	}
	require.ErrorIs(t, err, syscall.EIO, "the flush")
	require.ErrorIs(t, <-written, syscall.EIO)
	require.Error(t, im.Close())
}

// TestCopiedTableOfSeveralSlices: a table that a snapshot shares has more than one slice,
// and a write changes one of them. All of the copy is durable with the flush.
func TestCopiedTableOfSeveralSlices(t *testing.T) {
	const cs = 8192 // two slices, of 4 MiB of the disk each
	m := subject{name: "two slices", size: 8 << 20, options: "cluster_size=8k", script: []string{"write -P 1 0 64k", "write -P 2 5M 64k"}}.make(t)
	m.snapshot(t, "last")
	for _, off := range []int64{cs, 5<<20 + cs} {
		c := m.copy()
		im := c.open(t, c.disk, qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir()})
		c.put(t, im, []byte{3}, off)
		require.NoError(t, im.Flush(t.Context()))
		c.requireDurable(t)
		require.NoError(t, im.Close())
		c.judge(t, c.disk)
	}
}

// TestKeptByAZeroMark: a cluster reads zero and keeps its host cluster. Who writes to it
// gets a fresh one, and the one that was kept is given back.
func TestKeptByAZeroMark(t *testing.T) {
	m := subject{name: "zero marks", size: 512 << 10, options: "cluster_size=4k", script: []string{"write -P 1 0 64k", "write -z 0 64k"}}.make(t)
	im := m.open(t, m.disk, qcow2.Options{CommitInterval: -1})
	m.put(t, im, bytes.Repeat([]byte{7}, 32<<10), 8<<10)
	require.NoError(t, im.Close())
	requireClean(t, m.disk)
	m.judge(t, m.disk)
}

// TestRingOfAnImageThatOthersChanged: a process died, and another program, which does not
// know the ring, opened the image for writing. The ring is not replayed over what that
// one wrote; the next process says so, and removes it.
func TestRingOfAnImageThatOthersChanged(t *testing.T) {
	m := subject{name: "opened by others", size: 1 << 20, options: "cluster_size=4k"}.make(t)
	dir := t.TempDir()
	im := m.open(t, m.disk, qcow2.Options{CommitInterval: -1, RedoDir: dir})
	require.NoError(t, im.WriteAt(t.Context(), []byte{1}, 0, 0))
	left, ring := m.disk.Crash(simdisk.KeepAll), copyDir(t, dir)
	require.NoError(t, im.Close())
	_, err := left.WriteAt(make([]byte, 8), 88) // the autoclear features
	require.NoError(t, err)
	var log bytes.Buffer
	for i := range 2 {
		im = m.open(t, left, qcow2.Options{CommitInterval: -1, RedoDir: ring, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		<-im.Settled() // it logs, too
		require.Equal(t, 1, strings.Count(log.String(), "another program has opened the image"), "opening %d: %s", i+1, &log)
		require.Empty(t, readRing(ring))
		requireRead(t, im, make([]byte, 4096), 0)
		<-im.Settled()
		require.NoError(t, im.Close())
	}
	requireClean(t, left)
}
