package spm

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm/task"
)

// A world is domains with their manager, and what survives the manager: disks,
// servers and the record of the task that is in progress.
type world struct {
	t       *testing.T
	o       Options
	group   *fakeGroup // nil: directories
	dirs    []string
	m       []*Manager
	jobs    *fakeJobs
	servers *fakeServers
	ops     *operations
	record  *task.Record
	moment  func() // called before each sync of a directory and each change of a group
}

// newWorld has n domains in directories, or one in a group.
func newWorld(t *testing.T, n int, group bool) *world {
	w := &world{t: t, o: testOptions(), jobs: &fakeJobs{fail: map[string]error{}}}
	w.o.Images, w.o.Capacity = contentImages{}, 64*gib
	w.o.sync = func(*os.File) error {
		if w.moment != nil {
			w.moment()
		}
		return nil
	}
	w.servers = &fakeServers{jobs: w.jobs, byKey: map[string]*Server{}}
	w.servers.places = func(volume string) ([]Place, error) {
		for _, m := range w.m {
			if p, err := m.places(uuid.MustParse(volume)); err == nil {
				return p, nil
			}
		}
		return nil, fs.ErrNotExist
	}
	w.servers.grow = w.grow
	if group {
		w.group = newFakeGroup(t, 1024)
		w.jobs.group = w.group
		w.group.moment = func() {
			if w.moment != nil {
				w.moment()
			}
		}
		w.o.Capacity = 0
	}
	for range n {
		w.dirs = append(w.dirs, t.TempDir())
	}
	w.ops = newOperations(func(id uuid.UUID) (*Manager, error) {
		for _, m := range w.m {
			if m.ident.domain == id {
				return m, nil
			}
		}
		return nil, errorf(CodeUnknownDomain, "there is no domain %s", id)
	}, func() []*Manager { return w.m }, func() *task.Locks { return new(task.Locks) }, w.jobs, w.servers)
	w.open()
	t.Cleanup(func() {
		for _, m := range w.m {
			if m.ctx.Err() == nil {
				_ = m.Close()
			}
		}
	})
	return w
}

func (w *world) open() {
	w.m = nil
	if w.group != nil {
		m, err := openGroupManager(w.group, w.o)
		require.NoError(w.t, err)
		w.m = append(w.m, m)
		return
	}
	for _, dir := range w.dirs {
		m, err := openManager(dir, w.o)
		require.NoError(w.t, err)
		w.m = append(w.m, m)
	}
}

// grow is what a server does whose image may need more than its volume has.
func (w *world) grow(p Place, need int64) error {
	if p.Format == FormatRaw || p.Granted >= need {
		return nil
	}
	_, err := w.m[0].ExtendVolume(context.Background(), extendRequest(p.VolumeUUID, need, 0))
	return err
}

func (w *world) domain() uuid.UUID { return w.m[0].ident.domain }

func (w *world) at(image, volume uuid.UUID) VolumeAt {
	return VolumeAt{Pool: w.m[0].ident.pool, Domain: w.domain(), Image: image, Volume: volume}
}

// restart kills the managers and opens the domains again.
func (w *world) restart() {
	for _, m := range w.m {
		kill(w.t, m)
	}
	if w.group != nil {
		w.group.live(-1)
	}
	w.open()
}

// errCrash is what a runner returns when its process has died.
var errCrash = errors.New("crash")

// run runs a task, and dies at a moment: before or after each step there is one.
func (w *world) run(kind string, args any, dieAt int) error {
	raw, err := json.Marshal(args)
	require.NoError(w.t, err)
	w.record = &task.Record{Kind: kind, Args: raw, State: task.Running}
	plan := w.plan()
	for n, s := range plan.Steps {
		w.record.Step = n
		for _, when := range []int{2 * n, 2*n + 1} {
			if when == dieAt {
				return errCrash
			}
			if when%2 == 1 {
				continue
			}
			if err := w.do(func() error { return s.Do(w.t.Context(), &task.Run{}) }); err != nil {
				switch {
				case errors.Is(err, errCrash):
				case n < plan.Commit:
					w.undo(plan)
				case task.IsHopeless(err):
					w.giveUp()
				}
				return err
			}
		}
	}
	w.record = nil
	return nil
}

