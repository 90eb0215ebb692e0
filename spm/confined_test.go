package spm

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm/task"
)

// A volume of which a file, or the image, has become a symbolic link is neither served,
// extended, changed, merged nor deleted, whether or not its manager has started again; and
// where the link leads nothing changes.
func TestNothingLeadsOutOfADomain(t *testing.T) {
	for name, of := range map[string]func(volume string) string{
		"volume":   func(volume string) string { return volume },
		"metadata": func(volume string) string { return volume + extMeta },
		"image":    filepath.Dir,
	} {
		t.Run(name, func(t *testing.T) {
			h, base, leaf, _, _ := storedImages(t, "")
			m := h.active(base.Domain)
			linked := of(m.info(base.Volume).Path)
			outside := filepath.Join(t.TempDir(), "outside")
			require.NoError(t, os.Rename(linked, outside))
			require.NoError(t, os.Symlink(outside, linked))
			before := treeOf(t, outside)

			for what, err := range map[string]error{
				"serve":    second(h.PrepareImage(t.Context(), leaf, PrepareOptions{})),
				"extend":   second(m.ExtendVolume(t.Context(), extendRequest(base.Volume.String(), 200*mib, 0))),
				"change":   m.setMeta(t.Context(), base.Image, base.Volume, func(meta *volumeMeta) { meta.Priority = 7 }),
				"places":   second(m.places(leaf.Volume)),
				"unused":   m.unused(base.Image, base.Volume),
				"delete":   second(h.RemoveVolume(t.Context(), VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: base.Image.String()}})),
				"delete 1": m.dropVolume(t.Context(), base.Image, base.Volume, false),
			} {
				requireCode(t, CodeDamaged, err)
				require.ErrorContains(t, err, linked, what)
			}
			id, err := h.MergeVolumes(t.Context(), MergeVolumes{
				Pool: base.Pool, Domain: base.Domain, Image: base.Image, Ancestor: base.Volume, Successor: leaf.Volume,
			})
			if err == nil {
				s := endedTask(t, h, id)
				require.False(t, s.Success)
				require.Contains(t, s.Message, linked)
			}
			require.Equal(t, before, treeOf(t, outside))
			require.Equal(t, outside, readLink(t, linked))

			// The layers below refuse it, too: who changes something does not look first.
			v := m.volumes[base.Volume]
			if name != "metadata" {
				require.Error(t, second(m.store.extend(t.Context(), v, gib, gib)))
				require.Error(t, second(m.store.reduce(t.Context(), v, v.size, mib)))
				require.Error(t, second(m.store.hold(v)))
			}
			if name == "image" {
				require.Error(t, m.store.write(t.Context(), v, v.meta()))
				require.Error(t, m.store.create(t.Context(), m.newVolume(v.image, uuid.New(), v.meta()), nil))
				require.Error(t, second(m.store.remove(t.Context(), v)))
			}
			require.Equal(t, before, treeOf(t, outside))

			require.NoError(t, h.StopSPM(t.Context(), base.Pool))
			startSPM(t, h, base.Pool)
			_, err = h.PrepareImage(t.Context(), base, PrepareOptions{})
			require.Error(t, err)
			require.Equal(t, before, treeOf(t, outside))
		})
	}
}

// Nor do the records of tasks, also if the link was made under a manager.
func TestTasksLeadNowhere(t *testing.T) {
	for _, of := range []func(tasks string) string{filepath.Clean, filepath.Dir} {
		h, pool, domains := managed(t, t.TempDir())
		tasks := h.active(domains[0]).store.(*dirStore).domain.tasks()
		outside := t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(outside, filepath.Base(tasks)), modeDir))
		require.NoError(t, os.RemoveAll(of(tasks)))
		require.NoError(t, os.Symlink(outside, of(tasks)))
		before := treeOf(t, outside)
		_, err := h.CreateImageVolume(t.Context(), NewVolume{
			VolumeAt: VolumeAt{Pool: pool, Domain: domains[0], Image: uuid.New(), Volume: uuid.New()},
			Size:     mib, Format: Raw, Alloc: Sparse, Type: Leaf,
		})
		require.ErrorContains(t, err, tasks)
		require.Equal(t, before, treeOf(t, outside))
	}
}

func readLink(t *testing.T, path string) string {
	t.Helper()
	to, err := os.Readlink(path)
	require.NoError(t, err)
	return to
}

// treeOf is what is at a path: the names, lengths and times.
func treeOf(t *testing.T, path string) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(path, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			all[p] = fmt.Sprint(info.Mode(), info.Size(), info.ModTime())
		}
		return err
	}))
	return all
}

func endedTask(t *testing.T, h *Host, id uuid.UUID) (s TaskStatus) {
	t.Helper()
	eventually(t, func() bool {
		var err error
		s, err = h.TaskStatus(t.Context(), id)
		require.NoError(t, err)
		return task.State(s.State).Ended()
	})
	return s
}
