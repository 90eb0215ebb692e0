package qcow2_test

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// A crafted image: what the engine would not write.
type crafted struct {
	*simdisk.Disk
	t *testing.T
	h *format.Header
}

func craft(t *testing.T, o qcow2.CreateOptions) *crafted {
	t.Helper()
	d := newDisk(t, o)
	h, err := qcow2.ReadHeader(d)
	require.NoError(t, err)
	return &crafted{d, t, h}
}

func (c *crafted) put(off int64, words ...uint64) {
	c.t.Helper()
	b := make([]byte, len(words)*8)
	format.EncodeTable(b, words)
	_, err := c.WriteAt(b, off)
	require.NoError(c.t, err)
}

// add adds a cluster at the file's end, counted n times, and returns its offset.
func (c *crafted) add(n uint16) int64 {
	c.t.Helper()
	off := c.Size()
	_, err := c.Grow(c.t.Context(), off+c.h.ClusterSize(), off+c.h.ClusterSize())
	require.NoError(c.t, err)
	require.NoError(c.t, c.WriteZeroes(off, c.h.ClusterSize()))
	c.count(off, n)
	return off
}

// count sets the 16-bit count of a cluster that the first refcount block covers.
func (c *crafted) count(off int64, n uint16) {
	c.t.Helper()
	const block = 2 // create.go's layout
	_, err := c.WriteAt(binary.BigEndian.AppendUint16(nil, n), block*c.h.ClusterSize()+off/c.h.ClusterSize()*2)
	require.NoError(c.t, err)
}

func (c *crafted) check(o qcow2.CheckOptions) qcow2.CheckResult {
	c.t.Helper()
	r, err := qcow2.Check(c.t.Context(), c, o)
	require.NoError(c.t, err)
	return r
}

func (c *crafted) putHeader(change func(h *format.Header)) {
	c.t.Helper()
	change(c.h)
	sector := make([]byte, format.SectorSize)
	_, err := c.ReadAt(sector, 0)
	require.NoError(c.t, err)
	c.h.Put(sector)
	_, err = c.WriteAt(sector, 0)
	require.NoError(c.t, err)
}

const markCopied = 1 << 63

func TestCheckExtendedL2(t *testing.T) {
	for name, c := range map[string]struct {
		sub     uint64
		cluster bool
		want    int64
	}{
		"nothing":                            {0, false, 0},
		"zero, no cluster":                   {0xffffffff << 32, false, 0},
		"all kinds":                          {0x0000ff00_000000ff, true, 0},
		"cluster, nothing allocated":         {0, true, 0},
		"both bits":                          {0x00000001_00000001, true, 1},
		"both bits, no cluster":              {0x80000000_80000000, false, 1},
		"allocated without a cluster":        {1 << 31, false, 1},
		"allocated without a cluster, zeros": {0xffff0000_00000001, false, 1},
	} {
		im := craft(t, qcow2.CreateOptions{Size: 1 << 20, ExtendedL2: true, ClusterSize: 16 << 10})
		l2 := im.add(1)
		im.put(im.h.L1Offset, markCopied|uint64(l2))
		var entry uint64
		if c.cluster {
			entry = markCopied | uint64(im.add(1))
		}
		im.put(l2+5*16, entry, c.sub)
		r := im.check(qcow2.CheckOptions{})
		require.Equal(t, c.want, r.Corruptions, "%s: %v", name, r.Problems)
		require.Zero(t, r.Leaks, "%s: what a bad entry names is not leaked", name)
	}

	im := craft(t, qcow2.CreateOptions{Size: 1 << 20, ExtendedL2: true, ClusterSize: 16 << 10})
	l2, data := im.add(1), im.add(1)
	im.put(im.h.L1Offset, markCopied|uint64(l2))
	im.put(l2, 1<<62|uint64(data), 0)
	r := im.check(qcow2.CheckOptions{})
	require.True(t, r.Clean(), "%v", r.Problems)
	require.Equal(t, int64(1), r.Compressed)
	im.put(l2, 1<<62|uint64(data), 1<<40)
	require.Equal(t, int64(1), im.check(qcow2.CheckOptions{}).Corruptions, "compressed, with a bitmap")
}

// TestCheckCompressedSpan: a compressed cluster counts in every host cluster that
// its sectors touch, and several may share one.
func TestCheckCompressedSpan(t *testing.T) {
	im := craft(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096})
	l2, first, second := im.add(1), im.add(2), im.add(1)
	im.put(im.h.L1Offset, markCopied|uint64(l2))
	const x = 62 - (12 - 8)
	im.put(l2, 1<<62|uint64(first)+100, 1<<62|1<<x|uint64(first)+4096-300) // one further sector
	r := im.check(qcow2.CheckOptions{})
	require.True(t, r.Clean(), "%v", r.Problems)
	require.Equal(t, int64(2), r.Compressed)
	im.count(second, 0)
	require.Equal(t, int64(1), im.check(qcow2.CheckOptions{}).Corruptions)
	im.count(second, 2)
	require.Equal(t, int64(1), im.check(qcow2.CheckOptions{}).Leaks)
}

