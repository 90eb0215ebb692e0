package crashtest

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/crashlab"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// TestAuditAcceptsQEMUsImages: with everything that the audit claims to know.
func TestAuditAcceptsQEMUsImages(t *testing.T) {
	img := testenv.Tool(t, "qemu-img")
	for _, r := range rows() {
		if r.made == nil {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			b := r.made(t, img, t.TempDir())
			s, err := simdisk.ImportState(b.path)
			require.NoError(t, err)
			require.NoError(t, audit(b.sums)(t.Context(), simdisk.NewDisk(s, simdisk.Options{})))
		})
	}
}

// TestAuditSeesSnapshots: every byte that only a snapshot has is looked at.
func TestAuditSeesSnapshots(t *testing.T) {
	b := snapshots("cluster_size=4k", 2)(t, testenv.Tool(t, "qemu-img"), t.TempDir())
	s, err := simdisk.ImportState(b.path)
	require.NoError(t, err)
	changed := 0
	for at := int64(4096 + 96); at < s.Size(); at += 4096 { // in every cluster
		d := simdisk.NewDisk(s, simdisk.Options{})
		putWord(t, d, at, ^word(t, d, at))
		var f *crashlab.Fault
		if errors.As(audit(b.sums)(t.Context(), d), &f) && f.Oracle == 4 {
			changed++
		}
	}
	require.Greater(t, changed, 40, "of the clusters that snapshots name")
	require.ErrorContains(t, audit(b.sums[:1])(t.Context(), simdisk.NewDisk(s, simdisk.Options{})), "2 snapshots")
}

// TestAuditSeesOwners changes entries of an image to what they must not be.
func TestAuditSeesOwners(t *testing.T) {
	d := simdisk.New(0, simdisk.Options{})
	require.NoError(t, qcow2.Create(t.Context(), d, qcow2.CreateOptions{Size: 256 << 10, ClusterSize: 4096}))
	im, err := qcow2.Open(t.Context(), d, qcow2.Options{})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(t.Context(), make([]byte, 8192), 0, 0))
	require.NoError(t, im.Close())
	h, err := qcow2.ReadHeader(d)
	require.NoError(t, err)
	image := d.State()
	first := int64(word(t, d, h.L1Offset) & offsetMask) // entry of the L2 table
	for _, c := range []struct {
		want  string
		at    int64
		value uint64
	}{
		{"named twice", first + 8, word(t, d, first)},
		{"two owners: the refcount table", first + 8, 1<<63 | 4096},
		{"in a file of", first + 8, 1<<63 | 1<<30},
		{"mark for a single reference is false", first, word(t, d, first) &^ (1 << 63)},
		{"is counted 0", int64(word(t, d, h.RefcountTableOffset)), 0},
		{"the L1 table: 8 bytes", 40, 1 << 40},
	} {
		d := simdisk.NewDisk(image, simdisk.Options{})
		require.NoError(t, audit(nil)(t.Context(), d))
		putWord(t, d, c.at, c.value)
		require.ErrorContains(t, audit(nil)(t.Context(), d), c.want)
	}
}

func word(t *testing.T, d *simdisk.Disk, at int64) uint64 {
	p := make([]byte, 8)
	_, err := d.ReadAt(p, at)
	require.NoError(t, err)
	return binary.BigEndian.Uint64(p)
}

func putWord(t *testing.T, d *simdisk.Disk, at int64, v uint64) {
	_, err := d.WriteAt(binary.BigEndian.AppendUint64(nil, v), at)
	require.NoError(t, err)
}
