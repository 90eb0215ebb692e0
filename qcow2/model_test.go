package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// step does one random request on the image and on the array.
func (m *made) step(ctx context.Context, im *qcow2.Image, rng *rand.Rand, from, end int64) error {
	off := from + rng.Int64N(end-from)
	n := min(1+rng.Int64N(1+rng.Int64N(80<<10)), end-off)
	if rng.IntN(3) > 0 {
		off = max(off&^(sector-1), from)
		n = min((n+sector-1)&^(sector-1), end-off)
	}
	at := m.content[off : off+n]
	flags := []qcow2.Flags{0, 0, 0, qcow2.FUA}[rng.IntN(4)]
	switch rng.IntN(8) {
	case 0:
		clear(at)
		return im.WriteZeroes(ctx, off, n, flags)
	case 1:
		clear(at)
		return im.WriteZeroes(ctx, off, n, flags|qcow2.MayUnmap)
	case 2:
		if err := im.Discard(ctx, off, n, flags); err != nil {
			return err
		}
		got := make([]byte, n)
		if err := im.ReadAt(ctx, got, off, 0); err != nil {
			return err
		}
		for i := range got {
			if got[i] != at[i] && got[i] != 0 {
				return fmt.Errorf("discarded byte %d reads %d; it was %d", off+int64(i), got[i], at[i])
			}
		}
		copy(at, got)
	case 3:
		return im.Flush(ctx)
	case 4, 5:
		got := make([]byte, n)
		if err := im.ReadAt(ctx, got, off, 0); err != nil {
			return err
		}
		for i := range got {
			if got[i] != at[i] {
				return fmt.Errorf("byte %d reads %d instead of %d", off+int64(i), got[i], at[i])
			}
		}
	default:
		for i := range at {
			at[i] = byte(rng.Uint32())
		}
		if err := im.WriteAt(ctx, at, off, flags|qcow2.NoWait); !errors.Is(err, block.ErrWouldBlock) {
			return err
		}
		return im.WriteAt(ctx, at, off, flags)
	}
	return nil
}

// clients lets n clients, each in a part of the disk whose ends share clusters
// with its neighbours', do random requests at once.
func (m *made) clients(t *testing.T, im *qcow2.Image, seed uint64, n, rounds int) {
	t.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for c := range n {
		from, end := m.size*int64(c)/int64(n), m.size*int64(c+1)/int64(n)
		wg.Go(func() {
			rng := testenv.Rand(seed + uint64(c))
			for i := range rounds {
				if err := m.step(context.Background(), im, rng, from, end); err != nil {
					errs[c] = fmt.Errorf("client %d, request %d: %w", c, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
}

// TestModel: random requests by several clients leave what an array of bytes
// would hold, in memory, after reopening, and in the eyes of QEMU. Discarded
// clusters at the ends of a client's part are its own.
func TestModel(t *testing.T) {
	for _, s := range subjects() {
		t.Run(s.name, func(t *testing.T) {
			seed, rng := testenv.Seed(t)
			for round := range scaled(16) {
				m := s.make(t)
				o := qcow2.Options{ReserveBytes: 128 << 10, CacheBytes: 16 << 10}
				if round%2 == 0 {
					o.RedoDir = t.TempDir()
				}
				for part := range 3 {
					im := m.open(t, m.disk, o)
					m.clients(t, im, seed+uint64(round*10+part), 1+rng.IntN(8), 70)
					got := make([]byte, m.size)
					require.NoError(t, im.ReadAt(t.Context(), got, 0, 0))
					requireSame(t, m.content, got, "the disk")
					require.NoError(t, im.Close())
				}
				if round%4 == 0 {
					m.judge(t, m.disk)
				}
			}
		})
	}
}
