package spm

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm/task"
)

// A domain whose directory has been moved away leaves the pool by the pool's metadata,
// and when it is back it is attached again with what it had.
func TestDomainVanishes(t *testing.T) {
	root := t.TempDir()
	h, pool, domains := managed(t, root)
	b, c := domains[1], domains[2]
	_, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib, DomainUUID: b.String()})
	require.NoError(t, err)
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, c, uuid.Nil, 0))
	for _, d := range []string{"b", "c"} {
		require.NoError(t, os.Rename(filepath.Join(root, d), filepath.Join(root, d+".away")))
	}

	all, err := h.Domains(t.Context(), uuid.Nil)
	require.NoError(t, err)
	require.Equal(t, map[uuid.UUID]DomainState{domains[0]: DomainActive, b: DomainUnknown, c: DomainAttached}, all)
	info, err := h.DomainInfo(t.Context(), b)
	require.NoError(t, err)
	require.Equal(t, "b", info.Name)
	require.Equal(t, pool, info.Pool)
	requireCode(t, CodeUnknownDomain, h.ActivateDomain(t.Context(), pool, c))
	requireCode(t, CodeUnknownDomain, h.DeactivateDomain(t.Context(), pool, uuid.New(), uuid.Nil, 0))
	requireCode(t, CodeActive, h.DetachDomain(t.Context(), pool, b))
	for _, d := range []uuid.UUID{b, c} {
		require.NoError(t, h.DeactivateDomain(t.Context(), pool, d, uuid.Nil, 0))
		require.NoError(t, h.DetachDomain(t.Context(), pool, d))
	}
	require.Equal(t, map[uuid.UUID]DomainState{domains[0]: DomainActive}, states(t, h, pool))
	require.Empty(t, volumeNames(t, h))

	require.NoError(t, os.Rename(filepath.Join(root, "b.away"), filepath.Join(root, "b")))
	require.NoError(t, h.AttachDomain(t.Context(), pool, b))
	require.NoError(t, h.ActivateDomain(t.Context(), pool, b))
	require.Equal(t, []string{"web1"}, volumeNames(t, h))
}

// A domain that vanishes is shown as such, and concerns only what is in it.
func TestVanishedDomainConcernsItself(t *testing.T) {
	root := t.TempDir()
	h, pool, domains := managed(t, root, func(o *HostOptions) { o.Servers = &fakeServers{byKey: map[string]*Server{}} })
	at := map[uuid.UUID]VolumeAt{}
	for _, d := range domains[:2] {
		v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "in " + d.String(), Size: gib, DomainUUID: d.String()})
		require.NoError(t, err)
		at[d] = VolumeAt{Pool: pool, Domain: d, Image: uuid.MustParse(v.ImageUUID)}
	}
	b := domains[1]
	require.NoError(t, os.Rename(filepath.Join(root, "b"), filepath.Join(root, "b.away")))

	require.EqualValues(t, 4*gib, hostPool(t, h).Capacity, "of the others")
	_, err := h.PrepareImage(t.Context(), at[domains[0]], PrepareOptions{})
	require.NoError(t, err)
	require.NoError(t, h.TeardownImage(t.Context(), at[domains[0]]))
	_, err = h.PrepareImage(t.Context(), at[b], PrepareOptions{})
	requireCode(t, CodeUnknownDomain, err)
	require.ErrorContains(t, err, "is not there")
	_, err = h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib, DomainUUID: b.String()})
	requireCode(t, CodeUnknownDomain, err)
	new := VolumeAt{Pool: pool, Domain: b, Image: uuid.New(), Volume: uuid.New()}
	_, err = h.CreateImageVolume(t.Context(), NewVolume{VolumeAt: new, Size: gib, Format: Cow, Alloc: Sparse, Type: Leaf})
	requireCode(t, CodeUnknownDomain, err)
	_, err = h.MoveImage(t.Context(), MoveImage{Pool: pool, From: domains[0], To: b, Image: at[domains[0]].Image})
	requireCode(t, CodeUnknownDomain, err)

	for _, again := range []bool{false, true} {
		if again {
			require.NoError(t, h.StopSPM(t.Context(), pool))
			startSPM(t, h, pool)
		}
		want := map[uuid.UUID]DomainState{domains[0]: DomainActive, b: DomainUnknown, domains[2]: DomainActive}
		require.Equal(t, want, states(t, h, pool))
		info, err := h.PoolInfo(t.Context(), pool)
		require.NoError(t, err)
		require.Equal(t, want, info.Domains)
		require.EqualValues(t, 4*gib, info.Stats.Capacity)
		s, err := h.DomainStats(t.Context(), b)
		require.NoError(t, err)
		require.Equal(t, DomainUnknown, s.State)
		require.Zero(t, s.Free)
	}

	require.NoError(t, os.Rename(filepath.Join(root, "b.away"), filepath.Join(root, "b")))
	require.NoError(t, h.ActivateDomain(t.Context(), pool, b))
	s, err := h.DomainStats(t.Context(), b)
	require.NoError(t, err)
	require.Equal(t, DomainActive, s.State)
	require.NotZero(t, s.Free)
	_, err = h.PrepareImage(t.Context(), at[b], PrepareOptions{})
	require.NoError(t, err)
	require.NoError(t, h.TeardownImage(t.Context(), at[b]))
}

