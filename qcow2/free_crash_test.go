package qcow2_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/qcow2"
)

// TestDecrementBesideItsUnlink (design review 2.5): a discard lowers counts, and a
// reservation writes the block that they are in before the entries are durably gone:
// a power cut leaves entries of clusters that nobody counts. The block in memory is
// the next one on disk, so a count falls in it only behind the unlink's sync.
func TestDecrementBesideItsUnlink(t *testing.T) {
	const cs = 1 << 10
	m := subject{name: "one refcount block", size: 256 * cs, options: "cluster_size=1k", script: []string{"write -P 1 0 100k"}}.make(t)
	f := faultfile.New(m.disk, faultfile.Fault{})
	im := m.open(t, f, qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir(), ReserveBytes: 4 * cs})
	require.NoError(t, im.WriteAt(t.Context(), m.content[:cs], 0, qcow2.FUA))
	c := cutsBefore(f, faultfile.Sync|faultfile.Discard|faultfile.Grow, m.disk, m.content)
	for round := range int64(3) {
		off := (10 + 20*round) * cs
		c.write(make([]byte, 15*cs), off)
		require.NoError(t, im.Discard(t.Context(), off, 15*cs, 0))
		clear(m.content[off : off+15*cs])
		for i := range int64(12) { // several reservations
			p := bytes.Repeat([]byte{byte(i + 2)}, cs)
			c.write(p, (110+20*round+i)*cs)
			m.put(t, im, p, (110+20*round+i)*cs)
		}
		if round == 1 {
			require.NoError(t, im.Flush(t.Context()))
			c.flush()
		}
	}
	f.Hook(nil, nil)
	c.judge(t, m)
	require.NoError(t, im.Close())
	m.judge(t, m.disk)
}
