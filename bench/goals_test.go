//go:build !race

package bench

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/qcow2"
)

// TestMetadataIsBounded: what is kept of metadata does not grow with the disk. 64 MiB
// are all of it, reference counts and what finds it included.
func TestMetadataIsBounded(t *testing.T) {
	bytes := metadata(t, 16<<40)
	t.Logf("measured: %.1f MiB of metadata in memory, of a disk of 16 TiB", bytes/(1<<20))
	require.Less(t, bytes, 64.0*(1<<20))
}

// TestOpenIsQuick: opening is a matter of milliseconds whatever the size. The best of
// several is judged, as the machine is others' too.
func TestOpenIsQuick(t *testing.T) {
	f := newMappedFile(16 << 40)
	best := time.Hour
	for range 5 {
		began := time.Now()
		im, err := qcow2.Open(t.Context(), f, qcow2.Options{CommitInterval: -1})
		best = min(best, time.Since(began))
		require.NoError(t, err)
		require.NoError(t, im.Close())
	}
	t.Logf("measured: an image of 16 TiB opens in %v", best.Round(100*time.Microsecond))
	require.Less(t, best, 50*time.Millisecond)
}
