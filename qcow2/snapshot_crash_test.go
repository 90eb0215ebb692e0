package qcow2_test

import (
	"bytes"
	"maps"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// sharing are images in which a host cluster has several owners: a snapshot and the
// disk, or several compressed clusters.
func sharing() []subject {
	const size = 8 << 20
	writes := []string{"write -P 1 0 300k", "write -P 2 600k 64k", "write -z 620k 20k"}
	return []subject{
		{name: "shared with a snapshot", size: size, options: "cluster_size=4k", script: writes},
		{name: "shared with snapshots", size: size, options: "cluster_size=4k,refcount_bits=8", script: writes, snaps: 2},
		{name: "shared with a snapshot, extended L2", size: size, options: "extended_l2=on,cluster_size=16k", script: writes},
		{name: "shared by compressed clusters", size: 1 << 20, options: "cluster_size=4k", convert: []string{"-c"}},
	}
}

// snapshot has QEMU take a snapshot of the image, which nobody has open: from then on
// everything is shared, the L2 tables too.
func (m *made) snapshot(t *testing.T, name string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.qcow2")
	require.NoError(t, m.disk.Export(path))
	testenv.Run(t, testenv.Tool(t, "qemu-img"), "snapshot", "-c", name, path)
	var err error
	m.disk, err = simdisk.Import(path, simdisk.Options{Foreign: true, DiscardForeign: true})
	require.NoError(t, err)
	m.snaps = maps.Clone(m.snaps)
	m.snaps[name] = bytes.Clone(m.content)
}

// copy is another one of the same.
func (m *made) copy() *made {
	c := *m
	c.disk, c.content = m.disk.Crash(simdisk.KeepAll), bytes.Clone(m.content)
	return &c
}

// put writes p to the image and to the array.
func (m *made) put(t *testing.T, im *qcow2.Image, p []byte, off int64) {
	t.Helper()
	require.NoError(t, im.WriteAt(t.Context(), p, off, 0))
	copy(m.content[off:], p)
}

// TestQuarantineSparesSharedClusters (design review 2.1): what an overwrite unlinks
// loses a count and nothing else while others own it. Freed, the snapshot would read
// zeroes, or another tenant's bytes, after the flush, and after some allocations the
// disk's new data.
func TestQuarantineSparesSharedClusters(t *testing.T) {
	for _, s := range sharing() {
		t.Run(s.name, func(t *testing.T) {
			m := s.make(t)
			if s.convert == nil {
				m.snapshot(t, "last")
			}
			im := m.open(t, m.disk, qcow2.Options{CommitInterval: -1, ReserveBytes: 64 << 10})
			one := bytes.Repeat([]byte{0xa1}, 4096)
			for off := int64(0); off < 700<<10; off += 3 * 4096 {
				m.put(t, im, one, off)
			}
			require.NoError(t, im.Discard(t.Context(), 64<<10, 64<<10, 0))
			clear(m.content[64<<10 : 128<<10])
			require.NoError(t, im.Flush(t.Context()))
			require.NoError(t, im.Flush(t.Context()))
			im.WaitIdle()                // what was unlinked has been dealt with
			for i := range int64(1000) { // enough to come upon what was freed
				p := bytes.Repeat([]byte{byte(i), 0xee}, 2048)
				m.put(t, im, p, (128<<10+i*4096)%(m.size-4096)&^4095)
			}
			got := make([]byte, m.size)
			require.NoError(t, im.ReadAt(t.Context(), got, 0, 0))
			requireSame(t, m.content, got, "the disk")
			require.NoError(t, im.Close())
			m.judge(t, m.disk)
		})
	}
}

// TestL1SectorWithoutTheCopiedTable (design review 2.4): after a snapshot the first
// write under an L1 entry copies its table. The copy is not a new table, which reads
// zero and may land in any order: if the L1 sector lands without it, all that the
// table maps is lost. A neighbour in the same sector brings the pointer too.
func TestL1SectorWithoutTheCopiedTable(t *testing.T) {
	s := subject{name: "tables shared with a snapshot", size: 512 << 10, options: "cluster_size=1k",
		script: []string{"write -P 1 0 50k", "write -P 2 128k 50k"}} // 128k a table
	for name, requests := range map[string]func(put func(byte, int64)){
		"first write":          func(put func(byte, int64)) { put(7, 2<<10) },
		"two tables":           func(put func(byte, int64)) { put(7, 2<<10); put(8, 130<<10) },
		"and a new neighbour":  func(put func(byte, int64)) { put(8, 256<<10); put(7, 2<<10); put(9, 384<<10) },
		"fresh in a copy":      func(put func(byte, int64)) { put(7, 100<<10); put(8, 228<<10) },
		"neighbour, then copy": func(put func(byte, int64)) { put(9, 384<<10); put(7, 2<<10) },
	} {
		t.Run(name, func(t *testing.T) {
			m := s.make(t)
			m.snapshot(t, "last")
			f := faultfile.New(m.disk, faultfile.Fault{})
			im := m.open(t, f, qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir()})
			c := cutsBefore(f, faultfile.Write|faultfile.Sync, m.disk, m.content)
			requests(func(b byte, off int64) {
				p := bytes.Repeat([]byte{b}, 1024)
				c.write(p, off)
				m.put(t, im, p, off)
			})
			require.NoError(t, im.Flush(t.Context()))
			c.flush()
			c.cut("after the flush")
			f.Hook(nil, nil)
			c.judge(t, m)
			require.NoError(t, im.Close())
			m.judge(t, m.disk)
		})
	}
}
