package spm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/simdisk"
)

// errDead is what every call of a fakeGroup returns after its process has died.
var errDead = errors.New("the process is dead")

// A fakeGroup is a volume group in memory. Its manager can be made to die before
// any change: what it did before stays.
type fakeGroup struct {
	run string

	mu      sync.Mutex
	state   GroupState
	content map[string]*simdisk.Disk
	held    map[string]bool
	total   int64
	changes int    // so many more, then the process is dead; negative: no end
	moment  func() // called before each change
	gone    error  // why it cannot be read
}

const fakeExtent = 128 * mib

func newFakeGroup(t *testing.T, extents int64) *fakeGroup {
	g := &fakeGroup{
		run: t.TempDir(), content: map[string]*simdisk.Disk{}, held: map[string]bool{},
		total: extents * fakeExtent, changes: -1,
	}
	g.state = GroupState{Name: "vg0", UUID: "vg-uuid", ExtentSize: fakeExtent, Free: g.total}
	return g
}

// step counts a change.
func (g *fakeGroup) step() error {
	if g.moment != nil {
		g.moment()
	}
	if g.changes == 0 {
		return errDead
	}
	g.changes--
	return nil
}

// edit makes a change of a copy, which becomes the state.
func (g *fakeGroup) edit(change func(s *GroupState) error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.step(); err != nil {
		return err
	}
	s := g.state
	s.Tags, s.Volumes = slices.Clone(s.Tags), slices.Clone(s.Volumes)
	if err := change(&s); err != nil {
		return err
	}
	s.Free = g.total
	for i, v := range s.Volumes {
		s.Free -= v.Size
		s.Volumes[i].Mapping = Mapping{Group: s.Name, LVUUID: "lv-" + v.Name, Segments: []Piece{{Size: v.Size, PV: "pv"}}}
	}
	g.state = s
	return nil
}

func (g *fakeGroup) State() *GroupState {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.state
	return &s
}

func (g *fakeGroup) Read(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gone
}

func (g *fakeGroup) RunDir() string { return g.run }

func (g *fakeGroup) Retag(_ context.Context, remove, add []string) error {
	return g.edit(func(s *GroupState) error {
		s.Tags = retag(s.Tags, remove, add)
		return nil
	})
}

func retag(tags, remove, add []string) []string {
	tags = slices.DeleteFunc(slices.Clone(tags), func(t string) bool { return slices.Contains(remove, t) })
	return append(tags, add...)
}

func (g *fakeGroup) RetagVolume(_ context.Context, name string, remove, add []string) error {
	return g.edit(func(s *GroupState) error {
		i := find(s, name)
		s.Volumes[i].Tags = retag(s.Volumes[i].Tags, remove, add)
		return nil
	})
}

func find(s *GroupState, name string) int {
	return slices.IndexFunc(s.Volumes, func(v GroupVolume) bool { return v.Name == name })
}

func (g *fakeGroup) Create(_ context.Context, name string, tags []string, size int64, _ bool) (Mapping, error) {
	size = roundUp(size, fakeExtent)
	err := g.edit(func(s *GroupState) error {
		if s.Free < size {
			return block.ErrNoSpace
		}
		s.Volumes = append(s.Volumes, GroupVolume{Name: name, Tags: tags, Size: size})
		d := simdisk.New(size, simdisk.Options{Foreign: true})
		g.content[name] = d
		for _, at := range []int64{0, size / 2, size - 16} {
			if _, err := d.WriteAt([]byte("another tenant's"), at); err != nil {
				return err
			}
		}
		return nil
	})
	return g.mapping(name), err
}

func (g *fakeGroup) mapping(name string) Mapping {
	s := g.State()
	if i := find(s, name); i >= 0 {
		return s.Volumes[i].Mapping
	}
	return Mapping{}
}

func (g *fakeGroup) Extend(ctx context.Context, name string, target, _ int64) (Mapping, error) {
	target = roundUp(target, fakeExtent)
	err := g.edit(func(s *GroupState) error {
		i := find(s, name)
		if more := target - s.Volumes[i].Size; more > s.Free {
			return block.ErrNoSpace
		}
		s.Volumes[i].Size = max(s.Volumes[i].Size, target)
		_, err := g.content[name].Grow(ctx, s.Volumes[i].Size, s.Volumes[i].Size)
		return err
	})
	return g.mapping(name), err
}