// do runs a part of a step, in which the process may die by a panic.
func (w *world) do(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			require.ErrorIs(w.t, r.(error), errCrash)
			err = errCrash
		}
	}()
	return f()
}

func (w *world) plan() task.Plan {
	i := slices.IndexFunc(w.ops.kinds(), func(k task.Kind) bool { return k.Name == w.record.Kind })
	require.GreaterOrEqual(w.t, i, 0, w.record.Kind)
	plan, err := w.ops.kinds()[i].Build(w.record.Args)
	require.NoError(w.t, err)
	require.LessOrEqual(w.t, len(w.record.Args), 8<<10)
	return plan
}

// giveUp gives the task up, twice.
func (w *world) giveUp() {
	s := w.plan().Steps[w.record.Step]
	for range 2 {
		if s.GiveUp != nil {
			require.NoError(w.t, s.GiveUp(context.Background(), &task.Run{Reached: w.record.Step}), "give up %s", s.Name)
		}
	}
	w.record = nil
}

// undo rolls the task back.
func (w *world) undo(plan task.Plan) {
	for n := w.record.Step; n >= 0; n-- {
		if undo := plan.Steps[n].Undo; undo != nil {
			require.NoError(w.t, undo(context.Background(), &task.Run{Reached: w.record.Step}), "undo of %s", plan.Steps[n].Name)
		}
	}
	w.record = nil
}

// recover is what the next process does with the task that it finds, twice. It
// reports whether the task has been finished.
func (w *world) recover() bool {
	plan := w.plan()
	if w.record.Step < plan.Commit {
		record := *w.record
		w.undo(plan)
		w.record = &record
		w.undo(plan)
		return false
	}
	for _, s := range slices.Concat(plan.Steps[w.record.Step:], plan.Steps[w.record.Step:]) {
		require.NoError(w.t, s.Do(w.t.Context(), &task.Run{}), s.Name)
	}
	w.record = nil
	return true
}

// must starts a task and lets it end well.
func (w *world) must(kind string, args any, err error) {
	w.t.Helper()
	require.NoError(w.t, err)
	require.NoError(w.t, w.run(kind, args, -1))
}

// volume makes a volume of 1 GiB, on a parent unless that is uuid.Nil, and writes
// blocks into it.
func (w *world) volume(image, parent uuid.UUID, blocks string) uuid.UUID {
	w.t.Helper()
	id := uuid.New()
	r := w.newVolume(image, id)
	r.Parent = parent
	if parent != uuid.Nil {
		r.Size = 0
	}
	kind, args, err := w.ops.createVolume(w.t.Context(), r)
	w.must(kind, args, err)
	w.write(id, blocks)
	return id
}

func (w *world) newVolume(image, id uuid.UUID) NewVolume {
	return NewVolume{VolumeAt: w.at(image, id), Size: gib, Format: Cow, Alloc: Sparse, Type: Leaf}
}

// write writes the characters of blocks, but for spaces, to the blocks of a volume.
func (w *world) write(id uuid.UUID, blocks string) {
	w.t.Helper()
	at, err := w.servers.places(id.String())
	require.NoError(w.t, err)
	for n, b := range []byte(blocks) {
		if b != ' ' {
			require.NoError(w.t, w.jobs.write(at[len(at)-1], n, b))
		}
	}
}

// shows is what a volume shows, with what is below it.
func (w *world) shows(m *Manager, id uuid.UUID) string {
	w.t.Helper()
	at, err := m.places(id)
	require.NoError(w.t, err)
	flat, err := w.jobs.flat(at)
	require.NoError(w.t, err)
	var out strings.Builder
	for n := range fakeBlocks {
		if b, ok := flat.Blocks[n]; ok {
			out.WriteByte(b)
		} else {
			out.WriteByte(' ')
		}
	}
	return strings.TrimRight(out.String(), " ")
}

