package spm

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/spm/task"
)

// fakeGroups are the volume groups on the devices of a host: each has one of its own.
type fakeGroups map[string]*fakeGroup // by device

func (f fakeGroups) List(_ context.Context, devices []string) (all []GroupState, err error) {
	for _, d := range devices {
		if g := f[d]; g != nil {
			all = append(all, *g.State())
		}
	}
	return all, nil
}

func (f fakeGroups) Open(_ context.Context, uuid string, devices []string) (VolumeGroup, error) {
	for _, d := range devices {
		if g := f[d]; g != nil && g.State().UUID == uuid {
			return g, nil
		}
	}
	return nil, os.ErrNotExist
}

// namedGroup is a fakeGroup that can be told from others.
func namedGroup(t *testing.T, name string, extents int64) *fakeGroup {
	g := newFakeGroup(t, extents)
	g.state.Name, g.state.UUID = name, "uuid-of-"+name
	return g
}

// openHost starts a host on a root that exists.
func openHost(t *testing.T, root string, change ...func(*HostOptions)) *Host {
	t.Helper()
	o := HostOptions{Options: testOptions(), Roots: []string{root}}
	o.Capacity = 0
	for _, c := range change {
		c(&o)
	}
	h, err := OpenHost(o)
	require.NoError(t, err)
	t.Cleanup(func() {
		if h.ctx.Err() == nil {
			require.NoError(t, h.Close())
		}
	})
	return h
}

// killHost ends a host as SIGKILL does.
func killHost(t *testing.T, h *Host) {
	t.Helper()
	h.cancel()
	h.starting.Wait()
	require.NoError(t, h.unlockState())
	if h.pool == nil {
		return
	}
	if h.pool.engine != nil {
		h.pool.engine.Close()
		require.NoError(t, h.pool.done())
	}
	for _, m := range h.pool.managers {
		m.cancel()
		<-m.watched
		require.NoError(t, m.store.close())
	}
}

// makeDir makes and connects a directory.
func makeDir(t *testing.T, h *Host, root, name string) string {
	t.Helper()
	dir := filepath.Join(root, name)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	connect(t, h, DomainLocal, dir)
	return dir
}

func connect(t *testing.T, h *Host, kind DomainType, address string) {
	t.Helper()
	r, err := h.ConnectServer(t.Context(), kind, []Connection{{ID: uuid.New(), Address: address}})
	require.NoError(t, err)
	require.NoError(t, r[0].Err)
}

// makeDomain makes a domain in a directory.
func makeDomain(t *testing.T, h *Host, root, name string) uuid.UUID {
	t.Helper()
	id := uuid.New()
	require.NoError(t, h.CreateDomain(t.Context(), CreateDomain{
		Type: DomainLocal, ID: id, Name: name, Where: makeDir(t, h, root, name), Capacity: 2 * gib,
	}))
	return id
}

// makePool makes a pool of domains, the first of which is the master, and connects it.
func makePool(t *testing.T, h *Host, domains ...uuid.UUID) uuid.UUID {
	t.Helper()
	pool := uuid.New()
	require.NoError(t, h.CreatePool(t.Context(), CreatePool{ID: pool, Name: "pool", Master: domains[0], Domains: domains, MasterVersion: 1}))
	require.NoError(t, h.ConnectPool(t.Context(), pool, domains[0], 1))
	return pool
}

// startSPM takes the role, as a client does.
func startSPM(t *testing.T, h *Host, pool uuid.UUID) {
	t.Helper()
	id, err := h.StartSPM(t.Context(), pool)
	require.NoError(t, err)
	waitTask(t, h, id)
	require.NoError(t, h.ClearTask(t.Context(), id))
}

func waitTask(t *testing.T, h *Host, id uuid.UUID) {
	t.Helper()
	var s TaskStatus
	eventually(t, func() bool {
		var err error
		s, err = h.TaskStatus(t.Context(), id)
		require.NoError(t, err)
		return task.State(s.State).Ended()
	})
	require.True(t, s.Success, "%+v", s)
}

