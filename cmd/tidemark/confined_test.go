package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
	"tidemark/spm"
)

// A volume whose file, or whose image, is a symbolic link is opened neither by who serves
// it, or what is based on it, nor by who works on it, whatever its manager says.
func TestVolumeThatIsALink(t *testing.T) {
	for name, of := range map[string]func(volume string) string{
		"volume": func(volume string) string { return volume },
		"image":  filepath.Dir,
	} {
		t.Run(name, func(t *testing.T) {
			p := newChainPool(t, chainSpec{name: "base", size: 1 << 20}, chainSpec{name: "top", size: 1 << 20, parent: "base"})
			chain := p.places(t, "base", "top")
			linked := of(chain[0].Path)
			outside := filepath.Join(t.TempDir(), "outside")
			require.NoError(t, os.Rename(linked, outside))
			require.NoError(t, os.Symlink(outside, linked))
			for _, readOnly := range []bool{true, false} {
				for _, volume := range []string{"base", "top"} {
					_, err := openDisk(t.Context(), diskSpec{Image: p.id(volume), Pool: p, ReadOnly: readOnly})
					require.ErrorIs(t, err, hostfile.ErrLink)
				}
			}
			require.ErrorContains(t, testJobs().Check(t.Context(), chain[:1]), "no symbolic link")
			require.ErrorContains(t, testJobs().Commit(t.Context(), chain, 0, nil), "no symbolic link")
			require.ErrorContains(t, testJobs().Copy(t.Context(), chain[1:], chain[0], nil, nil), "no symbolic link")

			chain[1].Beneath = ""
			require.ErrorIs(t, testJobs().Check(t.Context(), []spm.Place{chain[1]}), hostfile.ErrLink, "nobody has said where it lies")
		})
	}
}
