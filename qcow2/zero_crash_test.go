package qcow2_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// TestStaleTableAsAnEmptyTable (design review 2.2, 1): a new L2 table with 40 entries
// has landed and the L1 entry that names it has not. It is a leak, which is given back,
// and its cluster is handed out again: as a table, its entries would name what others
// own; as data, they would be read. That it is free does not mean that it is zero.
func TestStaleTableAsAnEmptyTable(t *testing.T) {
	const cs, coverage = 1 << 10, 128 << 10
	for _, mend := range []string{"settled", "checked"} {
		t.Run(mend, func(t *testing.T) {
			m := subject{name: "stale table", size: 1 << 20, options: "cluster_size=1k"}.make(t)
			f := faultfile.New(m.disk, faultfile.Fault{})
			im := m.open(t, f, qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir(), ReserveBytes: 96 * cs})
			m.put(t, im, bytes.Repeat([]byte{1}, cs), 0)
			require.NoError(t, im.Flush(t.Context()))
			durable := bytes.Clone(m.content)
			for i := range int64(40) {
				m.put(t, im, bytes.Repeat([]byte{2}, cs), coverage+i*cs)
			}
			var left *simdisk.Disk
			f.Hook(func(op faultfile.Op) {
				if op.Kind == faultfile.Sync && left == nil {
					h := im.Header()
					left = m.disk.Crash(simdisk.KeepOps(func(op *simdisk.Op) bool { return op.Off != h.L1Offset }))
					require.NotZero(t, l2At(t, m.disk, 1), "the table is written, and its entry too")
				}
			}, nil)
			require.NoError(t, im.Flush(t.Context()))
			stale := make([]byte, cs)
			_, err := left.ReadAt(stale, l2At(t, m.disk, 1))
			require.NoError(t, err)
			require.NotEqual(t, make([]byte, cs), stale, "T has landed")

			m.disk, m.content = left, durable
			if mend == "checked" {
				res, err := qcow2.Check(t.Context(), left, qcow2.CheckOptions{RepairLeaks: true})
				require.NoError(t, err)
				require.NotZero(t, res.LeaksFixed)
			}
			o := ownersOf(left, cs)
			im = m.open(t, o, qcow2.Options{CommitInterval: -1})
			<-im.Settled()
			part := make([]byte, cs/2)
			for i := range m.size / cs / 2 { // every second cluster, half of it
				stampGuest(part, int(i))
				m.put(t, im, part, 2*i*cs)
			}
			got := make([]byte, m.size)
			require.NoError(t, im.ReadAt(t.Context(), got, 0, 0))
			requireSame(t, m.content, got, "nothing of the past")
			require.NoError(t, im.Close())
			o.require(t)
			m.judge(t, m.disk)
		})
	}
}

// TestPreallocatedOnPoison (design review 2.2, 5): an image whose entries all name host
// clusters before anything was written, on space that was another tenant's. Their
// entries are marked zero: a read, a write of a part, and a power cut at any moment
// show zeroes around what was written, and never the space below.
func TestPreallocatedOnPoison(t *testing.T) {
	const cs = 4 << 10
	m := subject{name: "preallocated", size: 256 << 10, options: "cluster_size=4k,preallocation=metadata"}.make(t)
	poison := bytes.Repeat([]byte(simdisk.ForeignTag), cs/len(simdisk.ForeignTag))
	im := m.open(t, m.disk, qcow2.Options{ReadOnly: true})
	list, err := im.AppendExtents(t.Context(), make([]qcow2.Extent, 0, 100), 0, m.size)
	require.NoError(t, err)
	require.NoError(t, im.Close())
	poisoned := int64(0)
	for _, e := range list {
		require.GreaterOrEqual(t, e.Host, int64(cs))
		for at := int64(0); at < e.Len; at += cs {
			if need := e.Host + at + cs; need > m.disk.Size() {
				_, err := m.disk.Grow(t.Context(), need, need)
				require.NoError(t, err)
			}
			_, err := m.disk.WriteAt(poison, e.Host+at)
			require.NoError(t, err)
			poisoned += cs
		}
	}
	require.Equal(t, m.size, poisoned)
	markZero(t, m.disk)

	f := faultfile.New(m.disk, faultfile.Fault{})
	im = m.open(t, f, qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir(), ReserveBytes: 32 << 10})
	requireRead(t, im, m.content, 0)
	c := cutsBefore(f, faultfile.Sync|faultfile.Discard, m.disk, m.content)
	for i := range int64(24) {
		p := bytes.Repeat([]byte{byte(i + 1)}, 700)
		off := i*2*cs + 100
		c.write(p, off)
		m.put(t, im, p, off)
		if i%8 == 7 {
			require.NoError(t, im.Flush(t.Context()))
			c.flush()
		}
	}
	f.Hook(nil, nil)
	requireRead(t, im, m.content, 0)
	c.judge(t, m)
	require.NoError(t, im.Close())
	m.judge(t, m.disk)
}