// managed is a pool of three active domains in directories, with a host that is its
// SPM.
func managed(t *testing.T, root string, change ...func(*HostOptions)) (h *Host, pool uuid.UUID, domains []uuid.UUID) {
	t.Helper()
	h = openHost(t, root, change...)
	for _, name := range []string{"a", "b", "c"} {
		domains = append(domains, makeDomain(t, h, root, name))
	}
	pool = makePool(t, h, domains...)
	startSPM(t, h, pool)
	for _, d := range domains[1:] {
		require.NoError(t, h.ActivateDomain(t.Context(), pool, d))
	}
	return h, pool, domains
}

func states(t *testing.T, h *Host, pool uuid.UUID) map[uuid.UUID]DomainState {
	t.Helper()
	s, err := h.Domains(t.Context(), pool)
	require.NoError(t, err)
	return s
}

func TestLifeOfAPool(t *testing.T) {
	root := t.TempDir()
	h := openHost(t, root)
	a := makeDomain(t, h, root, "a")
	b := makeDomain(t, h, root, "b")
	info, err := h.DomainInfo(t.Context(), a)
	require.NoError(t, err)
	require.Equal(t, DomainInfo{
		ID: a, Type: DomainLocal, Class: "Data", Name: "a", Role: "Regular", Version: 5, State: DomainUnattached,
		Where: filepath.Join(root, "a"),
	}, info)

	pool := makePool(t, h, a, b)
	require.Equal(t, map[uuid.UUID]DomainState{a: DomainActive, b: DomainAttached}, states(t, h, pool))
	require.Equal(t, states(t, h, pool), states(t, h, uuid.Nil))
	status, err := h.SPMStatus(t.Context(), pool)
	require.NoError(t, err)
	require.Equal(t, RoleStatus{Role: "Free", ID: -1}, status)
	_, err = h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib})
	requireCode(t, CodeStopping, err)

	startSPM(t, h, pool)
	status, err = h.SPMStatus(t.Context(), pool)
	require.NoError(t, err)
	require.Equal(t, RoleStatus{Role: "SPM", ID: 1, Epoch: 1}, status)
	require.NoError(t, h.ActivateDomain(t.Context(), pool, b))
	v := create(t, h, "web1", 10*gib)
	require.Equal(t, a.String(), v.DomainUUID, "the master, unless somebody says otherwise")
	w, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web2", Size: 10 * gib, DomainUUID: b.String()})
	require.NoError(t, err)
	require.Equal(t, b.String(), w.DomainUUID)
	_, err = h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib, DomainUUID: b.String()})
	requireCode(t, CodeExists, err)
	_, err = h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "x", Size: gib, DomainUUID: pool.String()})
	requireCode(t, CodeUnknownDomain, err)

	require.EqualValues(t, 200*mib, extend(t, h, "web2", 200*mib, 0))
	p := hostPool(t, h)
	require.EqualValues(t, 4*gib, p.Capacity)
	require.EqualValues(t, 328*mib, p.Granted)
	require.Equal(t, 2, p.Volumes)
	require.Equal(t, "web2", p.LastExtended)
	l, err := h.ListVolumes(t.Context(), VolumeListRequest{})
	require.NoError(t, err)
	require.Len(t, l.Volumes, 2)
	all, err := h.PoolInfo(t.Context(), pool)
	require.NoError(t, err)
	require.EqualValues(t, 328*mib, all.Stats.Granted)
	require.Equal(t, 2, all.Stats.Volumes)

	handle, err := h.Volume(t.Context(), VolumeRef{Volume: "web2"})
	require.NoError(t, err)
	size, err := handle.Extend(t.Context(), 300*mib, 0)
	require.NoError(t, err)
	require.EqualValues(t, 300*mib, size)
	remove(t, h, "web1")

	require.NoError(t, h.StopSPM(t.Context(), pool))
	require.NoError(t, h.DisconnectPool(t.Context(), pool))
	requireCode(t, CodeNotConnected, second(h.PoolInfo(t.Context(), pool)))
}

func second[T any](_ T, err error) error { return err }

func hostPool(t *testing.T, h *Host) PoolReply {
	t.Helper()
	r, err := h.GetPoolInfo(t.Context(), PoolInfoRequest{})
	require.NoError(t, err)
	return r
}

