package qcow2_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// TestExtensionsBesideABackingName: QEMU writes the backing file's name right
// behind the extensions. Ours find room all the same, the name stays, and QEMU
// reads the header at every moment.
func TestExtensionsBesideABackingName(t *testing.T) {
	for _, s := range subjects() {
		if s.backing == 0 {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			m := s.make(t)
			name := mustHeader(t, m.disk).BackingFile
			o := qcow2.Options{RedoDir: t.TempDir(), ReserveBytes: 64 << 10}
			im := m.open(t, m.disk, o)
			require.NoError(t, im.WriteAt(t.Context(), pattern(1000), 1000<<10, 0))
			copy(m.content[1000<<10:], pattern(1000))
			h := mustHeader(t, m.disk)
			require.NotNil(t, h.Extension(format.ExtReserved))
			require.Equal(t, h.Version >= 3, h.Extension(format.ExtRedo) != nil)
			require.Equal(t, h.Version >= 3, h.Autoclear&format.AutoclearRedo != 0)
			require.Equal(t, name, h.BackingFile)
			require.Equal(t, m.backing > 0, h.BackingFormat() == "raw")
			dead := m.disk.Crash(simdisk.KeepAll)
			require.NoError(t, im.Close())
			require.Zero(t, mustHeader(t, m.disk).Autoclear)
			m.judge(t, m.disk)

			im = m.open(t, dead, o) // and without a second move
			require.NoError(t, im.Close())
			require.Equal(t, h.BackingOffset, mustHeader(t, dead).BackingOffset)
		})
	}
}

func mustHeader(t *testing.T, d *simdisk.Disk) *format.Header {
	t.Helper()
	h, err := qcow2.ReadHeader(d)
	require.NoError(t, err)
	return h
}
