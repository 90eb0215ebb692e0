package qcow2_test

import (
	"bytes"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// The design review's 2.3: while a commit is between the copy of a slice and its last
// sync, the slice is clean in one sense and not in the other.

// manySlices is an image over f with clusters, and so slices, of 512 bytes, 32 KiB of
// the disk each, more than stay in memory. Every slice is there, and durable, with its
// first cluster; there is a ring.
func manySlices(t *testing.T) (m *made, f *faultfile.File, im *qcow2.Image) {
	m = subject{name: "many slices", size: 2 << 20, options: "cluster_size=512"}.make(t)
	f = faultfile.New(m.disk, faultfile.Fault{})
	im = m.open(t, f, qcow2.Options{CommitInterval: -1, CacheBytes: 1, RedoDir: t.TempDir()})
	for off := int64(0); off < m.size; off += 32 << 10 {
		m.put(t, im, bytes.Repeat([]byte{byte(off >> 15), 1}, sector/2), off)
	}
	require.NoError(t, im.Flush(t.Context()))
	return m, f, im
}

// evict reads what fills the cache with other slices than the first.
func (m *made) evict(t *testing.T, im *qcow2.Image) {
	t.Helper()
	for range 2 {
		for off := int64(32 << 10); off < m.size; off += 32 << 10 {
			requireRead(t, im, m.content[off:off+sector], off)
		}
	}
}

func requireRead(t *testing.T, im *qcow2.Image, want []byte, off int64) {
	t.Helper()
	got := make([]byte, len(want))
	require.NoError(t, im.ReadAt(t.Context(), got, off, 0))
	require.Equal(t, want, got, "at %d", off)
}

// requireDurable wants that a power cut leaves the disk as it is.
func (m *made) requireDurable(t *testing.T) {
	t.Helper()
	m.requireHolds(t, m.disk.Crash(simdisk.DropAll))
}

// requireHolds wants that what a power cut left holds the disk as it is.
func (m *made) requireHolds(t *testing.T, left *simdisk.Disk) {
	t.Helper()
	im := m.open(t, left, qcow2.Options{ReadOnly: true})
	got := make([]byte, m.size)
	require.NoError(t, im.ReadAt(t.Context(), got, 0, 0))
	requireSame(t, m.content, got, "after a power cut")
}

// l2At is where the L2 table of the disk's L1 entry i is.
func l2At(t *testing.T, d *simdisk.Disk, i int64) int64 {
	h, err := qcow2.ReadHeader(d)
	require.NoError(t, err)
	b := make([]byte, 8)
	_, err = d.ReadAt(b, h.L1Offset+i*8)
	require.NoError(t, err)
	e := make([]format.L1Entry, 1)
	format.DecodeTable(e, b)
	require.NotZero(t, e[0].Offset())
	return e[0].Offset()
}

// flushLater flushes on a goroutine of its own; the function returned waits for that.
func flushLater(t *testing.T, im *qcow2.Image) (wait func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := im.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return wg.Wait
}

// TestFUAWhileACommitIsStalled: the entry is on its way to the disk and not there. A
// FUA write in place under it must not count on it.
func TestFUAWhileACommitIsStalled(t *testing.T) {
	for name, at := range map[string]func(table int64) func(faultfile.Op) bool{
		"before the table is written": func(table int64) func(faultfile.Op) bool { return overlaps(faultfile.Write, table, sector) },
		"before the last sync":        func(int64) func(faultfile.Op) bool { return kindOf(faultfile.Sync) },
	} {
		t.Run(name, func(t *testing.T) {
			m, f, im := manySlices(t)
			m.put(t, im, bytes.Repeat([]byte{2}, sector), sector)
			var ex [1]qcow2.Extent
			list, err := im.AppendExtents(t.Context(), ex[:0], sector, sector)
			require.NoError(t, err)
			s := stopsOf(f)
			commit := s.at(at(l2At(t, m.disk, 0)))
			flushed := flushLater(t, im)
			<-commit.reached

			kind := make(chan faultfile.Kind, 1)
			inPlace := s.at(func(op faultfile.Op) bool {
				if !overlaps(faultfile.Write|faultfile.WriteSync, list[0].Host, sector)(op) {
					return false
				}
				kind <- op.Kind
				return true
			})
			p := bytes.Repeat([]byte{3}, sector)
			copy(m.content[sector:], p)
			var left *simdisk.Disk
			done := make(chan error, 1)
			go func() {
				err := im.WriteAt(t.Context(), p, sector, qcow2.FUA)
				left = m.disk.Crash(simdisk.DropAll)
				done <- err
			}()
			<-inPlace.reached
			inPlace.release()
			if <-kind == faultfile.WriteSync { // it asks for nothing else
				require.NoError(t, <-done)
				done <- nil
			}
			commit.release()
			require.NoError(t, <-done)
			m.requireHolds(t, left)
			flushed()
			require.NoError(t, im.Close())
		})
	}
}

// TestEvictionWhileACommitIsStalled: the slice was copied and is not written yet. If
// it leaves the cache now, reading it again finds the past, and what is published in
// that is written over what the commit writes.
func TestEvictionWhileACommitIsStalled(t *testing.T) {
	m, f, im := manySlices(t)
	m.put(t, im, bytes.Repeat([]byte{2}, sector), sector)
	commit := stopsOf(f).at(overlaps(faultfile.Write, l2At(t, m.disk, 0), sector))
	flushed := flushLater(t, im)
	<-commit.reached
	m.evict(t, im)
	requireRead(t, im, m.content[:2*sector], 0)
	m.put(t, im, bytes.Repeat([]byte{3}, sector), 2*sector)
	commit.release()
	flushed()
	m.evict(t, im)
	requireRead(t, im, m.content[:3*sector], 0)
	require.NoError(t, im.Flush(t.Context()))
	m.requireDurable(t)
	require.NoError(t, im.Close())
	m.judge(t, m.disk)
}

// TestOrphanPublisher: a writer has looked a slice up and is slow; the slice leaves
// the cache and is read again. What he publishes in the old one nobody would see.
func TestOrphanPublisher(t *testing.T) {
	m := subject{name: "many slices, backing", size: 2 << 20, options: "cluster_size=512", backing: 2 << 20}.make(t)
	f := faultfile.New(m.disk, faultfile.Fault{})
	im := m.open(t, f, qcow2.Options{CommitInterval: -1, CacheBytes: 1, RedoDir: t.TempDir()})
	for off := int64(0); off < m.size; off += 32 << 10 {
		m.put(t, im, bytes.Repeat([]byte{byte(off >> 15), 1}, 50), off)
	}
	require.NoError(t, im.Flush(t.Context()))
	slow := stopsOf(f).at(func(op faultfile.Op) bool { return op.Kind == faultfile.Write && op.Len == sector })
	done := make(chan error, 1)
	p := bytes.Repeat([]byte{5}, 100)
	go func() { done <- im.WriteAt(t.Context(), p, 2*sector, 0) }()
	<-slow.reached
	m.evict(t, im)
	requireRead(t, im, m.content[:4*sector], 0)
	m.put(t, im, bytes.Repeat([]byte{6}, 100), 3*sector) // publishes in the new one
	slow.release()
	require.NoError(t, <-done)
	copy(m.content[2*sector:], p)
	requireRead(t, im, m.content[:4*sector], 0)
	m.evict(t, im)
	requireRead(t, im, m.content[:4*sector], 0)
	require.NoError(t, im.Flush(t.Context()))
	m.requireDurable(t)
	require.NoError(t, im.Close())
	m.judge(t, m.disk)
}