// A pool may have domains of both kinds; the master's role moves between them, with
// the tasks, and what was the master can leave.
func TestMasterMoves(t *testing.T) {
	root := t.TempDir()
	g := namedGroup(t, "vg1", 32)
	h := openHost(t, root, func(o *HostOptions) {
		o.Devices, o.Groups = []string{"/dev/one"}, fakeGroups{"/dev/one": g}
	})
	a := makeDomain(t, h, root, "a")
	connect(t, h, DomainBlock, "/dev/one")
	b := uuid.New()
	err := h.CreateDomain(t.Context(), CreateDomain{Type: DomainBlock, ID: b, Name: "b", Where: "vg2"})
	requireCode(t, CodeNotConnected, err)
	require.ErrorContains(t, err, "there is no volume group vg2 on the devices that are connected")
	requireCode(t, CodeInvalid, h.CreateDomain(t.Context(), CreateDomain{Type: DomainLocal, ID: b, Name: "b", Where: root, Capacity: math.MaxInt64}))
	require.NoError(t, h.CreateDomain(t.Context(), CreateDomain{Type: DomainBlock, ID: b, Name: "b", Where: "vg1"}))
	pool := makePool(t, h, a)
	requireCode(t, CodeNotSPM, h.AttachDomain(t.Context(), pool, b))
	startSPM(t, h, pool)
	require.NoError(t, h.AttachDomain(t.Context(), pool, b))
	requireCode(t, CodeIsMaster, h.DeactivateDomain(t.Context(), pool, a, b, 0))
	require.NoError(t, h.ActivateDomain(t.Context(), pool, b))
	create(t, h, "old", 10*gib)
	v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "new", Size: 10 * gib, DomainUUID: b.String()})
	require.NoError(t, err)

	requireCode(t, CodeIsMaster, h.DetachDomain(t.Context(), pool, a))
	requireCode(t, CodeIsMaster, h.DeactivateDomain(t.Context(), pool, a, uuid.Nil, 0))
	requireCode(t, CodeWrongVersion, h.DeactivateDomain(t.Context(), pool, a, b, 1))
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, a, b, 7))
	info, err := h.PoolInfo(t.Context(), pool)
	require.NoError(t, err)
	require.Equal(t, b, info.Master)
	require.EqualValues(t, 7, info.MasterVersion)
	require.Equal(t, map[uuid.UUID]DomainState{a: DomainAttached, b: DomainActive}, info.Domains)
	require.EqualValues(t, 1, info.SPM.Epoch, "the epoch is the pool's")
	was, err := h.DomainInfo(t.Context(), a)
	require.NoError(t, err)
	require.Equal(t, "Regular", was.Role)
	require.Equal(t, DomainAttached, was.State)
	_, err = h.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: "old"}})
	requireCode(t, CodeNotFound, err)
	require.EqualValues(t, 2*fakeExtent, extend(t, h, v.VolumeUUID, fakeExtent+1, 0))

	require.NoError(t, h.DetachDomain(t.Context(), pool, a))
	require.Equal(t, map[uuid.UUID]DomainState{b: DomainActive}, states(t, h, pool))
	requireCode(t, CodeAttached, h.FormatDomain(t.Context(), b))
	require.NoError(t, h.FormatDomain(t.Context(), a))
	require.NoDirExists(t, filepath.Join(root, "a", a.String()))

	killHost(t, h)
	h = openHost(t, root, func(o *HostOptions) {
		o.Devices, o.Groups = []string{"/dev/one"}, fakeGroups{"/dev/one": g}
	})
	connect(t, h, DomainBlock, "/dev/one")
	requireCode(t, CodeWrongMaster, h.ConnectPool(t.Context(), pool, a, 7))
	requireCode(t, CodeWrongVersion, h.ConnectPool(t.Context(), pool, b, 1))
	require.NoError(t, h.ConnectPool(t.Context(), pool, b, 7))
	startSPM(t, h, pool)
	require.EqualValues(t, 2, hostPool(t, h).SPMEpoch)
	require.Equal(t, []string{"new"}, volumeNames(t, h))
	require.NoError(t, h.DestroyPool(t.Context(), pool))
	require.NoError(t, h.FormatDomain(t.Context(), b))
	require.Empty(t, g.State().Volumes)
	require.Empty(t, g.State().Tags)
}

func volumeNames(t *testing.T, api API) (names []string) {
	t.Helper()
	l, err := api.ListVolumes(t.Context(), VolumeListRequest{})
	require.NoError(t, err)
	for _, v := range l.Volumes {
		names = append(names, v.Name)
	}
	return names
}