// withSnapshot has one cluster of data that the disk and a snapshot share.
func withSnapshot(t *testing.T) (im *crafted, table, l1, l2, data int64) {
	im = craft(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096})
	table, l1, l2, data = im.add(1), im.add(1), im.add(2), im.add(2)
	im.put(im.h.L1Offset, uint64(l2))
	im.put(l1, uint64(l2)|markCopied) // "only accurate in the active L1 table"
	im.put(l2, uint64(data))
	im.putSnapshot(table, format.Snapshot{L1Offset: l1, L1Size: 1, ID: "1", Name: "one", DiskSize: 1 << 20})
	im.putHeader(func(h *format.Header) { h.Snapshots, h.SnapshotsOffset = 1, table })
	return im, table, l1, l2, data
}

func (c *crafted) putSnapshot(table int64, s ...format.Snapshot) {
	c.t.Helper()
	b, err := format.EncodeSnapshots(s)
	require.NoError(c.t, err)
	_, err = c.WriteAt(b, table)
	require.NoError(c.t, err)
}

func TestCheckSnapshots(t *testing.T) {
	im, table, l1, _, data := withSnapshot(t)
	r := im.check(qcow2.CheckOptions{})
	require.True(t, r.Clean(), "%v", r.Problems)
	require.Equal(t, int64(1), r.Allocated, "of the disk, not of its snapshots")

	for name, c := range map[string]struct {
		damage func()
		says   string
	}{
		"data counted once": {func() { im.count(data, 1) }, "count 1, 2 references"},
		"L1 table outside": {func() {
			im.putSnapshot(table, format.Snapshot{L1Offset: 1 << 40, L1Size: 1, ID: "1", Name: "one", DiskSize: 0})
		}, `snapshot "1" ("one")`},
		"L1 table not counted":       {func() { im.count(l1, 0) }, "count 0, 1 references"},
		"snapshot table not counted": {func() { im.count(table, 0) }, "count 0, 1 references"},
		"L1 entry is no cluster":     {func() { im.put(l1, 512) }, "is no cluster of the file"},
		"L1 entry reserved":          {func() { im.put(l1, 1<<60) }, "reserved bits"},
		"too little extra data": {func() {
			im.putSnapshot(table, format.Snapshot{L1Offset: l1, L1Size: 1, ID: "1", Name: "one", DiskSize: -1})
		}, "at least 16 bytes"},
	} {
		im, table, l1, _, data = withSnapshot(t)
		c.damage()
		before := contents(t, im)
		r := im.check(qcow2.CheckOptions{RepairLeaks: true})
		require.NotZero(t, r.Corruptions, name)
		require.Contains(t, strings.Join(r.Problems, "\n"), c.says, name)
		require.Zero(t, r.LeaksFixed, name)
		require.Equal(t, before, contents(t, im), "%s: nothing is mended while something else is wrong", name)
	}

	// Two snapshots that share their L1 table's entries count twice.
	im, table, l1, l2, data := withSnapshot(t)
	second := im.add(1)
	im.put(second, uint64(l2))
	im.putSnapshot(table, format.Snapshot{L1Offset: l1, L1Size: 1, ID: "1", Name: "one", DiskSize: 1 << 20},
		format.Snapshot{L1Offset: second, L1Size: 1, ID: "2", Name: "two", DiskSize: 1 << 20})
	im.putHeader(func(h *format.Header) { h.Snapshots = 2 })
	im.count(l2, 3)
	im.count(data, 3)
	r = im.check(qcow2.CheckOptions{})
	require.True(t, r.Clean(), "%v", r.Problems)

	im, _, _, _, data = withSnapshot(t)
	im.count(data, 3)
	require.Equal(t, int64(1), im.check(qcow2.CheckOptions{}).Leaks)
	require.Equal(t, int64(1), im.check(qcow2.CheckOptions{RepairLeaks: true}).LeaksFixed)
	r = im.check(qcow2.CheckOptions{})
	require.True(t, r.Clean(), "%v", r.Problems)
}