func (g *fakeGroup) Reduce(ctx context.Context, name string, from, to int64) (Mapping, error) {
	err := g.edit(func(s *GroupState) error {
		i := find(s, name)
		if s.Volumes[i].Size != from || to%fakeExtent != 0 {
			return block.ErrStale
		}
		s.Volumes[i].Size = to
		return g.content[name].Shrink(ctx, from, to)
	})
	return g.mapping(name), err
}

func (g *fakeGroup) Remove(_ context.Context, name string) error {
	return g.edit(func(s *GroupState) error {
		s.Volumes = slices.DeleteFunc(s.Volumes, func(v GroupVolume) bool { return v.Name == name })
		return nil
	})
}

// Open opens a volume whose syncs are changes: before each the process may die.
func (g *fakeGroup) Open(_ context.Context, name string) (block.File, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.content[name]
	if d == nil {
		return nil, os.ErrNotExist
	}
	return &fakeLV{Disk: d, g: g}, nil
}

type fakeLV struct {
	*simdisk.Disk
	g *fakeGroup
}

func (f *fakeLV) step() error {
	f.g.mu.Lock()
	defer f.g.mu.Unlock()
	return f.g.step()
}

func (f *fakeLV) Sync() error { return errors.Join(f.step(), f.Disk.Sync()) }
func (f *fakeLV) WriteAtSync(p []byte, off int64) (int, error) {
	if err := f.step(); err != nil {
		return 0, err
	}
	return f.Disk.WriteAtSync(p, off)
}
func (f *fakeLV) Close() error { return nil } // the next one opens the same

func (g *fakeGroup) Hold(m Mapping) (func() error, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held[m.LVUUID] {
		return nil, fmt.Errorf("%s: %w", m.LVUUID, block.ErrInUse)
	}
	g.held[m.LVUUID] = true
	return func() error {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.held, m.LVUUID)
		return nil
	}, nil
}

// live ends or begins a process that makes so many changes.
func (g *fakeGroup) live(changes int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.changes = changes
	g.held = map[string]bool{}
}

func (g *fakeGroup) open(t *testing.T) (*Manager, error) {
	t.Helper()
	o := testOptions()
	o.Capacity = 0
	o.Poll = 5 * time.Millisecond
	return openGroupManager(g, o)
}

func (g *fakeGroup) mustOpen(t *testing.T) *Manager {
	t.Helper()
	m, err := g.open(t)
	require.NoError(t, err)
	t.Cleanup(func() {
		if m.ctx.Err() == nil {
			_ = m.Close()
		}
	})
	return m
}

func TestGroupLifeOfAVolume(t *testing.T) {
	g := newFakeGroup(t, 32)
	g.edit(func(s *GroupState) error {
		s.Volumes = append(s.Volumes, GroupVolume{Name: "root", Size: fakeExtent})
		return nil
	})
	m := g.mustOpen(t)
	require.EqualValues(t, 29*fakeExtent, pool(t, m).Capacity, "without metadata, master, and what is not ours")
	v := create(t, m, "web1", 10*gib)
	require.Equal(t, "/dev/vg0/"+v.VolumeUUID, v.Path)
	require.Equal(t, "lv-"+v.VolumeUUID, v.Mapping.LVUUID)
	require.EqualValues(t, fakeExtent, v.Granted)
	require.Zero(t, v.Bound%fakeExtent)
	i := find(g.State(), v.VolumeUUID)
	require.Equal(t, []string{"IU_" + v.ImageUUID, "PU_00000000-0000-0000-0000-000000000000", "MD_1"}, g.State().Volumes[i].Tags)

	r, err := m.ExtendVolume(t.Context(), extendRequest("web1", fakeExtent+1, 0))
	require.NoError(t, err)
	require.EqualValues(t, 2*fakeExtent, r.Size)
	require.EqualValues(t, 2*fakeExtent, r.Mapping.Size())
	create(t, m, "web2", 10*gib)

	require.NoError(t, m.Close())
	m = g.mustOpen(t)
	require.EqualValues(t, 3*fakeExtent, pool(t, m).Granted)
	require.Equal(t, "vg0", pool(t, m).Group.Name)
	require.EqualValues(t, 10*gib, volumeOf(t, m, "web1").Size)
	_, err = m.ExtendVolume(t.Context(), extendRequest("web1", 64*gib, 0))
	requireCode(t, CodeBound, err)

	// A slot that is free is taken again, and says what the new volume is.
	remove(t, m, "web1")
	raw, err := m.CreateVolume(t.Context(), VolumeCreateRequest{Name: "raw", Size: 300 * mib, Format: FormatRaw})
	require.NoError(t, err)
	require.EqualValues(t, 3*fakeExtent, raw.Granted)
	require.Contains(t, g.State().Volumes[find(g.State(), raw.VolumeUUID)].Tags, "MD_1")
	zeroes := make([]byte, raw.Granted)
	_, err = g.content[raw.VolumeUUID].ReadAt(zeroes, 0)
	require.NoError(t, err)
	require.Equal(t, len(zeroes), bytes.Count(zeroes, []byte{0}), "a raw volume shows nothing of what was there")
	require.NotEqual(t, -1, find(g.State(), "root"), "what is not ours is left alone")
}

