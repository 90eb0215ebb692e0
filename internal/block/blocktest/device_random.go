package blocktest

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
)

// unitOf is the smallest unit the suite uses on d.
func unitOf(d block.Device) int { return max(d.Info().MinBlock, 16) }

// fuaFlag is FUA if yes and d is able to.
func fuaFlag(d block.Device, yes bool) block.Flags {
	if yes && d.Info().CanFUA {
		return block.FUA
	}
	return 0
}

// readDevice reads n bytes, in pieces that d allows.
func readDevice(t *testing.T, d block.Device, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	step := n
	if m := d.Info().MaxTransfer; m > 0 {
		step = min(n, m)
	}
	for at := 0; at < n; at += step {
		require.NoError(t, d.ReadAt(t.Context(), p[at:min(at+step, n)], off+int64(at), 0))
	}
	return p
}

func deviceRandom(t *testing.T, d block.Device) {
	_, rng := testenv.Seed(t)
	want := make([]byte, deviceSize)
	for step := range randomOps {
		deviceStep(t, d, want, rng, step)
	}
	require.Equal(t, -1, firstDifference(want, readDevice(t, d, 0, deviceSize)), "first byte that differs")
	checkExtents(t, d, want, 0, deviceSize)
}

func deviceStep(t *testing.T, d block.Device, want []byte, rng *rand.Rand, step int) {
	t.Helper()
	ctx, in := t.Context(), d.Info()
	off, n := randomRange(rng, int64(len(want)), int64(in.MinBlock))
	f := fuaFlag(d, rng.IntN(8) == 0)
	switch op := rng.IntN(20); {
	case op < 8:
		p := pattern(rng.Uint64(), int(n))
		require.NoError(t, d.WriteAt(ctx, p, off, f), "step %d", step)
		copy(want[off:], p)
	case op < 13:
		at := firstDifference(want[off:off+n], readDevice(t, d, off, int(n)))
		require.Equal(t, -1, at, "step %d: byte of the %d at %d that differs", step, n, off)
	case op < 15 && in.CanZero:
		if rng.IntN(2) == 0 {
			f |= block.MayUnmap
		}
		require.NoError(t, d.WriteZeroes(ctx, off, n, f), "step %d", step)
		clear(want[off : off+n])
	case op < 17 && in.CanDiscard:
		require.NoError(t, d.Discard(ctx, off, n, f), "step %d", step)
		got := readDevice(t, d, off, int(n))
		requireOldOrZero(t, want[off:off+n], got)
		copy(want[off:], got)
	case op < 19:
		checkExtents(t, d, want, off, n)
	default:
		require.NoError(t, d.Flush(ctx))
	}
}
