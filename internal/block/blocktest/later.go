package blocktest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// ended is a block.Later that passes on what it is told.
type ended chan bool

func (e ended) Ended(ok bool) { e <- ok }

// writeLater begins several writes, and does again what was not begun or did not work.
// It returns what was written, at 0.
func writeLater(t *testing.T, begin func([]byte, int64, block.Later) bool, write func([]byte, int64) error) []byte {
	const n, size = 40, 8192
	want := pattern(19, n*size)
	var told [n]ended
	for i := range told {
		p := append([]byte{}, want[i*size:][:size]...)
		if to := make(ended, 2); begin(p, int64(i)*size, to) {
			told[i] = to
			continue
		}
		require.NoError(t, write(p, int64(i)*size))
	}
	for i, to := range told {
		if to != nil && !<-to {
			require.NoError(t, write(want[i*size:][:size], int64(i)*size))
		}
		require.Empty(t, to, "it is told once")
	}
	return want
}

// deviceLater: a write that was begun is done when its end is told, and what cannot be
// is not begun.
func deviceLater(t *testing.T, d block.Device) {
	write := func(p []byte, off int64) error { return d.WriteAt(t.Context(), p, off, 0) }
	for range 2 { // the second time in place
		want := writeLater(t, d.WriteLater, write)
		require.Equal(t, want, readDevice(t, d, 0, len(want)))
	}
	require.False(t, d.WriteLater(make([]byte, 8192), deviceSize-4096, nil), "beyond the end")
	require.NoError(t, d.Close())
	require.False(t, d.WriteLater(make([]byte, 4096), 0, nil), "closed")
}

// fileLater is the same for a File.
func fileLater(t *testing.T, f block.File) {
	want := writeLater(t, f.WriteLater, func(p []byte, off int64) error { _, err := f.WriteAt(p, off); return err })
	got := make([]byte, len(want))
	_, err := f.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.False(t, f.WriteLater(make([]byte, 8192), fileSize-4096, nil), "beyond the end")
	require.NoError(t, f.Close())
	require.False(t, f.WriteLater(make([]byte, 4096), 0, nil), "closed")
}