// A domain is neither formatted nor deactivated under who has a volume open.
func TestDomainInUse(t *testing.T) {
	h, pool, domains := managed(t, t.TempDir())
	v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib, DomainUUID: domains[1].String()})
	require.NoError(t, err)
	release, err := imageLocks{}.Hold(v.Path)
	require.NoError(t, err)
	requireCode(t, CodeInUse, h.DeactivateDomain(t.Context(), pool, domains[1], uuid.Nil, 0))
	require.EqualValues(t, 200*mib, extend(t, h, "web1", 200*mib, 0), "it goes on")
	require.NoError(t, release())
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, domains[1], uuid.Nil, 0))
	require.NoError(t, h.DetachDomain(t.Context(), pool, domains[1]))
	release, err = imageLocks{}.Hold(v.Path)
	require.NoError(t, err)
	requireCode(t, CodeInUse, h.FormatDomain(t.Context(), domains[1]))
	require.FileExists(t, v.Path)
	require.NoError(t, release())
	require.NoError(t, h.FormatDomain(t.Context(), domains[1]))
}

// A pool is not destroyed under who has a volume of its master open, whether or not
// this host manages it.
func TestDestroyPoolInUse(t *testing.T) {
	h, pool, domains := managed(t, t.TempDir())
	for _, d := range domains[1:] {
		require.NoError(t, h.DeactivateDomain(t.Context(), pool, d, uuid.Nil, 0))
	}
	v := create(t, h, "web1", gib)
	release, err := imageLocks{}.Hold(v.Path)
	require.NoError(t, err)
	requireCode(t, CodeInUse, h.DestroyPool(t.Context(), pool))
	require.EqualValues(t, 200*mib, extend(t, h, "web1", 200*mib, 0), "it goes on")
	require.NoError(t, h.StopSPM(t.Context(), pool))
	requireCode(t, CodeInUse, h.DestroyPool(t.Context(), pool))
	require.NoError(t, release())
	require.NoError(t, h.DestroyPool(t.Context(), pool))
}

// What a host was is what it is after a crash, without being asked.
func TestHostRemembers(t *testing.T) {
	root, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	with := func(o *HostOptions) { o.State = state }
	h, pool, _ := managed(t, root, with)
	create(t, h, "web1", gib)
	killHost(t, h)
	h = openHost(t, root, with)
	require.Equal(t, []string{"web1"}, volumeNames(t, h))
	status, err := h.SPMStatus(t.Context(), pool)
	require.NoError(t, err)
	require.Equal(t, RoleStatus{Role: "SPM", ID: 1, Epoch: 2}, status)
	require.Len(t, h.pool.managers, 3)

	require.NoError(t, h.StopSPM(t.Context(), pool))
	require.NoError(t, h.Close())
	h = openHost(t, root, with)
	status, err = h.SPMStatus(t.Context(), pool)
	require.NoError(t, err)
	require.Equal(t, RoleStatus{Role: "Free", ID: -1, Epoch: 2}, status)
	require.NoError(t, h.Close())

	require.NoError(t, os.WriteFile(filepath.Join(state, "host.json"), []byte("{"), 0o600))
	require.Empty(t, openHost(t, root, with).connections, "a cache that nobody can read is none")
}

// What a host has become it remembers before anybody is told: who is told may kill it.
func TestHostRemembersBeforeItTells(t *testing.T) {
	root, state := t.TempDir(), t.TempDir()
	var managed atomic.Bool
	var remembered atomic.Pointer[string] // when the clock is asked first after that
	h := openHost(t, root, func(o *HostOptions) {
		o.State = state
		o.Log = slog.New(slog.NewTextHandler(sink(func(line string) {
			if strings.Contains(line, "the pool is managed") {
				managed.Store(true)
			}
		}), nil))
		o.Now = func() time.Time {
			if managed.Load() {
				text, err := os.ReadFile(filepath.Join(state, "host.json"))
				require.NoError(t, err)
				first := string(text)
				remembered.CompareAndSwap(nil, &first)
			}
			return time.Now()
		}
	})
	pool := makePool(t, h, makeDomain(t, h, root, "a"))
	startSPM(t, h, pool)
	require.Contains(t, *remembered.Load(), `"spm": true`)
}

// A sink is told what is written.
type sink func(string)

