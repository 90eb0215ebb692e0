//go:build linux

package hostfile_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
)

// TestPieces: what takes several system calls, from and to places that no piece begins
// at, is as if it took one.
func TestPieces(t *testing.T) {
	const size = 64 << 20
	_, rng := testenv.Seed(t)
	f, err := hostfile.Create(filepath.Join(t.TempDir(), "disk"), size, hostfile.CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	model := make([]byte, size)
	same := func() {
		t.Helper()
		got := make([]byte, size)
		_, err := f.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(model, got))
	}
	for i := range 8 {
		off := rng.Int64N(size / 2)
		p := bytes.Repeat([]byte{byte(i + 1)}, 1+rng.IntN(3<<20))
		n, err := f.WriteAt(p, off)
		require.NoError(t, err)
		require.Equal(t, len(p), n)
		copy(model[off:], p)
	}
	same()
	for i, zero := range []func(off, n int64) error{f.Discard, f.WriteZeroes} {
		off, n := 4096+rng.Int64N(1<<20), 33<<20+rng.Int64N(1<<20)
		p := bytes.Repeat([]byte{byte(i + 100)}, size)
		_, err := f.WriteAt(p, 0)
		require.NoError(t, err)
		copy(model, p)
		require.NoError(t, zero(off, n))
		clear(model[off : off+n])
		same()
	}
}
