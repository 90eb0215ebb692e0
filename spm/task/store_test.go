package task_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/spm/task"
)

func newRecord(n int) task.Record {
	return task.Record{
		Version: 1, ID: uuid.New(), Kind: "job", Args: json.RawMessage(fmt.Sprintf(`{"n":%d}`, n)),
		State: task.Queued, Created: time.Unix(int64(n), 0).UTC(),
	}
}

// A reopener returns the store that another process finds.
type reopener func() task.Store

func stores(t *testing.T) map[string]reopener {
	dir := filepath.Join(t.TempDir(), "master", "tasks")
	memory := new(task.MemoryStore)
	d := simdisk.New(1<<20, simdisk.Options{Align: 4096})
	require.NoError(t, task.FormatBlockStore(d))
	return map[string]reopener{
		"memory": func() task.Store { return memory },
		"dir": func() task.Store {
			s, err := task.OpenDirStore(dir, task.DirStoreOptions{})
			require.NoError(t, err)
			return s
		},
		"block": func() task.Store {
			s, err := task.OpenBlockStore(d.Crash(simdisk.DropAll), nil)
			require.NoError(t, err)
			d2, err := task.OpenBlockStore(d, nil)
			require.NoError(t, err)
			requireSame(t, load(t, d2), load(t, s)) // what was acknowledged is durable
			return d2
		},
	}
}

func load(t *testing.T, s task.Store) []task.Record {
	t.Helper()
	records, err := s.Load(t.Context())
	require.NoError(t, err)
	slices.SortFunc(records, func(a, b task.Record) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return records
}

func requireSame(t *testing.T, want, got []task.Record) {
	t.Helper()
	w, err := json.Marshal(want)
	require.NoError(t, err)
	g, err := json.Marshal(got)
	require.NoError(t, err)
	require.JSONEq(t, string(w), string(g))
}

// Every store does what Store says, compared with a map, over restarts.
func TestStore(t *testing.T) {
	_, rng := testenv.Seed(t)
	for name, open := range stores(t) {
		t.Run(name, func(t *testing.T) {
			s := open()
			require.Empty(t, load(t, s))
			want := map[uuid.UUID]task.Record{}
			var ids []uuid.UUID
			for n := range 400 {
				var r task.Record
				switch k := rng.IntN(10); {
				case k < 4 && len(want) < 25:
					r = newRecord(n)
					ids = append(ids, r.ID)
				case k < 7 && len(ids) > 0:
					id := ids[rng.IntN(len(ids))]
					if r = want[id]; r.ID == uuid.Nil {
						continue
					}
					r.State, r.Step = task.Running, r.Step+1
				case k < 9 && len(ids) > 0:
					id := ids[rng.IntN(len(ids))] // may be gone
					delete(want, id)
					require.NoError(t, s.Delete(t.Context(), id))
					continue
				default:
					s = open()
					require.Len(t, load(t, s), len(want))
					continue
				}
				want[r.ID] = r
				require.NoError(t, s.Save(t.Context(), r))
			}
			var all []task.Record
			for _, r := range want {
				all = append(all, r)
			}
			slices.SortFunc(all, func(a, b task.Record) int { return bytes.Compare(a.ID[:], b.ID[:]) })
			requireSame(t, all, load(t, s))
			requireSame(t, all, load(t, open()))
		})
	}
}

// Different tasks may be saved at once.
func TestStoreConcurrently(t *testing.T) {
	for name, open := range stores(t) {
		t.Run(name, func(t *testing.T) {
			s := open()
			load(t, s)
			var wg sync.WaitGroup
			for n := range 8 {
				wg.Go(func() {
					for range 5 {
						r := newRecord(n)
						for r.Step = range 3 {
							if err := s.Save(t.Context(), r); err != nil {
								t.Error(err)
							}
						}
						if n%2 == 0 {
							s.Delete(t.Context(), r.ID)
						}
					}
				})
			}
			wg.Wait()
			require.Len(t, load(t, open()), 20)
		})
	}
}

// A whole engine on every store, over a restart.
func TestEngineOnStores(t *testing.T) {
	for name, open := range stores(t) {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			l := live(t, w, open(), 12, task.Options{})
			l.recover()
			for n := range 5 {
				l.e.Start(t.Context(), "job", job{Name: fmt.Sprint("j", n, "-"), Steps: 3, Commit: 2, Fail: -1}, task.StartOptions{})
			}
			l.settle()
			l.end()
			require.True(t, l.isDead())
			l = live(t, w, open(), 0, task.Options{})
			l.recover()
			n := 0
			for _, i := range l.settle() {
				if i.State == task.Finished {
					n += 3
				}
			}
			require.Len(t, w.get(), n)
		})
	}
}