// TestCheckMendKeepsCopied: lowering the count of a cluster that the disk refers
// to without COPIED would make its entry wrong, so it stays.
func TestCheckMendKeepsCopied(t *testing.T) {
	im, _, _, _, _ := withSnapshot(t)
	im.putHeader(func(h *format.Header) { h.Snapshots = 0 }) // deleted, and then a crash
	r := im.check(qcow2.CheckOptions{RepairLeaks: true})
	require.Equal(t, int64(4), r.Leaks, "the tables of the snapshot, and %v", r.Problems)
	require.Equal(t, int64(2), r.LeaksFixed)
	r = im.check(qcow2.CheckOptions{})
	require.Zero(t, r.Corruptions)
	require.Equal(t, int64(2), r.Leaks)

	// Only the snapshot refers to it: nothing depends on its mark.
	im, _, _, _, _ = withSnapshot(t)
	im.put(im.h.L1Offset, 0)
	r = im.check(qcow2.CheckOptions{RepairLeaks: true})
	require.Equal(t, int64(2), r.LeaksFixed)
	r = im.check(qcow2.CheckOptions{})
	require.True(t, r.Clean(), "%v", r.Problems)
}

// TestCheckSnapshotTable: if the table cannot be read, nobody knows what its
// snapshots own, so nothing counts as leaked.
func TestCheckSnapshotTable(t *testing.T) {
	for name, damage := range map[string]func(im *crafted, table int64){
		"behind the end": func(im *crafted, _ int64) {
			im.putHeader(func(h *format.Header) { h.SnapshotsOffset = 1 << 40 })
		},
		"extra data too long": func(im *crafted, table int64) { im.put(table+32, 0xffffffff) },
		"more than there are": func(im *crafted, _ int64) {
			im.putHeader(func(h *format.Header) { h.Snapshots = format.MaxSnapshots })
		},
	} {
		im, table, _, _, _ := withSnapshot(t)
		damage(im, table)
		before := contents(t, im)
		r := im.check(qcow2.CheckOptions{RepairLeaks: true})
		require.Equal(t, int64(1), r.CheckErrors, name)
		require.Zero(t, r.Leaks, name)
		require.Equal(t, before, contents(t, im), name)
	}
}

// TestCheckSharedRefcountBlock: a block that something else refers to must not be
// written to, not even to mend a leak.
func TestCheckSharedRefcountBlock(t *testing.T) {
	im := craft(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096})
	const block = 2 * 4096
	l2 := im.add(1)
	im.add(1) // leaked
	im.count(block, 2)
	im.put(im.h.L1Offset, markCopied|uint64(l2))
	im.put(l2, block)
	r := im.check(qcow2.CheckOptions{RepairLeaks: true})
	require.Equal(t, int64(1), r.Corruptions, "%v", r.Problems)
	require.Zero(t, r.LeaksFixed)
}

// TestCheckLastCluster: the file may end inside its last cluster, in which an
// entry may name the sectors that are missing, and no further.
func TestCheckLastCluster(t *testing.T) {
	im := craft(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096})
	l2, data := im.add(1), im.add(1)
	im.put(im.h.L1Offset, markCopied|uint64(l2))
	im.put(l2, 1<<62|uint64(data)+1024)
	require.NoError(t, im.Shrink(t.Context(), im.Size(), data+700))
	r := im.check(qcow2.CheckOptions{})
	require.True(t, r.Clean(), "%v", r.Problems)
	for _, entry := range []uint64{markCopied | uint64(data) + 4096, 1<<62 | 8<<58 | uint64(data) + 100} {
		im.put(l2+8, entry)
		require.NotZero(t, im.check(qcow2.CheckOptions{}).Corruptions, "0x%x", entry)
	}
}

func contents(t *testing.T, d *crafted) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	_, err := d.ReadAt(b, 0)
	require.NoError(t, err)
	return b
}

func FuzzCheck(f *testing.F) {
	f.Add(true, uint32(3<<14), uint64(markCopied|2<<14), uint32(8), uint64(0))
	f.Add(false, uint32(4<<12+32), uint64(1<<32-1), uint32(60), uint64(1<<32|4))
	f.Fuzz(func(t *testing.T, extended bool, off1 uint32, word1 uint64, off2 uint32, word2 uint64) {
		var im *crafted
		if extended {
			im = craft(t, qcow2.CreateOptions{Size: 1 << 20, ExtendedL2: true, ClusterSize: 16 << 10})
			l2 := im.add(1)
			im.put(im.h.L1Offset, markCopied|uint64(l2))
			im.put(l2, markCopied|uint64(im.add(1)), 0xff)
		} else {
			im, _, _, _, _ = withSnapshot(t)
		}
		for off, word := range map[uint32]uint64{off1: word1, off2: word2} {
			im.put(int64(off)%(im.Size()-8), word)
		}
		first, err := qcow2.Check(t.Context(), im, qcow2.CheckOptions{RepairLeaks: true})
		if err != nil || first.Corruptions+first.CheckErrors > 0 {
			return
		}
		if r := im.check(qcow2.CheckOptions{}); r.Corruptions+r.CheckErrors > 0 || r.Leaks != first.Leaks-first.LeaksFixed {
			t.Fatalf("mended %d leaks of %d, then %+v", first.LeaksFixed, first.Leaks, r)
		}
	})
}
