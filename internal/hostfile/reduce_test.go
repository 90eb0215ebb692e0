//go:build linux

package hostfile_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
)

// TestDelayedDuplicateReduce (design review 4.6): a reduction is sent, its reply is lost,
// it is sent again and done; the file grows and is written; then the first one arrives.
// It compares the size and does nothing. What a size cannot tell, a file that has come
// back to the same one, is for the generation in the request of whoever sends them.
func TestDelayedDuplicateReduce(t *testing.T) {
	const mib = 1 << 20
	ctx := t.Context()
	f, err := hostfile.Create(filepath.Join(t.TempDir(), "volume"), 8*mib, hostfile.CreateOptions{})
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Shrink(ctx, 8*mib, 5*mib))
	require.ErrorIs(t, f.Shrink(ctx, 8*mib, 5*mib), block.ErrStale, "at once")
	size, err := f.Grow(ctx, 10*mib, 10*mib)
	require.NoError(t, err)
	require.EqualValues(t, 10*mib, size)
	data := bytes.Repeat([]byte{7}, 4096)
	_, err = f.WriteAt(data, 7*mib)
	require.NoError(t, err)
	require.ErrorIs(t, f.Shrink(ctx, 8*mib, 5*mib), block.ErrStale, "after the growth")
	require.EqualValues(t, 10*mib, f.Size())
	got := make([]byte, len(data))
	_, err = f.ReadAt(got, 7*mib)
	require.NoError(t, err)
	require.Equal(t, data, got)
}
