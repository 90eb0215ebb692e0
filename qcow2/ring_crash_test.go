package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// TestCompletedWritesSurviveTheProcess (design review 2.6): the process dies under a
// client, which reconnects, goes on, flushes, and then the power fails. Every write
// that completed is there, also those that completed in the process that died: the
// flush covers them, and nobody writes them again.
func TestCompletedWritesSurviveTheProcess(t *testing.T) {
	for i, s := range subjects() {
		if testing.Short() && i%3 != 0 {
			continue
		}
		for _, ring := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, ring %v", s.name, ring), func(t *testing.T) {
				_, rng := testenv.Seed(t)
				m := s.make(t)
				o := qcow2.Options{CommitInterval: -1, ReserveBytes: 64 << 10, CacheBytes: 16 << 10}
				if ring {
					o.RedoDir = t.TempDir()
				}
				for range 3 {
					im := m.open(t, m.disk, o)
					for range 25 {
						require.NoError(t, m.step(t.Context(), im, rng, 0, m.size))
					}
					for range 25 { // as many that no flush follows
						off := rng.Int64N(m.size-sector) &^ (sector - 1)
						copy(m.content[off:], bytes.Repeat([]byte{byte(rng.Uint32())}, sector))
						require.NoError(t, im.WriteAt(t.Context(), m.content[off:off+sector], off, 0))
					}
					im.WaitIdle() // and dies: it does nothing any more
				}
				survivor := m.open(t, m.disk, o)
				require.NoError(t, survivor.Flush(t.Context()), "of what it did not write itself")
				survivor.WaitIdle()
				m.disk = m.disk.Crash(simdisk.DropAll)
				o.RedoDir = "" // a power cut takes the ring too
				im := m.open(t, m.disk, o)
				got := make([]byte, m.size)
				require.NoError(t, im.ReadAt(t.Context(), got, 0, 0))
				requireSame(t, m.content, got, "what completed")
				require.NoError(t, im.Close())
				m.judge(t, m.disk)
			})
		}
	}
}

// TestCompletedInAnothersCluster: a write into a cluster that another request has
// taken, and whose entry that one may not have written yet, survives the death of the
// process when it is complete.
func TestCompletedInAnothersCluster(t *testing.T) {
	const slow = 3 * sector // the length of the write that takes the cluster
	for name, beside := range map[string]func(im *qcow2.Image, want []byte) error{
		"write": func(im *qcow2.Image, want []byte) error { return im.WriteAt(t.Context(), want, 8*sector, 0) },
		"write inline": func(im *qcow2.Image, want []byte) error {
			err := im.WriteAt(t.Context(), want, 8*sector, block.NoWait)
			if errors.Is(err, block.ErrWouldBlock) {
				err = im.WriteAt(t.Context(), want, 8*sector, 0)
			}
			return err
		},
		"zero": func(im *qcow2.Image, want []byte) error {
			clear(want)
			return im.WriteZeroes(t.Context(), 8*sector, int64(len(want)), 0)
		},
	} {
		for _, ring := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, ring %v", name, ring), func(t *testing.T) {
				d := simdisk.New(0, simdisk.Options{Foreign: true})
				require.NoError(t, qcow2.Create(t.Context(), d, qcow2.CreateOptions{Size: 1 << 20}))
				f := faultfile.New(d, faultfile.Fault{})
				o := qcow2.Options{CommitInterval: -1}
				if ring {
					o.RedoDir = t.TempDir()
				}
				im, err := qcow2.Open(t.Context(), f, o)
				require.NoError(t, err)
				taken := stopsOf(f).at(func(op faultfile.Op) bool { return op.Kind == faultfile.Write && op.Len == slow })
				var wg sync.WaitGroup
				wg.Go(func() {
					if err := im.WriteAt(t.Context(), make([]byte, slow), 0, 0); err != nil {
						t.Error(err)
					}
				})
				<-taken.reached
				want := bytes.Repeat([]byte{7}, 8*sector)
				require.NoError(t, beside(im, want))
				k := &crasher{t: t, disk: d, redo: o.RedoDir}
				left, redo, ok := k.processDies()
				require.True(t, ok)
				taken.release()
				wg.Wait()
				require.NoError(t, im.Close())

				again, err := qcow2.Open(t.Context(), left, qcow2.Options{RedoDir: redo})
				require.NoError(t, err)
				got := make([]byte, len(want))
				require.NoError(t, again.ReadAt(t.Context(), got, 8*sector, 0))
				require.Equal(t, want, got)
				<-again.Settled()
				require.NoError(t, again.Close())
				requireClean(t, left)
			})
		}
	}
}
