package qcow2_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// TestPairTornInStaging (design review 2.9): an extended L2 entry is two words. While
// requests change entries, neither what a commit copies for writing nor what another
// request looks up has the bitmap of one entry beside the offset of another: QEMU calls
// that corrupt. The window is some instructions wide; it is looked for often.
func TestPairTornInStaging(t *testing.T) {
	const cs = 16 << 10
	m := subject{name: "pairs", size: 64 * cs, options: "extended_l2=on,cluster_size=16k"}.make(t)
	im := m.open(t, m.disk, qcow2.Options{CommitInterval: -1})
	require.NoError(t, im.WriteAt(t.Context(), []byte{1}, 0, qcow2.FUA))
	h := im.Header()
	torn := func(p format.L2Pair) bool { return h.SubclusterKind(p.Entry, p.Sub, 0) == format.Invalid }
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		whole := im.Pair(0)
		for gc := int64(1); !stop.Load(); gc = gc%63 + 1 {
			im.SetPair(gc, whole)
			im.SetPair(gc, format.L2Pair{})
		}
	})
	staged, looked := 0, 0
	for range scaled(40_000) {
		for _, p := range im.StagedPairs() {
			if torn(p) {
				staged++
			}
		}
		for gc := int64(1); gc < 64; gc++ {
			if torn(im.Pair(gc)) {
				looked++
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	require.Zero(t, staged, "torn entries that would have been written")
	require.Zero(t, looked, "torn entries that were looked up")
}