func (s sink) Write(p []byte) (int, error) {
	s(string(p))
	return len(p), nil
}

// Two hosts with one cache would each forget what the other knows: the second does not
// start, and says who has it.
func TestOneHostHasTheState(t *testing.T) {
	root, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	h := openHost(t, root, func(o *HostOptions) { o.State = state })
	_, err := OpenHost(HostOptions{Options: testOptions(), Roots: []string{root}, State: state})
	requireCode(t, CodeInUse, err)
	require.ErrorContains(t, err, fmt.Sprintf("%s: the state is used by the manager that is process %d: ", state, os.Getpid()))
	require.NoError(t, h.Close())
	openHost(t, root, func(o *HostOptions) { o.State = state })
}

// Two hosts on one machine: one manages a pool.
func TestOneSPM(t *testing.T) {
	root := t.TempDir()
	h, pool, domains := managed(t, root)
	other := openHost(t, root)
	for _, d := range []string{"a", "b", "c"} {
		makeDir(t, other, root, d)
	}
	require.NoError(t, other.ConnectPool(t.Context(), pool, domains[0], 1))
	id, err := other.StartSPM(t.Context(), pool)
	require.NoError(t, err)
	eventually(t, func() bool {
		s, err := other.TaskStatus(t.Context(), id)
		require.NoError(t, err)
		return s.State == string(task.Failed) && s.Code == CodeInUse
	})
	status, err := other.SPMStatus(t.Context(), pool)
	require.NoError(t, err)
	require.Equal(t, "Free", status.Role)
	require.NoError(t, h.StopSPM(t.Context(), pool))
	startSPM(t, other, pool)
}

// A start that does not succeed, or that the process does not survive, leaves the host
// what it was for the next one.
func TestHostRemembersWhatItCouldNotBe(t *testing.T) {
	root, state := t.TempDir(), t.TempDir()
	with := func(o *HostOptions) { o.State = state }
	h, pool, _ := managed(t, root, with)
	require.NoError(t, h.Close())
	remembered, err := os.ReadFile(h.memoryPath())
	require.NoError(t, err)
	second := openHost(t, root, with, func(o *HostOptions) {
		o.Leases = refusing(func() {
			text, err := os.ReadFile(h.memoryPath())
			require.NoError(t, err)
			require.Equal(t, string(remembered), string(text), "while it becomes the SPM")
		})
	})
	require.NoError(t, second.Close())
	status, err := openHost(t, root, with).SPMStatus(t.Context(), pool)
	require.NoError(t, err)
	require.Equal(t, "SPM", status.Role)
}

// refusing are leases that nobody gets.
type refusing func()

func (r refusing) Acquire(context.Context, LeaseOf) (Lease, error) {
	r()
	return nil, block.ErrInUse
}

// leases whose Lost can be closed.
type leases struct{ lost map[string]chan struct{} }

func (l leases) Acquire(ctx context.Context, of LeaseOf) (Lease, error) {
	inner, err := localLeases{}.Acquire(ctx, of)
	if l.lost[of.Dir] == nil {
		l.lost[of.Dir] = make(chan struct{})
	}
	return losable{inner, l.lost[of.Dir]}, err
}

type losable struct {
	Lease
	lost chan struct{}
}

func (l losable) Lost() <-chan struct{} { return l.lost }

func TestLeaseIsLost(t *testing.T) {
	root := t.TempDir()
	l := leases{map[string]chan struct{}{}}
	h, pool, _ := managed(t, root, func(o *HostOptions) { o.Leases = l })
	create(t, h, "web1", gib)
	close(l.lost[filepath.Join(root, "b")])
	eventually(t, func() bool {
		s, err := h.SPMStatus(t.Context(), pool)
		require.NoError(t, err)
		return s.Role == "Free"
	})
	_, err := h.ExtendVolume(t.Context(), extendRequest("web1", 200*mib, 0))
	requireCode(t, CodeStopping, err)
	require.ErrorIs(t, err, block.ErrClosed)
	delete(l.lost, filepath.Join(root, "b"))
	startSPM(t, h, pool)
	require.Equal(t, []string{"web1"}, volumeNames(t, h))
}