// leaf is what an image shows.
func (w *world) leaf(m *Manager, image uuid.UUID) (uuid.UUID, string) {
	w.t.Helper()
	id, ok := m.family().leaf(image)
	require.True(w.t, ok, "image %s has no leaf", image)
	return id, w.shows(m, id)
}

// types are the VOLTYPEs and legalities of an image's volumes, from the base up.
func (w *world) types(m *Manager, image uuid.UUID) string {
	f := m.family()
	ids := f.topFirst(slices.Clone(f.images[image]))
	slices.Reverse(ids)
	var out []string
	for _, id := range ids {
		meta := f.all[id].meta
		s := meta.VolType
		if meta.Legality != Legal {
			s += "!"
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

// consistent checks that the books, the disk and the metadata agree, that nothing
// is left half done, and that the next manager finds the same.
func (w *world) consistent() {
	w.t.Helper()
	before := w.state()
	w.restart()
	require.Equal(w.t, before, w.state(), "after a restart")
	for _, m := range w.m {
		f := m.family()
		for id, k := range f.all {
			require.Empty(w.t, m.info(id).Damaged)
			_, err := f.chain(id)
			require.NoError(w.t, err)
			require.Equal(w.t, k.meta.VolType, f.reconcile(k))
		}
	}
	if w.group != nil {
		m := w.m[0]
		require.Len(w.t, w.group.State().Volumes, 2+len(m.volumes))
		for _, l := range w.group.State().Volumes {
			if tags, ours := parseVolumeTags(l.Tags); ours {
				require.Equal(w.t, m.family().all[uuid.MustParse(l.Name)].meta.Parent.String(), tags.parent)
				require.False(w.t, tags.initializing || tags.removing)
			}
		}
		return
	}
	for _, m := range w.m {
		requireSum(w.t, m)
		require.Equal(w.t, expectedFiles(m), filesOf(w.t, m))
	}
}

// state is all that the managers know of volumes.
func (w *world) state() map[string]volumeMeta {
	out := map[string]volumeMeta{}
	for n, m := range w.m {
		m.mu.Lock()
		var sum int64
		for id, v := range m.volumes {
			out[string(rune('0'+n))+id.String()+v.name()] = v.meta()
			sum += v.size
		}
		require.Equal(w.t, sum, m.granted)
		m.mu.Unlock()
	}
	return out
}

func expectedFiles(m *Manager) (out []string) {
	for id, k := range m.family().all {
		path := filepath.Join(k.image.String(), id.String())
		out = append(out, path, path+extMeta, path+extLease)
	}
	slices.Sort(out)
	return out
}

func filesOf(t *testing.T, m *Manager) (out []string) {
	root := domainOf(m).images()
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(root, path)
			out = append(out, rel)
		}
		return err
	}))
	slices.Sort(out)
	return out
}

// both runs a test on a directory and on a group.
func both(t *testing.T, domains int, test func(t *testing.T, w *world)) {
	t.Run("dir", func(t *testing.T) { test(t, newWorld(t, domains, false)) })
	if domains == 1 {
		t.Run("group", func(t *testing.T) { test(t, newWorld(t, 1, true)) })
	}
}

func TestSnapshots(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "aaaa")
		b := w.volume(image, a, " b")
		c := w.volume(image, b, "  c")
		require.Equal(t, "abca", w.shows(w.m[0], c))
		require.Equal(t, "abaa", w.shows(w.m[0], b))
		require.Equal(t, "INTERNAL INTERNAL LEAF", w.types(w.m[0], image))
		i, err := w.ops.volumeInfo(t.Context(), w.at(image, uuid.Nil))
		require.NoError(t, err)
		require.Equal(t, c, i.Volume)
		require.EqualValues(t, 3, i.Sequence)
		require.EqualValues(t, gib, i.Capacity)
		require.Equal(t, image.String(), i.Name)
		w.consistent()

		// A snapshot of the leaf that is deleted makes the one below the leaf.
		kind, args, err := w.ops.deleteVolumes(t.Context(), DeleteVolumes{Domain: w.domain(), Image: image, Volumes: []uuid.UUID{c}})
		w.must(kind, args, err)
		require.Equal(t, "INTERNAL LEAF", w.types(w.m[0], image))
		w.consistent()
		kind, args, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})
		w.must(kind, args, err)
		require.Zero(t, pool(t, w.m[0]).Granted)
		w.consistent()
	})
}