func volumeOf(t *testing.T, m *Manager, name string) Volume {
	t.Helper()
	r, err := m.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: name}})
	require.NoError(t, err)
	return r.Volume
}

// The manager dies before each change of making a pool, creating, extending and
// removing. The next one finds each volume complete or not at all, and no space
// is lost.
func TestGroupManagerDiesAtEveryStep(t *testing.T) {
	seen := map[string]bool{}
	for steps := 0; ; steps++ {
		g := newFakeGroup(t, 32)
		g.live(steps)
		done := groupStory(t, g)
		g.live(-1)
		m := g.mustOpen(t)
		l, err := m.ListVolumes(t.Context(), VolumeListRequest{})
		require.NoError(t, err, "after %d changes", steps)
		var found []string
		var sum int64
		for _, v := range l.Volumes {
			found = append(found, fmt.Sprintf("%s %d", v.Name, v.Granted/fakeExtent))
			sum += v.Granted
			require.EqualValues(t, 10*gib, v.Size)
		}
		seen[strings.Join(found, ",")] = true
		require.Equal(t, 30*int64(fakeExtent), g.State().Free+sum, "after %d changes: %v", steps, found)
		require.Len(t, g.State().Volumes, 2+len(found), "after %d changes", steps)
		require.Equal(t, sum, pool(t, m).Granted)
		create(t, m, "after", 10*gib)
		require.NoError(t, m.Close())
		if done {
			break
		}
	}
	require.Equal(t, []string{"", "a 1", "a 1,b 1", "a 2,b 1", "a 4,b 1", "b 1"}, slices.Sorted(maps.Keys(seen)))
}

// groupStory reports whether the process lived to its end.
func groupStory(t *testing.T, g *fakeGroup) bool {
	m, err := g.open(t)
	if err != nil {
		require.ErrorIs(t, err, errDead)
		return false
	}
	defer m.Close()
	for _, do := range []func() error{
		func() error {
			_, err := m.CreateVolume(t.Context(), VolumeCreateRequest{Name: "a", Size: 10 * gib})
			return err
		},
		func() error {
			_, err := m.CreateVolume(t.Context(), VolumeCreateRequest{Name: "b", Size: 10 * gib})
			return err
		},
		func() error { _, err := m.ExtendVolume(t.Context(), extendRequest("a", 4*fakeExtent, 0)); return err },
		func() error {
			_, err := m.ReduceVolume(t.Context(), reduceRequest(m, volumeOf(t, m, "a"), fakeExtent+1))
			return err
		},
		func() error {
			_, err := m.RemoveVolume(t.Context(), VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: "a"}})
			return err
		},
	} {
		if err := do(); err != nil {
			require.ErrorIs(t, err, errDead)
			return false
		}
	}
	return true
}

// A half-made volume that somebody has open is kept, and removed later.
func TestGroupHalfMadeInUse(t *testing.T) {
	g := newFakeGroup(t, 32)
	require.NoError(t, g.mustOpen(t).Close())
	id := testImage.String()
	_, err := g.Create(t.Context(), id, append(newVolumeTags(testPool, testPool, 1), tagInitializing), 1, true)
	require.NoError(t, err)
	release, err := g.Hold(g.mapping(id))
	require.NoError(t, err)
	m := g.mustOpen(t)
	v := create(t, m, "web1", 10*gib)
	require.Contains(t, g.State().Volumes[find(g.State(), v.VolumeUUID)].Tags, "MD_2", "its slot stays taken")
	require.NoError(t, m.Close())
	require.NoError(t, release())
	m = g.mustOpen(t)
	require.Equal(t, -1, find(g.State(), id))
	require.Len(t, m.sorted(), 1)
}

