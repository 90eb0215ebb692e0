package blocktest

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
)

// randomOps is the length of the random sequences; with a fast implementation
// it takes well under a second.
const randomOps = 600

// fileModel is what a File must read as.
type fileModel struct {
	data    []byte
	unknown []bool // discarded and not written since: any content will do
}

func newFileModel(data []byte) *fileModel {
	return &fileModel{data: data, unknown: make([]bool, len(data))}
}

func (m *fileModel) set(off int64, p []byte) {
	copy(m.data[off:], p)
	clear(m.unknown[off : off+int64(len(p))])
}

func (m *fileModel) discard(off, n int64) {
	for i := off; i < off+n; i++ {
		m.unknown[i] = true
	}
}

// grow takes over what f reads as in the new space: zeroes, or whatever was there.
func (m *fileModel) grow(size int64, fresh []byte, known bool) {
	old := int64(len(m.data))
	m.data = append(m.data, fresh...)
	m.unknown = append(m.unknown, make([]bool, size-old)...)
	if !known {
		m.discard(old, size-old)
	}
}

func (m *fileModel) check(t *testing.T, off int64, got []byte, step int) {
	t.Helper()
	for i, b := range got {
		if at := off + int64(i); !m.unknown[at] && m.data[at] != b {
			t.Fatalf("step %d: byte %d of the file: expected %#x, found %#x", step, at, m.data[at], b)
		}
	}
}

func fileRandom(t *testing.T, f block.File) {
	_, rng := testenv.Seed(t)
	m := newFileModel(make([]byte, fileSize))
	if !f.Info().FreshZero {
		m.discard(0, fileSize)
	}
	for step := range randomOps {
		fileStep(t, f, m, rng, step)
	}
	m.check(t, 0, readFile(t, f, 0, len(m.data)), randomOps)
	require.NoError(t, f.Sync())
	m.check(t, 0, readFile(t, f, 0, len(m.data)), randomOps)
}

func fileStep(t *testing.T, f block.File, m *fileModel, rng *rand.Rand, step int) {
	t.Helper()
	off, n := randomRange(rng, int64(len(m.data)), int64(f.Info().Align))
	switch op := rng.IntN(20); {
	case op < 7:
		p := aligned(f, pattern(rng.Uint64(), int(n)))
		_, err := f.WriteAt(p, off)
		require.NoError(t, err)
		m.set(off, p)
	case op < 8:
		p := aligned(f, pattern(rng.Uint64(), int(n)))
		_, err := f.WriteAtSync(p, off)
		require.NoError(t, err)
		m.set(off, p)
	case op < 14:
		m.check(t, off, readFile(t, f, off, int(n)), step)
	case op < 16:
		require.NoError(t, f.WriteZeroes(off, n))
		m.set(off, make([]byte, n))
	case op < 18:
		require.NoError(t, f.Discard(off, n))
		m.discard(off, n)
	case op < 19:
		require.NoError(t, f.Sync())
	default:
		randomResize(t, f, m, rng)
	}
}

// randomResize grows the file, or shrinks one that became large.
func randomResize(t *testing.T, f block.File, m *fileModel, rng *rand.Rand) {
	t.Helper()
	old := int64(len(m.data))
	if old > 2*fileSize {
		if err := f.Shrink(t.Context(), old, fileSize); err != nil {
			require.ErrorIs(t, err, block.ErrUnsupported)
			return
		}
		m.data, m.unknown = m.data[:fileSize], m.unknown[:fileSize]
		return
	}
	need := old + rng.Int64N(32)*4096
	size, err := f.Grow(t.Context(), need, need+rng.Int64N(32)*4096)
	require.NoError(t, err)
	require.GreaterOrEqual(t, size, need)
	fresh := make([]byte, size-old)
	m.grow(size, fresh, f.Info().FreshZero)
}

// randomRange returns a range of at least one byte in [0, size), mostly small,
// at multiples of align.
func randomRange(rng *rand.Rand, size, align int64) (off, n int64) {
	units := size / align
	most := int64(64)
	switch rng.IntN(8) {
	case 0:
		most = 1
	case 1:
		most = 128 << 10
	case 2, 3:
		most = 9000
	}
	most = max(1, most/align)
	at := rng.Int64N(units)
	if rng.IntN(2) == 0 {
		at &^= max(4096/align, 1) - 1 // at a page
	}
	return at * align, (1 + rng.Int64N(min(most, units-at))) * align
}