func TestTemplate(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		base, clone := uuid.New(), uuid.New()
		src := w.volume(base, uuid.Nil, "tmpl")
		template := w.at(uuid.New(), uuid.New())
		kind, args, err := w.ops.copyImage(t.Context(), CopyImage{From: w.at(base, src), To: template, Type: Shared})
		w.must(kind, args, err)
		require.Equal(t, "tmpl", w.shows(w.m[0], template.Volume))
		require.Equal(t, Shared, w.types(w.m[0], template.Image))

		r := w.newVolume(clone, uuid.New())
		r.ParentImage, r.Parent = template.Image, template.Volume
		kind, args, err = w.ops.createVolume(t.Context(), r)
		w.must(kind, args, err)
		w.write(r.Volume, " X")
		require.Equal(t, "tXpl", w.shows(w.m[0], r.Volume))
		w.consistent()

		_, _, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: template.Image})
		requireCode(t, CodeHasChildren, err)
		_, err = w.m[0].RemoveVolume(t.Context(), VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: template.Image.String()}})
		requireCode(t, CodeHasChildren, err)
		kind, args, err = w.ops.copyImage(t.Context(), CopyImage{From: r.VolumeAt, To: w.at(uuid.New(), uuid.New()), Format: Raw, Alloc: Preallocated})
		w.must(kind, args, err)
		require.Equal(t, "tXpl", w.shows(w.m[0], args.(copyArgs).To.Volume))
		w.consistent()
	})
}

// Files of a chain are found by QEMU by what the images themselves say.
func TestBackingNames(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "")
	b := w.volume(image, a, "")
	at, err := w.m[0].places(b)
	require.NoError(t, err)
	i, err := w.jobs.load(at[1])
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(filepath.Dir(at[1].Path), i.Backing.Name))
	require.Equal(t, FormatQCOW2, i.Backing.Format)
	name := backingName(typeDir, uuid.New(), image, a)
	require.FileExists(t, filepath.Join(filepath.Dir(at[1].Path), name))
	require.Equal(t, a.String(), backingName(typeGroup, uuid.New(), image, a))
}

func TestPreallocated(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		r := w.newVolume(uuid.New(), uuid.New())
		r.Size, r.Format, r.Alloc = 200*mib, Raw, Preallocated
		kind, args, err := w.ops.createVolume(t.Context(), r)
		w.must(kind, args, err)
		i := w.m[0].info(r.Volume)
		require.GreaterOrEqual(t, i.Granted, int64(200*mib))
		require.Equal(t, i.Bound, i.Granted)
		if w.group == nil {
			require.GreaterOrEqual(t, allocated(i.Path), int64(200*mib))
			require.Less(t, allocated(i.Path), int64(201*mib), "with what the file system needs to say where it lies")
			require.EqualValues(t, 200*mib, i.Granted)
		}
		r.Image, r.Volume, r.Format = uuid.New(), uuid.New(), Cow
		kind, args, err = w.ops.createVolume(t.Context(), r)
		w.must(kind, args, err)
		i = w.m[0].info(r.Volume)
		require.Equal(t, i.Bound, i.Granted)
		w.consistent()
	})
}

// A volume that a step makes is not zeroed space of somebody else.
func TestGroupPostZero(t *testing.T) {
	w := newWorld(t, 1, true)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "secret")
	disk := w.group.content[a.String()]
	kind, args, err := w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image, PostZero: true})
	w.must(kind, args, err)
	b := make([]byte, 4096)
	_, err = disk.ReadAt(b, 0)
	require.NoError(t, err)
	require.Equal(t, make([]byte, 4096), b)
}