// So is a volume group that has vanished, or has another name, although its tags were read
// before.
func TestVanishedGroup(t *testing.T) {
	root, g := t.TempDir(), namedGroup(t, "vg1", 32)
	h := openHost(t, root, func(o *HostOptions) {
		o.Devices, o.Groups = []string{"/dev/one"}, fakeGroups{"/dev/one": g}
		o.Poll = time.Hour // the test looks at the group itself
	})
	connect(t, h, DomainBlock, "/dev/one")
	master, b := makeDomain(t, h, root, "a"), uuid.New()
	require.NoError(t, h.CreateDomain(t.Context(), CreateDomain{Type: DomainBlock, ID: b, Name: "b", Where: "uuid-of-vg1"}))
	pool := makePool(t, h, master, b)
	startSPM(t, h, pool)
	require.NoError(t, h.ActivateDomain(t.Context(), pool, b))
	is := func(want DomainState) {
		t.Helper()
		_ = h.active(b).store.refresh(t.Context())
		info, err := h.DomainInfo(t.Context(), b)
		require.NoError(t, err)
		require.Equal(t, want, info.State)
		require.Equal(t, map[uuid.UUID]DomainState{master: DomainActive, b: want}, states(t, h, pool))
		all, err := h.Domains(t.Context(), uuid.Nil)
		require.NoError(t, err)
		require.Equal(t, want, all[b])
	}
	is(DomainActive)
	for _, gone := range []error{os.ErrNotExist, nil} {
		g.mu.Lock()
		g.gone = gone
		g.mu.Unlock()
		is(map[bool]DomainState{true: DomainUnknown, false: DomainActive}[gone != nil])
	}
}

// A task behind its commit point on a domain that vanishes is blocked, with what waits
// behind it. Neither keeps the role here or the domain in the pool, and both go on when
// the domain is back.
func TestTaskOnVanishedDomain(t *testing.T) {
	root := t.TempDir()
	var armed atomic.Bool
	h, pool, domains := managed(t, root, func(o *HostOptions) {
		o.At = func(point string) {
			if point == kindDeleteImage+":running:1:after" && armed.CompareAndSwap(true, false) {
				require.NoError(t, os.Rename(filepath.Join(root, "b"), filepath.Join(root, "b.away")))
			}
		}
	})
	b := domains[1]
	v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib, DomainUUID: b.String()})
	require.NoError(t, err)
	armed.Store(true)
	remove := DeleteImage{Pool: pool, Domain: b, Image: uuid.MustParse(v.ImageUUID)}
	first, err := h.DeleteImage(t.Context(), remove)
	require.NoError(t, err)
	blocked := func() bool {
		i, err := h.pool.engine.Info(first)
		require.NoError(t, err)
		return i.Blocked != nil && !i.Active
	}
	eventually(t, blocked)
	next, err := h.startTask(t.Context(), kindDeleteImage, deleteArgs{Pool: pool, Domain: b, Image: remove.Image})
	require.NoError(t, err)
	require.NoError(t, h.StopSPM(t.Context(), pool))
	startSPM(t, h, pool)
	eventually(t, blocked)
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, b, uuid.Nil, 0))

	require.NoError(t, os.Rename(filepath.Join(root, "b.away"), filepath.Join(root, "b")))
	require.NoError(t, h.ActivateDomain(t.Context(), pool, b))
	waitTask(t, h, first)
	eventually(t, func() bool {
		s, err := h.TaskStatus(t.Context(), next)
		require.NoError(t, err)
		return task.State(s.State).Ended()
	})
	require.Empty(t, volumeNames(t, h))
}

