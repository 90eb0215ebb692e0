package spm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// A syncWatch stands in for fsync: it notes what is made durable, in order, and
// what is there at that moment.
type syncWatch struct {
	t      *testing.T
	synced []string
	fail   error // the next one's
}

func (w *syncWatch) sync(f *os.File) error {
	if err := w.fail; err != nil {
		w.fail = nil
		return err
	}
	info, err := f.Stat()
	require.NoError(w.t, err)
	if info.IsDir() {
		entries, err := os.ReadDir(f.Name())
		require.NoError(w.t, err)
		names := make([]string, len(entries))
		for i, e := range entries {
			names[i] = e.Name()
		}
		w.synced = append(w.synced, f.Name()+": "+strings.Join(names, " "))
		return nil
	}
	w.synced = append(w.synced, fmt.Sprintf("%s %d", f.Name(), info.Size()))
	return nil
}

// take returns what was synced since the last take, with names for UUIDs. The
// sizes of metadata, which say nothing, are left out.
func (w *syncWatch) take(m *Manager, v Volume) []string {
	hide := strings.NewReplacer(domainOf(m).images()+"/", "", domainOf(m).images(), "images", v.VolumeUUID, "VOLUME", v.ImageUUID, "IMAGE")
	var out []string
	for _, s := range w.synced {
		if s = hide.Replace(s); strings.Contains(s, extMeta+extNew+" ") && !strings.Contains(s, ": ") {
			s, _, _ = strings.Cut(s, " ")
		}
		out = append(out, s)
	}
	w.synced = nil
	return out
}

func watchedPool(t *testing.T, dir string) (*Manager, *syncWatch) {
	w := &syncWatch{t: t}
	o := testOptions()
	o.sync = w.sync
	return openPool(t, dir, o), w
}

// The steps of the package comment: what is synced, and what is there then.
func TestWhatIsDurableWhen(t *testing.T) {
	m, w := watchedPool(t, t.TempDir())
	w.take(m, Volume{})
	v := create(t, m, "web1", 10*gib)
	require.Equal(t, []string{
		".new-IMAGE/VOLUME 134217728",
		".new-IMAGE/VOLUME 134217728", // with the image in it
		".new-IMAGE/VOLUME.lease 0",
		".new-IMAGE/VOLUME.meta.new",
		".new-IMAGE: VOLUME VOLUME.lease VOLUME.meta",
		"images: IMAGE",
	}, w.take(m, v), "create")

	require.EqualValues(t, 200*mib, extend(t, m, "web1", 200*mib, 200*mib))
	require.Equal(t, []string{"IMAGE/VOLUME 209715200"}, w.take(m, v), "extend")
	extend(t, m, "web1", 200*mib, 200*mib)
	require.Empty(t, w.take(m, v), "nothing has changed")

	remove(t, m, "web1")
	require.Equal(t, []string{"images: _remove_me_IMAGE"}, w.take(m, v), "remove")
}

// A manager that was killed may have left a file longer, or an image in its
// place, and not durably so. The next one answers for both.
func TestRestartMakesDurableWhatItFinds(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	v := create(t, m, "web1", 10*gib)
	kill(t, m)
	require.NoError(t, os.Truncate(v.Path, 640*mib))
	m, w := watchedPool(t, dir)
	found := w.take(m, v)
	require.Contains(t, found, "images: IMAGE")
	require.Contains(t, found, "IMAGE: VOLUME VOLUME.lease VOLUME.meta", "a volume that was added, or removed, by who died")
	require.EqualValues(t, 640*mib, extend(t, m, "web1", 640*mib, 0))
	require.Equal(t, []string{"IMAGE/VOLUME 671088640"}, w.take(m, v), "before the answer")
	require.Zero(t, pool(t, m).Extensions, "nothing was extended")
	extend(t, m, "web1", 640*mib, 0)
	require.Empty(t, w.take(m, v), "once")
}

