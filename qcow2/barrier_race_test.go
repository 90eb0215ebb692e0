package qcow2_test

import (
	"context"
	"encoding/binary"
	"maps"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// A copyWatch is the file of an image with clusters of two slices. It knows which of
// them were written as a whole since a Sync, as copies are, and looks for them in every
// L2 slice that is written.
type copyWatch struct {
	*simdisk.Disk

	mu      sync.Mutex
	pending map[int64]bool // host offsets of clusters that no Sync covers yet
	early   int            // entries that were written before such a Sync
}

const watchedCluster = 8192

func (w *copyWatch) WriteAt(p []byte, off int64) (int, error) {
	const copied, host = 1 << 63, 1<<56 - 1<<9 // specification, standard cluster descriptor
	w.mu.Lock()
	for i := 0; len(p) == watchedCluster/2 && i < len(p); i += 8 {
		if e := binary.BigEndian.Uint64(p[i:]); e&copied != 0 && w.pending[int64(e&host)] {
			w.early++
		}
	}
	w.mu.Unlock()
	n, err := w.Disk.WriteAt(p, off)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(p) == watchedCluster {
		w.pending[off] = true
	}
	return n, err
}

func (w *copyWatch) Sync() error {
	w.mu.Lock()
	covered := maps.Clone(w.pending)
	w.mu.Unlock()
	err := w.Disk.Sync()
	w.mu.Lock()
	defer w.mu.Unlock()
	maps.DeleteFunc(w.pending, func(off int64, _ bool) bool { return covered[off] })
	return err
}

// A fullBacking is a backing file without holes.
type fullBacking struct {
	block.Device
	size int64
}

func (b fullBacking) Info() block.DeviceInfo { return block.DeviceInfo{Size: b.size} }

func (b fullBacking) ReadAt(_ context.Context, p []byte, _ int64, _ block.Flags) error {
	for i := range p {
		p[i] = 0x5a
	}
	return nil
}

// TestCopiesWhileTablesAreStaged: clusters are copied while a commit takes its copies of
// many dirty tables, none of which needed a barrier before. An entry that comes into one
// of them meanwhile is not written before a Sync that covers the bytes it names.
func TestCopiesWhileTablesAreStaged(t *testing.T) {
	const slices, entries, rounds, writers, copies = 128, watchedCluster / 16, 200, 2, 32
	const size = slices * entries * watchedCluster
	ctx := t.Context()
	seed, _ := testenv.Seed(t)
	w := &copyWatch{Disk: newDisk(t, qcow2.CreateOptions{Size: size, ClusterSize: watchedCluster, BackingFile: "base", BackingFormat: "raw"}), pending: map[int64]bool{}}
	im, err := qcow2.Open(ctx, w, qcow2.Options{Backing: fullBacking{size: size}, RedoDir: t.TempDir(), CommitInterval: -1})
	require.NoError(t, err)
	for r := range int64(scaled(rounds)) {
		for s := range int64(slices) { // dirty, and without bytes
			require.NoError(t, im.WriteZeroes(ctx, (s*entries+r)*watchedCluster, watchedCluster, qcow2.MayUnmap))
		}
		begin := make(chan struct{})
		var wg sync.WaitGroup
		for c := range writers {
			rng := testenv.Rand(seed + uint64(r*writers) + uint64(c))
			wg.Go(func() {
				<-begin
				for range copies {
					off := (int64(rng.IntN(slices)*entries+entries/2) + r) * watchedCluster
					if err := im.WriteAt(ctx, []byte{1}, off, 0); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Go(func() {
			<-begin
			if err := im.Flush(ctx); err != nil {
				t.Error(err)
			}
		})
		close(begin)
		wg.Wait()
		require.NoError(t, im.Flush(ctx))
	}
	require.NoError(t, im.Close())
	require.Zero(t, w.early, "entries that were written before the bytes that they name")
}