// A domain that is there, with a task that is blocked, is not taken out of use, and who
// wants that is told so at once.
func TestTaskBlocksDomain(t *testing.T) {
	root := t.TempDir()
	var armed atomic.Bool
	h, pool, domains := managed(t, root, func(o *HostOptions) {
		o.LockPatience = time.Hour
		o.At = func(point string) {
			if point == kindDeleteImage+":running:1:after" && armed.CompareAndSwap(true, false) {
				require.NoError(t, os.Rename(filepath.Join(root, "b"), filepath.Join(root, "b.away")))
			}
		}
	})
	b := domains[1]
	v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib, DomainUUID: b.String()})
	require.NoError(t, err)
	armed.Store(true)
	id, err := h.DeleteImage(t.Context(), DeleteImage{Pool: pool, Domain: b, Image: uuid.MustParse(v.ImageUUID)})
	require.NoError(t, err)
	eventually(t, func() bool {
		i, err := h.pool.engine.Info(id)
		require.NoError(t, err)
		return i.Blocked != nil && !i.Active
	})
	require.NoError(t, os.Rename(filepath.Join(root, "b.away"), filepath.Join(root, "b")))
	err = h.DeactivateDomain(t.Context(), pool, b, uuid.Nil, 0)
	requireCode(t, CodeUnfinished, err)
	require.ErrorContains(t, err, "is used by task "+id.String()+" (deleteImage), which is blocked: ")
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, domains[2], uuid.Nil, 0), "another domain")

	require.NoError(t, h.RevertTask(t.Context(), id))
	waitTask(t, h, id)
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, b, uuid.Nil, 0))
}

// When the tasks go on with another master, the domain that was the master is out of use
// already: the lock that kept tasks from it does not count for them any more.
func TestFormerMasterIsOutOfUseForTasks(t *testing.T) {
	root := t.TempDir()
	var armed atomic.Bool
	var h *Host
	var pool uuid.UUID
	var domains []uuid.UUID
	var found []error // what a task would find that goes on
	h, pool, domains = managed(t, root, func(o *HostOptions) {
		o.At = func(point string) {
			if point == kindDeleteImage+":running:1:after" && armed.CompareAndSwap(true, false) {
				require.NoError(t, os.Rename(filepath.Join(root, "b"), filepath.Join(root, "b.away")))
			}
		}
		o.Log = slog.New(slog.NewTextHandler(sink(func(line string) {
			if strings.Contains(line, "a task was found") {
				found = append(found, second(h.manager(domains[0])))
			}
		}), nil))
	})
	v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib, DomainUUID: domains[1].String()})
	require.NoError(t, err)
	armed.Store(true)
	id, err := h.DeleteImage(t.Context(), DeleteImage{Pool: pool, Domain: domains[1], Image: uuid.MustParse(v.ImageUUID)})
	require.NoError(t, err)
	eventually(t, func() bool {
		i, err := h.pool.engine.Info(id)
		require.NoError(t, err)
		return i.Blocked != nil && !i.Active
	})
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, domains[0], domains[2], 0))
	require.Len(t, found, 1)
	requireCode(t, CodeNotActive, found[0])
}

// What goes on is in the way, and so is what waits, unless it may have to for ever.
func TestInTheWay(t *testing.T) {
	goes := func(s task.State, blocked bool) task.Info {
		i := task.Info{Record: task.Record{ID: uuid.New(), State: s}, Active: !blocked}
		if blocked {
			i.Blocked = &task.Failure{Message: "gone"}
		}
		return i
	}
	running, queued, ended, blocked := goes(task.Running, false), goes(task.Queued, false), goes(task.Finished, false), goes(task.Recovering, true)
	require.Equal(t, []uuid.UUID{running.ID, queued.ID}, inTheWay([]task.Info{running, queued, ended}))
	require.Equal(t, []uuid.UUID{running.ID}, inTheWay([]task.Info{running, queued, ended, blocked}))
}
