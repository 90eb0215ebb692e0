package spm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// A volume that has lost its metadata or its file is damaged: it is shown, its space counts,
// and nothing of its image is written to, merged, moved or removed without it.
func TestVolumeThatHasLostAFile(t *testing.T) {
	for what, lose := range map[string]func(path string) string{
		"metadata": func(path string) string { return path + extMeta },
		"file":     func(path string) string { return path },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, 2, false)
			image := uuid.New()
			a := w.volume(image, uuid.Nil, "a")
			b := w.volume(image, a, " b")
			granted, size := pool(t, w.m[0]).Granted, w.m[0].info(b).Granted
			path := w.m[0].info(b).Path
			lost, aside := lose(path), filepath.Join(t.TempDir(), "aside")
			require.NoError(t, os.Rename(lost, aside))
			w.restart()

			if what == "file" {
				granted -= size
			}
			require.Equal(t, granted, pool(t, w.m[0]).Granted)
			require.Contains(t, volumeOf(t, w.m[0], b.String()).Damaged, lost)
			del := func(force bool, ids ...uuid.UUID) error {
				return third(w.ops.deleteVolumes(t.Context(), DeleteVolumes{Domain: w.domain(), Image: image, Volumes: ids, Force: force}))
			}
			snapshot := w.newVolume(image, uuid.New())
			snapshot.Parent = a
			for what, err := range map[string]error{
				"prepare":  second(w.ops.prepare(t.Context(), w.at(image, uuid.Nil), PrepareOptions{})),
				"snapshot": third(w.ops.createVolume(t.Context(), snapshot)),
				"merge":    third(w.merge(image, a, b)),
				"extend":   third(w.ops.extendVolumeSize(t.Context(), w.at(image, a), 2*gib)),
				"delete":   del(true, a),
				"move":     third(w.ops.moveImage(t.Context(), MoveImage{From: w.domain(), To: w.m[1].ident.domain, Image: image})),
			} {
				require.Error(t, err, what)
				require.Equal(t, CodeDamaged, CodeOf(err), "%s: %v", what, err)
				require.ErrorContains(t, err, b.String(), what)
			}
			requireCode(t, CodeIllegal, third(w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})))
			require.NoError(t, os.Rename(aside, lost)) // mended
			w.restart()
			w.consistent()
			_, shows := w.leaf(w.m[0], image)
			require.Equal(t, "ab", shows)

			require.NoError(t, os.Remove(lost))
			w.restart()
			kind, args, err := w.ops.deleteVolumes(t.Context(), DeleteVolumes{Domain: w.domain(), Image: image, Volumes: []uuid.UUID{b}, Force: true})
			w.must(kind, args, err)
			w.consistent()
			leaf, shows := w.leaf(w.m[0], image)
			require.Equal(t, a, leaf)
			require.Equal(t, "a", shows)

			require.NoError(t, os.Remove(lose(w.m[0].info(a).Path)))
			w.restart()
			kind, args, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image, Force: true})
			w.must(kind, args, err)
			require.NoDirExists(t, filepath.Dir(path))
			require.Zero(t, pool(t, w.m[0]).Granted)
		})
	}
}
