package spm

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A syncWatch stands in for fsync: it notes what is made durable, in order, and
// what is there at that moment.
type syncWatch struct {
	t      *testing.T
	synced []string
}

func (w *syncWatch) sync(f *os.File) error {
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
	hide := strings.NewReplacer(m.domain.images()+"/", "", m.domain.images(), "images", v.VolumeUUID, "VOLUME", v.ImageUUID, "IMAGE")
	var out []string
	for _, s := range w.synced {
		if s = hide.Replace(s); strings.Contains(s, extMeta+extNew+" ") {
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
