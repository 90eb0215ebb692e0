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

// countedFile counts what is read of the metadata of a disk that is mapped as a whole.
type countedFile struct {
	*mappedFile
	reads int
}

func (f *countedFile) ReadAt(p []byte, off int64) (int, error) {
	if off < f.hollow {
		f.reads++
	}
	return f.mappedFile.ReadAt(p, off)
}

// TestMapStaysInMemory: the memory for metadata holds the whole map of 768 GiB, as
// qcow2.Options.CacheBytes says, however its clusters lie.
func TestMapStaysInMemory(t *testing.T) {
	const size, perSlice = int64(768) << 30, int64(32) << 20
	for _, scattered := range []bool{false, true} {
		mapStaysInMemory(t, size, perSlice, scattered)
	}
}

func mapStaysInMemory(t *testing.T, size, perSlice int64, scattered bool) {
	f := &countedFile{mappedFile: newMappedFile(size)}
	f.scattered = scattered
	im, err := qcow2.Open(t.Context(), f, qcow2.Options{CommitInterval: -1})
	require.NoError(t, err)
	defer im.Close()
	p := make([]byte, blockSize)
	pass := func() int {
		before := f.reads
		for off := int64(0); off < size; off += perSlice {
			require.NoError(t, im.WriteAt(t.Context(), p, off, 0))
		}
		return f.reads - before
	}
	require.EqualValues(t, size/perSlice, pass(), "each slice of the map is read once")
	require.Zero(t, pass())
}