// What is not a record is reported and left alone; what was half written goes.
func TestDirStoreForeign(t *testing.T) {
	dir := t.TempDir()
	var log bytes.Buffer
	s, err := task.OpenDirStore(dir, task.DirStoreOptions{Log: logTo(&log)})
	require.NoError(t, err)
	r := newRecord(1)
	require.NoError(t, s.Save(t.Context(), r))
	whole, err := os.ReadFile(filepath.Join(dir, r.ID.String()))
	require.NoError(t, err)
	foreign := map[string]string{
		uuid.NewString():                    string(whole[:len(whole)/2]),
		uuid.NewString():                    string(whole), // another's
		uuid.NewString():                    "",
		"README":                            "hello",
		strings.ToUpper(uuid.NewString()):   string(whole),
		"." + uuid.NewString() + ".new.old": "x",
		uuid.NewString() + ".new":           "x",
		uuid.NewString():                    strings.Repeat(" ", 1<<20),
	}
	for name, content := range foreign {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, uuid.NewString()), 0o700))
	left := filepath.Join(dir, "."+r.ID.String()+".new")
	require.NoError(t, os.WriteFile(left, whole[:10], 0o600))

	requireSame(t, []task.Record{r}, load(t, s))
	require.NoFileExists(t, left)
	require.Equal(t, len(foreign)+1, strings.Count(log.String(), "left alone"))
	for name, content := range foreign {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, content, string(got))
	}
}

// The steps of DirStore's comment: what is synced, and what is there then.
func TestDirStoreIsDurable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "master", "tasks")
	var synced []string
	var fail error
	sync := func(f *os.File) error {
		st, err := f.Stat()
		require.NoError(t, err)
		what := filepath.Base(f.Name())
		if st.IsDir() {
			entries, err := os.ReadDir(f.Name())
			require.NoError(t, err)
			what += fmt.Sprint(": ", len(entries))
			for _, e := range entries {
				what += " " + e.Name()
			}
		} else {
			what += fmt.Sprint(" ", st.Size() > 0)
		}
		synced = append(synced, what)
		err, fail = fail, nil
		return err
	}
	r := newRecord(1)
	take := func() []string {
		defer func() { synced = nil }()
		var out []string
		for _, s := range synced {
			out = append(out, strings.ReplaceAll(s, r.ID.String(), "ID"))
		}
		return out
	}
	s, err := task.OpenDirStore(dir, task.DirStoreOptions{Sync: sync})
	require.NoError(t, err)
	require.Len(t, take(), 2, "two new directories")
	load(t, s)
	require.Equal(t, []string{"tasks: 0"}, take())
	require.NoError(t, s.Save(t.Context(), r))
	require.Equal(t, []string{".ID.new true", "tasks: 1 ID"}, take())

	fail = errDisk
	changed := r
	changed.Step = 7
	require.ErrorIs(t, s.Save(t.Context(), changed), errDisk)
	requireSame(t, []task.Record{r}, load(t, s))
	require.Equal(t, []string{".ID.new true", "tasks: 1 ID"}, take(), "what was not synced is gone")

	require.NoError(t, s.Delete(t.Context(), r.ID))
	require.Equal(t, []string{"tasks: 0"}, take())
	require.NoError(t, s.Delete(t.Context(), r.ID))
	require.Equal(t, []string{"tasks: 0"}, take(), "also of one that is gone")
}