// A size whose sync failed is in the books, for the file may have it, but nobody
// is told of it before a sync has succeeded.
func TestFailedSyncOfAnExtension(t *testing.T) {
	m, w := watchedPool(t, t.TempDir())
	v := create(t, m, "web1", 10*gib)
	w.take(m, v)
	w.fail = errors.New("the disk is gone")
	_, err := m.ExtendVolume(t.Context(), extendRequest("web1", 200*mib, 0))
	requireCode(t, CodeInternal, err)
	require.ErrorContains(t, err, "the disk is gone")
	requireSum(t, m)

	w.fail = errors.New("still gone")
	_, err = m.ExtendVolume(t.Context(), extendRequest("web1", 200*mib, 0))
	requireCode(t, CodeInternal, err)
	require.EqualValues(t, 200*mib, extend(t, m, "web1", 200*mib, 0))
	require.Equal(t, []string{"IMAGE/VOLUME 209715200"}, w.take(m, v))
	requireSum(t, m)
}

// An extension of which nobody can say what it did keeps its space.
func TestExtensionOfUnknownOutcome(t *testing.T) {
	m, _ := watchedPool(t, t.TempDir())
	v := create(t, m, "web1", 10*gib)
	away := filepath.Dir(v.Path) + ".away"
	require.NoError(t, os.Rename(filepath.Dir(v.Path), away))
	_, err := m.ExtendVolume(t.Context(), extendRequest("web1", 200*mib, 0))
	requireCode(t, CodeInternal, err)
	require.EqualValues(t, 200*mib, pool(t, m).Granted)
	require.NoError(t, os.Rename(away, filepath.Dir(v.Path)))
	require.EqualValues(t, 200*mib, extend(t, m, "web1", 200*mib, 0))
	requireSum(t, m)
}

// The host's file system finds out late that it is full: a held request, not a
// failed one.
func TestHostIsFullAfterAll(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &syncWatch{t: t}
		o := testOptions()
		o.sync = w.sync
		m, err := openManager(dir, o)
		require.NoError(t, err)
		create(t, m, "web1", 10*gib)
		w.fail = unix.ENOSPC
		_, err = m.ExtendVolume(t.Context(), extendRequest("web1", 200*mib, 0))
		requireCode(t, CodePoolFull, err)
		w.fail = unix.ENOSPC
		began := time.Now()
		require.NoError(t, <-extendLater(t.Context(), m, "web1", 300*mib, time.Hour))
		require.LessOrEqual(t, time.Since(began), 500*time.Millisecond)
		requireSum(t, m)
		require.Empty(t, pool(t, m).Waiting)
		require.NoError(t, m.Close())
	})
}

// The steps of a chain, in the same way.
func TestWhatIsDurableWhenOfAChain(t *testing.T) {
	m, w := watchedPool(t, t.TempDir())
	v := create(t, m, "web1", 10*gib)
	image, base := uuid.MustParse(v.ImageUUID), uuid.MustParse(v.VolumeUUID)
	leaf := uuid.New()
	w.take(m, v)
	take := func() (out []string) {
		for _, s := range w.take(m, v) {
			out = append(out, strings.ReplaceAll(s, leaf.String(), "LEAF"))
			if dir, names, ok := strings.Cut(out[len(out)-1], ": "); ok { // in the order of their names
				sorted := strings.Fields(names)
				slices.Sort(sorted)
				out[len(out)-1] = dir + ": " + strings.Join(sorted, " ")
			}
		}
		return out
	}
	meta := m.family().all[base].meta
	meta.Parent, meta.Sequence = base, 2
	require.NoError(t, m.ensureVolume(t.Context(), making{id: leaf, meta: meta}))
	require.Equal(t, []string{
		"IMAGE/LEAF.meta.new",
		"IMAGE: LEAF.meta.new VOLUME VOLUME.lease VOLUME.meta",
		"IMAGE/LEAF 134217728",
		"IMAGE/LEAF 134217728", // with the image in it
		"IMAGE/LEAF.lease 0",
		"IMAGE: LEAF LEAF.lease LEAF.meta VOLUME VOLUME.lease VOLUME.meta",
	}, take(), "add")
	require.NoError(t, m.ensureVolume(t.Context(), making{id: leaf, meta: meta}))
	require.Empty(t, take(), "it is there")

	require.NoError(t, m.settle(t.Context(), image))
	require.Equal(t, []string{
		"IMAGE/VOLUME.meta.new",
		"IMAGE: LEAF LEAF.lease LEAF.meta VOLUME VOLUME.lease VOLUME.meta",
	}, take(), "rewrite")
	require.NoError(t, m.settle(t.Context(), image))
	require.Empty(t, take(), "it is so")

	require.NoError(t, m.dropVolume(t.Context(), image, leaf, false))
	require.Equal(t, []string{
		"IMAGE: LEAF LEAF.lease LEAF.meta.gone VOLUME VOLUME.lease VOLUME.meta",
		"IMAGE: LEAF.meta.gone VOLUME VOLUME.lease VOLUME.meta",
	}, take(), "remove")
	require.NoError(t, m.dropVolume(t.Context(), image, leaf, false))
	require.Empty(t, take(), "it has gone")
}

