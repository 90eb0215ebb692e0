package qcow2_test

import (
	"bytes"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/faultfile"
	"tidemark/qcow2"
)

// TestCopyBesideWriteInPlace: a write that begins where sub-clusters must be copied
// and ends in one that is the disk's own does not write the rest of that one: it may
// be another request's at that moment.
func TestCopyBesideWriteInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		const sub = 512
		f := faultfile.New(newDisk(t, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 32 * sub, ExtendedL2: true,
			BackingFile: "below", BackingFormat: "raw"}), faultfile.Fault{})
		im, err := qcow2.Open(ctx, f, qcow2.Options{Backing: blocktest.NewMemDevice(1 << 20)})
		require.NoError(t, err)
		want := make([]byte, 8*sub)
		fill := func(from, end int, b byte) []byte { return append([]byte(nil), fillBytes(want[from:end], b)...) }
		require.NoError(t, im.WriteAt(ctx, fill(2*sub, 3*sub, 1), 2*sub, 0)) // it gets a host cluster
		g := newGate()
		defer g.open()
		f.Hook(func(op faultfile.Op) {
			if op.Kind == faultfile.Write && op.Len > 100 {
				g.pass()
			}
		}, nil)
		slow := make(chan error, 1)
		end := 2*sub + 100
		go func() { slow <- im.WriteAt(ctx, fill(sub+7, end, 2), sub+7, 0) }()
		synctest.Wait()
		require.EqualValues(t, 1, g.inside.Load())
		require.NoError(t, im.WriteAt(ctx, fill(end+100, end+200, 3), int64(end+100), 0))
		g.open()
		require.NoError(t, <-slow)
		got := make([]byte, len(want))
		require.NoError(t, im.ReadAt(ctx, got, 0, 0))
		requireSame(t, want, got, "the disk")
		require.NoError(t, im.Close())
	})
}

func fillBytes(p []byte, b byte) []byte {
	copy(p, bytes.Repeat([]byte{b}, len(p)))
	return p
}

// TestCopyNow: a write of whole sub-clusters over a backing file, and of a whole cluster,
// is done without waiting; one of less is not, as what is around it has to be read.
func TestCopyNow(t *testing.T) {
	for name, whole := range map[string]int64{"sub-clusters": 4096, "cluster": 128 << 10} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			const size, cluster = 4 << 20, 128 << 10
			d := newDisk(t, qcow2.CreateOptions{Size: size, ClusterSize: cluster, ExtendedL2: whole < cluster,
				BackingFile: "below", BackingFormat: "raw"})
			im, err := qcow2.Open(ctx, d, qcow2.Options{Backing: fullBacking{size: size}, RedoDir: t.TempDir()})
			require.NoError(t, err)
			want := bytes.Repeat([]byte{0x5a}, size)
			fillBytes(want[:10], 1)
			require.NoError(t, im.WriteAt(ctx, want[:10], 0, 0)) // reserves
			im.WaitIdle()
			for n := int64(4); n < 6; n++ {
				off := n * cluster
				p := fillBytes(want[off:off+whole], byte(n))
				require.NoError(t, im.WriteAt(ctx, p, off, qcow2.NoWait))
			}
			if whole == cluster {
				require.ErrorIs(t, im.WriteAt(ctx, want[:4096], 8*cluster, qcow2.NoWait), block.ErrWouldBlock)
			}
			got := make([]byte, size)
			require.NoError(t, im.ReadAt(ctx, got, 0, 0))
			requireSame(t, want, got, "the disk")
			require.NoError(t, im.Close())
			requireClean(t, d)
		})
	}
}