// Events of all domains, and of tasks, are one stream.
func TestWatchStorage(t *testing.T) {
	h, pool, domains := managed(t, t.TempDir())
	v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: 4 * gib, DomainUUID: domains[2].String()})
	require.NoError(t, err)
	extend(t, h, "web1", 1950*mib, 0)
	extend(t, h, "web1", 1951*mib, 0)
	all, err := h.WatchStorage(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, EventTask, all[0].Kind, "of the SPM")
	for i, e := range all {
		require.EqualValues(t, i+1, e.Number)
	}
	last := all[len(all)-1]
	require.Equal(t, Event{
		Number: last.Number, Time: last.Time, Kind: EventExtended, Name: "web1", VolumeUUID: v.VolumeUUID, Bytes: mib,
		DomainUUID: domains[2].String(),
	}, last)
	some, err := h.WatchPool(t.Context(), PoolWatchRequest{})
	require.NoError(t, err)
	require.Equal(t, []string{EventTight}, kinds(some.Events))
	require.True(t, some.Tight)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = h.WatchStorage(ctx, last.Number)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_ = pool
}

func TestOpenDirIsAPoolOfItsOwn(t *testing.T) {
	dir := t.TempDir()
	_, err := OpenDir(dir, HostOptions{})
	require.ErrorContains(t, err, "--capacity")
	o := HostOptions{Options: testOptions()}
	h, err := OpenDir(dir, o)
	require.NoError(t, err)
	create(t, h, "web1", gib)
	_, err = OpenDir(dir, o)
	require.ErrorIs(t, err, block.ErrInUse)
	requireCode(t, CodeOutsideRoots, connectError(t, h, t.TempDir()))
	require.NoError(t, h.Close())
	requireCode(t, CodeStopping, h.Close())
	o.Capacity = gib
	_, err = OpenDir(dir, o)
	require.ErrorContains(t, err, "may only be raised")
	o.Capacity = 3 * gib
	h, err = OpenDir(dir, o)
	require.NoError(t, err)
	p := hostPool(t, h)
	require.EqualValues(t, 3*gib, p.Capacity)
	require.EqualValues(t, 2, p.SPMEpoch)
	require.NoError(t, h.Close())

	g := newFakeGroup(t, 32)
	h, err = OpenGroup(t.Context(), g, HostOptions{Options: Options{Images: fakeImages{}}})
	require.NoError(t, err)
	create(t, h, "web1", gib)
	require.NoError(t, h.Close())
	h, err = OpenGroup(t.Context(), g, HostOptions{Options: Options{Images: fakeImages{}}})
	require.NoError(t, err)
	require.Equal(t, []string{"web1"}, volumeNames(t, h))
	require.EqualValues(t, 2, hostPool(t, h).SPMEpoch)
	require.NoError(t, h.Close())
}

func connectError(t *testing.T, h *Host, dir string) error {
	t.Helper()
	r, err := h.ConnectServer(t.Context(), DomainLocal, []Connection{{Address: dir}})
	require.NoError(t, err)
	return r[0].Err
}

// Each verb on a domain in each standing does what the table says.
func TestVerbsOnDomains(t *testing.T) {
	for s := range standings {
		for v := range domainVerbs {
			t.Run(s.String()+"/"+v.String(), func(t *testing.T) {
				h, pool, domain := domainThat(t, s)
				err := do(t, h, s, v, pool, domain)
				rule := domainTable[s][v]
				if s == standsMaster && v == verbDeactivate { // a question of the others
					rule = domainMaster
				}
				if rule.act == refused {
					requireCode(t, rule.code, err)
					return
				}
				require.NoError(t, err)
			})
		}
	}
}

// domainThat makes a domain that stands so, in a pool with a master beside it.
func domainThat(t *testing.T, s standing) (h *Host, pool, domain uuid.UUID) {
	root := t.TempDir()
	h = openHost(t, root)
	master := makeDomain(t, h, root, "master")
	if s == standsMaster {
		pool = makePool(t, h, master)
		startSPM(t, h, pool)
		return h, pool, master
	}
	domain = makeDomain(t, h, root, "other")
	pool = makePool(t, h, master)
	startSPM(t, h, pool)
	f, err := h.find(t.Context(), domain)
	require.NoError(t, err)
	switch s {
	case standsClaiming:
		require.NoError(t, h.claim(t.Context(), f, pool))
	case standsElsewhere:
		require.NoError(t, h.claim(t.Context(), f, uuid.New()))
	case standsAttached, standsActive:
		require.NoError(t, h.AttachDomain(t.Context(), pool, domain))
		if s == standsActive {
			require.NoError(t, h.ActivateDomain(t.Context(), pool, domain))
		}
	}
	return h, pool, domain
}