// What a crash may leave of the volumes of an image is finished or undone, whatever
// part of it is there.
func TestHalfMadeAndHalfRemovedOfAChain(t *testing.T) {
	for name, files := range map[string][]string{
		"add, begun":      {".meta.new"},
		"add, made":       {"", ".lease", ".meta.new"},
		"remove, begun":   {"", ".lease", ".meta.gone"},
		"remove, in part": {".lease", ".meta.gone"},
		"remove, nearly":  {".meta.gone"},
	} {
		dir := t.TempDir()
		m := openPool(t, dir, testOptions())
		v := create(t, m, "web1", gib)
		half := filepath.Join(filepath.Dir(v.Path), uuid.NewString())
		for _, ext := range files {
			require.NoError(t, os.WriteFile(half+ext, []byte("x"), 0o600))
		}
		require.NoError(t, os.WriteFile(v.Path+extMeta+extNew, []byte("half"), 0o600))
		kill(t, m)
		m = openPool(t, dir, testOptions())
		require.Equal(t, expectedFiles(m), filesOf(t, m), name)
		require.Equal(t, v.Granted, volumeOf(t, m, "web1").Granted)
	}
}

// A handle goes on when a merge has counted the generation of its volume up.
func TestHandleOfAnOlderGeneration(t *testing.T) {
	m := openPool(t, t.TempDir(), testOptions())
	v := create(t, m, "web1", 10*gib)
	h, err := m.Volume(t.Context(), VolumeRef{Volume: "web1"})
	require.NoError(t, err)
	require.NoError(t, m.setMeta(t.Context(), uuid.MustParse(v.ImageUUID), uuid.MustParse(v.VolumeUUID),
		func(meta *volumeMeta) { meta.Generation = 1 }))
	size, err := h.Extend(t.Context(), 200*mib, 200*mib)
	require.NoError(t, err)
	require.EqualValues(t, 200*mib, size)
	_, err = h.Look(t.Context())
	require.NoError(t, err)
}

// Metadata whose name was not made durable may be on disk or not: what takes the change
// back is written, although the manager has never told of it.
func TestFailedMetadataIsWrittenAgain(t *testing.T) {
	dir := t.TempDir()
	o := testOptions()
	fail := false
	o.sync = func(f *os.File) error {
		if st, err := f.Stat(); err == nil && st.IsDir() && fail {
			return unix.EIO
		}
		return f.Sync()
	}
	m := openPool(t, dir, o)
	v := create(t, m, "web1", gib)
	mark := func(legality string) error {
		return m.setMeta(t.Context(), uuid.MustParse(v.ImageUUID), uuid.MustParse(v.VolumeUUID),
			func(meta *volumeMeta) { meta.Legality = legality })
	}
	fail = true
	require.ErrorIs(t, mark(Illegal), unix.EIO)
	require.False(t, volumeOf(t, m, "web1").Illegal)
	fail = false
	require.NoError(t, mark(Legal))
	require.NoError(t, m.Close())
	require.False(t, volumeOf(t, openPool(t, dir, o), "web1").Illegal)
}

// An image whose name could not be made durable is taken away in one step, as one that
// was there: what a crash leaves of it is nothing.
func TestImageIsUndoneInOneStep(t *testing.T) {
	o := testOptions()
	var renamed bool
	var m *Manager
	failed := false
	o.sync = func(f *os.File) error {
		if m == nil || f.Name() != domainOf(m).images() {
			return nil
		}
		if !failed {
			failed = true
			return unix.EIO
		}
		entries, err := os.ReadDir(f.Name())
		require.NoError(t, err)
		renamed = len(entries) == 1 && strings.HasPrefix(entries[0].Name(), prefixRemoved)
		return nil
	}
	opened := openPool(t, t.TempDir(), o)
	m = opened
	_, err := m.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib})
	require.ErrorIs(t, err, unix.EIO)
	require.True(t, renamed)
	require.Empty(t, pool(t, m).Granted)
}
