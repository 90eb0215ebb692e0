//go:build linux

package main_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// The server is killed while fio writes with fsync and a ledger keeps account of
// what was flushed; on an image in a file, and on a volume of a pool. Every time
// the image is as good as new but for leaks, opens by itself, and holds every
// write that was flushed.
func TestServerKilledUnderFio(t *testing.T) {
	t.Run("image", func(t *testing.T) {
		dir := workspace(t)
		image := filepath.Join(dir, "disk.qcow2")
		ok(t, "create", "-f", "qcow2", image, "2G")
		killServer(t, serve(t, dir, image), image, 10)
	})
	t.Run("volume", func(t *testing.T) {
		dir := workspace(t)
		p := newPool(t, filepath.Join(dir, "pool"), 4*gib)
		v := p.create("disk", 2*gib)
		killServer(t, p.serve("disk"), v.Path, 5)
		p.requireSum()
	})
}

// killServer kills the server again and again, and looks at what is left.
func killServer(t *testing.T, s *server, image string, kills int) {
	t.Helper()
	_, rng := testenv.Seed(t)
	l := newLedger()
	settled := []string{"--rw=randwrite", "--bs=4k", "--iodepth=8", "--offset=64m", "--size=16m", "--randseed=7", "--verify=crc32c"}
	_, err := startFio(t, s, append(settled, "--do_verify=0", "--end_fsync=1")...).wait(time.Minute)
	require.NoError(t, err)
	leaks, newer := 0, 0
	for i := range kills {
		killUnderLoad(t, s, l, rng, 1+i%4)
		r := imageState(t, image)
		require.Contains(t, []int{0, 3}, r.ExitCode, "kill %d: clean or leaks at worst: %s", i+1, r)
		if r.ExitCode == 3 {
			leaks++
		}
		s.start()
		newer += l.verify(t, s.dial())
		_, err := startFio(t, s, append(settled, "--verify_only", "--verify_fatal=1")...).wait(time.Minute)
		require.NoError(t, err, "kill %d: what had been written and flushed before", i+1)
	}
	t.Logf("%d kills: %d left leaks; %d operations were proven durable, %d sectors were newer than that",
		kills, leaks, l.proven.Load(), newer)
	require.Greater(t, l.proven.Load(), int64(100*kills), "operations that were flushed")
	s.stop()
	require.Contains(t, []int{0, 3}, imageState(t, image).ExitCode)
}

// The range of the disk in which fio makes the load.
const loadFrom, loadSize = 128 * mib, gib

// hasData reports whether fio has written anything.
func hasData(t *testing.T, c *nbd.Client) bool {
	t.Helper()
	extents, err := c.AppendExtents(t.Context(), nil, loadFrom, loadSize)
	require.NoError(t, err)
	return slices.ContainsFunc(extents, func(e block.Extent) bool { return e.State.Has(block.Data) })
}

// killUnderLoad kills the server at some moment at which fio and the ledger are
// busy. What fio wrote before is discarded first, so that it allocates again,
// out of space that was used.
func killUnderLoad(t *testing.T, s *server, l *ledger, rng *rand.Rand, fsync int) {
	t.Helper()
	c := s.dial()
	require.NoError(t, c.Discard(t.Context(), loadFrom, loadSize, 0))
	require.NoError(t, c.Flush(t.Context()))
	require.False(t, hasData(t, c), "the range of fio after a discard")
	load := startFio(t, s, "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=8",
		fmt.Sprintf("--offset=%d", loadFrom), fmt.Sprintf("--size=%d", loadSize),
		fmt.Sprintf("--fsync=%d", fsync), fmt.Sprintf("--randseed=%d", rng.Uint32()), "--time_based", "--runtime=60")
	busy, wait := l.run(s, rng)
	select {
	case <-busy:
	case <-time.After(startLimit):
		t.Fatalf("no three flushes within %v", startLimit)
	}
	testenv.Eventually(t, startLimit, "fio writes", func() bool { return hasData(t, c) })
	moment := time.NewTimer(time.Duration(rng.IntN(600)) * time.Millisecond)
	select {
	case <-moment.C:
	case <-load.proc.Done():
		_, err := load.wait(0)
		t.Fatalf("fio ended before the server was killed: %v", err)
	}
	s.proc.Kill()
	wait()
	if _, err := load.wait(stopLimit); err == nil {
		t.Fatal("fio did not notice that the server was killed: it was not writing")
	}
}

// A guest that goes on after its server was killed has not lost its memory: what
// it was told is written has to be there, flushed or not.
func TestServerKilledWithoutFlush(t *testing.T) {
	dir := workspace(t)
	image := filepath.Join(dir, "disk.qcow2")
	ok(t, "create", "-f", "qcow2", image, "64G")
	s := serve(t, dir, image)
	const writes, apart = 64, gib // each needs an L2 table of its own
	c := s.dial()
	for i := range int64(writes) {
		require.NoError(t, c.WriteAt(t.Context(), patterned(uint64(i), i*apart, mib), i*apart, 0))
	}
	zeroes := make([]byte, 128<<10)
	require.NoError(t, c.WriteZeroes(t.Context(), 0, int64(len(zeroes)), 0))
	s.proc.Kill()
	require.Contains(t, []int{0, 3}, imageState(t, image).ExitCode)
	s.start()
	c = s.dial()
	got := make([]byte, len(zeroes))
	require.NoError(t, c.ReadAt(t.Context(), got, 0, 0))
	require.Equal(t, zeroes, got)
	requirePattern(t, c, 0, int64(len(zeroes)), mib-int64(len(zeroes)))
	for i := int64(1); i < writes; i++ {
		requirePattern(t, c, uint64(i), i*apart, mib)
	}
	s.stop()
}