// What others do to the group is noticed.
func TestGroupChangedByOthers(t *testing.T) {
	g := newFakeGroup(t, 8)
	m := g.mustOpen(t)
	v := create(t, m, "web1", 10*gib)
	create(t, m, "web2", 10*gib)
	_, err := g.Extend(t.Context(), v.VolumeUUID, 2*fakeExtent, 0)
	require.NoError(t, err)
	eventually(t, func() bool { return volumeOf(t, m, "web1").Granted == 2*fakeExtent })
	require.EqualValues(t, 3*fakeExtent, pool(t, m).Granted)

	a := make(chan error, 1)
	go func() {
		r := extendRequest("web2", 8*fakeExtent, 0)
		r.WaitMS = time.Hour.Milliseconds()
		_, err := m.ExtendVolume(context.Background(), r)
		a <- err
	}()
	eventually(t, func() bool { return len(pool(t, m).Waiting) == 1 })
	g.edit(func(*GroupState) error { g.total += 8 * fakeExtent; return nil }) // vgextend
	require.NoError(t, <-a)

	require.NoError(t, g.Remove(t.Context(), v.VolumeUUID))
	eventually(t, func() bool { return pool(t, m).Volumes == 1 })
	_, err = m.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: v.VolumeUUID}})
	requireCode(t, CodeNotFound, err)
	require.EqualValues(t, 8*fakeExtent, pool(t, m).Granted)
}

func TestGroupOpenRefuses(t *testing.T) {
	g := newFakeGroup(t, 8)
	m := g.mustOpen(t)
	_, err := g.open(t)
	require.ErrorIs(t, err, block.ErrInUse, "one manager")
	require.NoError(t, m.Close())
	require.FileExists(t, filepath.Join(g.run, "spm.lock"))

	for name, tags := range map[string][]string{
		"oVirt":  {tagOVirt},
		"sealed": {tagDomain, "MDT_SDUUID=x"},
	} {
		g := newFakeGroup(t, 8)
		g.state.Tags = tags
		_, err = g.open(t)
		require.Error(t, err, name)
	}
	g = newFakeGroup(t, 8)
	_, err = g.Create(t.Context(), lvMaster, nil, 1, false)
	require.NoError(t, err)
	_, err = g.open(t)
	require.ErrorContains(t, err, "master that is not ours")
}

func TestTagsOfADomain(t *testing.T) {
	m := newDomainMeta(testDomain, "", 0)
	m[keyType], m[keyDescription] = typeGroup, "Größe, 磁 & more"
	tags := m.tags()
	for _, tag := range tags {
		require.Regexp(t, `^[A-Za-z0-9_+.\-/=!:#&]+$`, tag)
	}
	back, err := domainOfTags(append(tags, tagDomain, "something else"))
	require.NoError(t, err)
	require.Equal(t, m, back)
	none, err := domainOfTags([]string{"x"})
	require.NoError(t, err)
	require.Nil(t, none)
}

// The removal of an image that fails halfway gives back the space of what is gone, lets
// nobody use the rest, and can be repeated.
func TestGroupImageHalfRemoved(t *testing.T) {
	g := newFakeGroup(t, 32)
	m := g.mustOpen(t)
	base := create(t, m, "web1", 10*gib)
	id := uuid.MustParse(base.VolumeUUID)
	meta := m.volumes[id].meta()
	meta.Parent = id
	require.NoError(t, m.ensureVolume(t.Context(), making{id: uuid.New(), meta: meta}))
	require.EqualValues(t, 2*fakeExtent, pool(t, m).Granted)
	g.live(2) // the mark, and the leaf
	_, err := m.RemoveVolume(t.Context(), VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: "web1"}})
	require.ErrorIs(t, err, errDead)
	require.EqualValues(t, fakeExtent, pool(t, m).Granted)
	g.live(-1)
	_, err = m.ExtendVolume(t.Context(), extendRequest(base.VolumeUUID, 2*fakeExtent, 0))
	requireCode(t, CodeDamaged, err)
	remove(t, m, base.VolumeUUID)
	require.Zero(t, pool(t, m).Granted)
	require.NoError(t, m.Close())
}
