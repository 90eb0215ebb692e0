package qcow2_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// TestSetRefcountBits changes the width of every kind of image that QEMU made, there
// and back, and cuts the power at every operation: the image is whole, with the old
// width or with the new one.
func TestSetRefcountBits(t *testing.T) {
	for _, s := range subjects() {
		t.Run(s.name, func(t *testing.T) {
			_, rng := testenv.Seed(t)
			m := s.make(t)
			if mustHeader(t, m.disk).Version < 3 {
				require.ErrorContains(t, qcow2.SetRefcountBits(t.Context(), m.disk, 8), "16")
				return
			}
			for _, bits := range []int{64, 8, 8, 32} {
				f := faultfile.New(m.disk, faultfile.Fault{})
				var cuts []*simdisk.Disk
				f.Hook(func(faultfile.Op) {
					cuts = append(cuts, m.disk.Crash(simdisk.DropAll), m.disk.Crash(simdisk.KeepRandom(rng, 0.5)))
				}, nil)
				require.NoError(t, qcow2.SetRefcountBits(t.Context(), f, bits))
				res, err := qcow2.Check(t.Context(), m.disk, qcow2.CheckOptions{})
				require.NoError(t, err)
				require.Zero(t, res.Corruptions+res.Leaks, "%d bits: %q", bits, res.Problems)
				require.Equal(t, bits, 1<<mustHeader(t, m.disk).RefcountOrder)
				for _, d := range cuts {
					res, err := qcow2.Check(t.Context(), d, qcow2.CheckOptions{})
					require.NoError(t, err)
					require.Zero(t, res.Corruptions, "%d bits, cut: %q", bits, res.Problems)
				}
			}
			m.judge(t, m.disk)
		})
	}
}

// TestSetRefcountBitsTooNarrow: a cluster that a snapshot shares does not fit into
// one bit, and nothing changes.
func TestSetRefcountBitsTooNarrow(t *testing.T) {
	img, qio, path := testenv.Tool(t, "qemu-img"), testenv.Tool(t, "qemu-io"), filepath.Join(t.TempDir(), "image.qcow2")
	testenv.Run(t, img, "create", "-q", "-f", "qcow2", path, "1M")
	testenv.Run(t, qio, "-f", "qcow2", "-c", "write 0 64k", path)
	testenv.Run(t, img, "snapshot", "-c", "one", path)
	d, err := simdisk.Import(path, simdisk.Options{})
	require.NoError(t, err)
	before := d.Crash(simdisk.KeepAll)
	require.ErrorContains(t, qcow2.SetRefcountBits(t.Context(), d, 1), "is counted 2 times: expected at most 1")
	require.True(t, simdisk.Equal(before, d))
}