func do(t *testing.T, h *Host, s standing, v domainVerb, pool, domain uuid.UUID) error {
	switch v {
	case verbFormat:
		return h.FormatDomain(t.Context(), domain)
	case verbJoin: // a new pool, which is the one that is claimed
		id := uuid.New()
		if s == standsClaiming {
			f, err := h.find(t.Context(), domain)
			require.NoError(t, err)
			require.NoError(t, h.claim(t.Context(), f, id))
		}
		third := makeDomain(t, h, h.o.Roots[0], "third")
		return h.CreatePool(t.Context(), CreatePool{ID: id, Master: third, Domains: []uuid.UUID{third, domain}, MasterVersion: 1})
	case verbAttach:
		return h.AttachDomain(t.Context(), pool, domain)
	case verbActivate:
		return h.ActivateDomain(t.Context(), pool, domain)
	case verbDeactivate:
		return h.DeactivateDomain(t.Context(), pool, domain, uuid.Nil, 0)
	}
	return h.DetachDomain(t.Context(), pool, domain)
}

// Each verb on a pool in each role does what the table says.
func TestVerbsOnPools(t *testing.T) {
	for r := range roles {
		for v := range poolVerbs {
			t.Run(r.String()+"/"+v.String(), func(t *testing.T) {
				root := t.TempDir()
				h := openHost(t, root)
				a, b := makeDomain(t, h, root, "a"), makeDomain(t, h, root, "b")
				pool := makePool(t, h, a)
				switch r {
				case roleStranger:
					require.NoError(t, h.DisconnectPool(t.Context(), pool))
				case roleContend, roleSPM:
					startSPM(t, h, pool)
				}
				if r == roleContend { // the manager of the pool is there already, and its start goes on
					h.mu.Lock()
					h.pool.role, h.pool.start.ended = roleContend, time.Time{}
					h.mu.Unlock()
					defer func() {
						h.mu.Lock()
						defer h.mu.Unlock()
						h.pool.role = roleSPM
					}()
				}
				err := map[poolVerb]func() error{
					verbConnect:    func() error { return h.ConnectPool(t.Context(), pool, a, 1) },
					verbDisconnect: func() error { return h.DisconnectPool(t.Context(), pool) },
					verbStart: func() error {
						id, err := h.StartSPM(t.Context(), pool)
						if r == roleContend {
							require.Equal(t, h.pool.start.id, id, "who asks meanwhile joins the start that goes on")
						}
						return err
					},
					verbStop:    func() error { return h.StopSPM(t.Context(), pool) },
					verbChange:  func() error { return h.AttachDomain(t.Context(), pool, b) },
					verbDestroy: func() error { return h.DestroyPool(t.Context(), pool) },
					verbUse:     func() error { return second(h.startTask(t.Context(), "nothing", nil)) },
					verbAsk:     func() error { return second(h.PoolInfo(t.Context(), pool)) },
				}[v]()
				rule := roleTable[r][v]
				switch {
				case rule.act == refused:
					requireCode(t, rule.code, err)
				case v == verbUse:
					require.ErrorContains(t, err, "nothing", "there is no such kind of task")
				default:
					require.NoError(t, err)
				}
			})
		}
	}
}

func TestMembers(t *testing.T) {
	a, b := testDomain, testImage
	p := poolMeta{master: b, members: map[uuid.UUID]DomainState{a: DomainAttached, b: DomainActive}}
	text := p.formatMembers()
	require.Equal(t, b.String()+":Active,"+a.String()+":Attached", text)
	back, err := parseMembers(text)
	require.NoError(t, err)
	require.Equal(t, p.members, back)
	for _, bad := range []string{",", "x", a.String(), a.String() + ":", a.String() + ":Unknown", text + ","} {
		_, err := parseMembers(bad)
		require.Error(t, err, "%q", bad)
	}
	require.Equal(t, []uuid.UUID{a, b}, slices.SortedFunc(maps.Keys(back), func(x, y uuid.UUID) int { return slices.Compare(x[:], y[:]) }))
}
