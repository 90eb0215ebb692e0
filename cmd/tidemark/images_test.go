package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/qcow2"
	"tidemark/spm"
)

func grantedFile(t *testing.T, n int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "volume")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, n))
	return path
}

// createIn makes an image in the file at path, as a pool does.
func createIn(t *testing.T, path string, o spm.CreateImage) error {
	t.Helper()
	f, err := hostfile.Open(path, hostfile.Options{Fixed: true})
	require.NoError(t, err)
	defer f.Close()
	return images{}.Create(t.Context(), f, o)
}

func TestImagesCreate(t *testing.T) {
	const granted = 1 << 20
	path := grantedFile(t, granted)
	require.NoError(t, createIn(t, path, spm.CreateImage{Size: 10 << 30, Format: spm.FormatQCOW2}))

	f, err := hostfile.Open(path, hostfile.Options{ReadOnly: true})
	require.NoError(t, err)
	defer f.Close()
	require.EqualValues(t, granted, f.Size(), "the size is the pool's")
	h, err := qcow2.ReadHeader(f)
	require.NoError(t, err)
	require.EqualValues(t, 10<<30, h.Size)
	r, err := qcow2.Check(t.Context(), f, qcow2.CheckOptions{})
	require.NoError(t, err)
	require.True(t, r.Clean(), "%+v", r)
}

func TestImagesCreateRefuses(t *testing.T) {
	small := grantedFile(t, 64<<10)
	err := createIn(t, small, spm.CreateImage{Size: 10 << 30, Format: spm.FormatQCOW2})
	require.ErrorIs(t, err, block.ErrNoSpace, "more than was granted")
	err = createIn(t, small, spm.CreateImage{Size: 1 << 20, Format: spm.FormatRaw})
	require.ErrorIs(t, err, block.ErrUnsupported)
}

func TestImagesBound(t *testing.T) {
	const virtual = 10 << 30
	bound := images{}.Bound(spm.CreateImage{Size: virtual, Format: spm.FormatQCOW2})
	require.Greater(t, bound, int64(virtual))
	require.Less(t, bound, int64(virtual+virtual/100), "metadata is below one percent")
	require.EqualValues(t, -1, images{}.Bound(spm.CreateImage{Size: -1}), "no image can have that size")
}
