package spm

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm/task"
)

// Who says what a pool is.
func TestBelieve(t *testing.T) {
	at := func(version int64) *poolMeta { return &poolMeta{version: version} }
	for _, c := range []struct {
		what       string
		ours, read *poolMeta
		manages    bool
		want       string
	}{
		{"nobody knows", nil, nil, false, "nobody"},
		{"a pool that is not connected", nil, at(1), false, "read"},
		{"the master has moved to it", at(1), at(2), false, "read"},
		{"the master as it is", at(2), at(2), false, "read"},
		{"who was the master before", at(2), at(1), false, "ours"},
		{"the master has vanished", at(2), nil, false, "ours"},
		{"the master has vanished under its manager", at(2), nil, true, "ours"},
		{"who was the master before, to its manager", at(2), at(1), true, "ours"},
		{"who manages the pool knows", at(2), at(3), true, "ours"},
	} {
		got := believe(c.ours, c.manages, c.read)
		is := "nobody"
		switch {
		case got == nil:
		case got == c.ours:
			is = "ours"
		case got == c.read:
			is = "read"
		}
		require.Equal(t, c.want, is, c.what)
	}
}

// Who may be the next master.
func TestMayLead(t *testing.T) {
	p := poolMeta{id: testPool, master: testDomain, version: 3}
	heir, other := uuid.New(), uuid.New()
	for _, c := range []struct {
		what    string
		heirs   []string
		to      uuid.UUID
		version int64
		code    Code // 0: it may
		says    string
	}{
		{"there is none", nil, heir, 4, CodeIsMaster, "no other active domain"},
		{"none is named", []string{heir.String()}, uuid.Nil, 0, CodeIsMaster, heir.String()},
		{"another is named", []string{heir.String()}, other, 4, CodeIsMaster, heir.String()},
		{"the version is old", []string{heir.String()}, heir, 3, CodeWrongVersion, "has version 3"},
		{"the next version", []string{heir.String()}, heir, 4, 0, ""},
		{"a higher one", []string{heir.String()}, heir, 7, 0, ""},
		{"no version is named", []string{heir.String()}, heir, 0, 0, ""},
	} {
		err := mayLead(p, c.heirs, c.to, c.version)
		if c.code == 0 {
			require.NoError(t, err, c.what)
			continue
		}
		requireCode(t, c.code, err)
		require.ErrorContains(t, err, c.says, c.what)
	}
}

// away moves the directory of a domain away, as if it were unmounted, and back brings it.
func away(t *testing.T, root, name string) (back func()) {
	t.Helper()
	at := filepath.Join(root, name)
	require.NoError(t, os.Rename(at, at+".away"))
	return func() {
		t.Helper()
		require.NoError(t, os.Rename(at+".away", at))
	}
}

// masters are the domains that say that they are the master of a pool, with the version.
func masters(t *testing.T, h *Host) map[uuid.UUID]int64 {
	t.Helper()
	all, errs := h.look(t.Context())
	require.Empty(t, errs)
	say := map[uuid.UUID]int64{}
	for _, f := range all {
		if f.is.master {
			say[f.id] = f.is.version
		}
	}
	return say
}

// The master vanishes while other domains are active: whatever needs it says what to do,
// and the role moves to one of them. When the former master is back it is told.
func TestMasterVanishes(t *testing.T) {
	root := t.TempDir()
	h, pool, domains := managed(t, root)
	a, b, c := domains[0], domains[1], domains[2]
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, c, uuid.Nil, 0))
	v, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib, DomainUUID: b.String()})
	require.NoError(t, err)
	back := away(t, root, "a")

	info, err := h.DomainInfo(t.Context(), a)
	require.NoError(t, err)
	require.Equal(t, []any{DomainUnknown, "Master"}, []any{info.State, info.Role})
	for what, err := range map[string]error{
		"a task":     second(h.CreateImageVolume(t.Context(), newImage(pool, b))),
		"activate":   h.ActivateDomain(t.Context(), pool, c),
		"detach":     h.DetachDomain(t.Context(), pool, c),
		"deactivate": h.DeactivateDomain(t.Context(), pool, b, uuid.Nil, 0),
	} {
		require.Error(t, err, what)
		require.Equal(t, CodeUnknownDomain, CodeOf(err), "%s: %v", what, err)
		require.ErrorContains(t, err, "deactivate it, and name the active domain that becomes the next one: "+b.String(), what)
	}
	requireCode(t, CodeIsMaster, h.DetachDomain(t.Context(), pool, a))
	requireCode(t, CodeIsMaster, h.DeactivateDomain(t.Context(), pool, a, uuid.Nil, 0))
	requireCode(t, CodeIsMaster, h.DeactivateDomain(t.Context(), pool, a, c, 2))
	requireCode(t, CodeWrongVersion, h.DeactivateDomain(t.Context(), pool, a, b, 1))
	require.NoError(t, h.ConnectPool(t.Context(), pool, a, 1), "it is connected")

	require.NoError(t, h.DeactivateDomain(t.Context(), pool, a, b, 2))
	require.Equal(t, map[uuid.UUID]DomainState{a: DomainAttached, b: DomainActive, c: DomainAttached}, states(t, h, pool))
	is, err := h.PoolInfo(t.Context(), pool)
	require.NoError(t, err)
	require.Equal(t, []any{b, int64(2), "SPM"}, []any{is.Master, is.MasterVersion, is.SPM.Role})
	id, err := h.CreateImageVolume(t.Context(), newImage(pool, b))
	require.NoError(t, err)
	waitTask(t, h, id)
	require.EqualValues(t, 200*mib, extend(t, h, v.VolumeUUID, 200*mib, 0))
	require.NoError(t, h.ActivateDomain(t.Context(), pool, c))

	back()
	info, err = h.DomainInfo(t.Context(), a)
	require.NoError(t, err)
	require.Equal(t, []any{DomainAttached, "Regular", int64(0)}, []any{info.State, info.Role, info.Master}, "whatever it says")
	require.Equal(t, map[uuid.UUID]int64{a: 1, b: 2}, masters(t, h))
	connect(t, h, DomainLocal, filepath.Join(root, "a"))
	require.Equal(t, map[uuid.UUID]int64{b: 2}, masters(t, h), "it is told")
	require.NoError(t, h.ActivateDomain(t.Context(), pool, a))
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, b, a, 3), "and may be the master again")
	require.Equal(t, map[uuid.UUID]int64{a: 3}, masters(t, h))
}

// newImage is an image of one small volume.
func newImage(pool, domain uuid.UUID) NewVolume {
	return NewVolume{VolumeAt: VolumeAt{Pool: pool, Domain: domain, Image: uuid.New(), Volume: uuid.New()},
		Size: gib, Format: Cow, Alloc: Sparse, Type: Leaf}
}

// The former master is back, and nobody has told it: no host believes it, one that manages
// the pool, one that is connected to it, and one that has both domains; and the next SPM
// tells it.
func TestFormerMasterIsNotBelieved(t *testing.T) {
	for _, how := range []string{"at the start", "activated", "detached"} {
		root := t.TempDir()
		h, pool, domains := managed(t, root)
		a, b := domains[0], domains[1]
		back := away(t, root, "a")
		require.NoError(t, h.DeactivateDomain(t.Context(), pool, a, b, 0))
		back()
		requireCode(t, CodeWrongMaster, h.ConnectPool(t.Context(), pool, a, 1))
		switch how {
		case "activated":
			require.NoError(t, h.ActivateDomain(t.Context(), pool, a))
		case "detached":
			require.NoError(t, h.DetachDomain(t.Context(), pool, a))
		default:
			require.NoError(t, h.StopSPM(t.Context(), pool))
			again := away(t, root, "b")
			requireCode(t, CodeWrongMaster, h.ConnectPool(t.Context(), pool, uuid.Nil, 0))
			again()
			require.NoError(t, h.ConnectPool(t.Context(), pool, b, 2))
			require.Equal(t, map[uuid.UUID]int64{a: 1, b: 2}, masters(t, h))
			require.NoError(t, h.Close())
			h = openHost(t, root)
			for _, d := range []string{"a", "b", "c"} {
				makeDir(t, h, root, d)
			}
			requireCode(t, CodeWrongMaster, h.ConnectPool(t.Context(), pool, a, 1))
			require.NoError(t, h.ConnectPool(t.Context(), pool, b, 2))
			startSPM(t, h, pool)
		}
		require.Equal(t, map[uuid.UUID]int64{b: 2}, masters(t, h), how)
	}
}

// A host that is connected to a pool does not manage it through the former master once it
// sees the newer one.
func TestFormerMasterIsNotManaged(t *testing.T) {
	root := t.TempDir()
	h, pool, domains := managed(t, root)
	back := away(t, root, "a")
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, domains[0], domains[1], 0))
	back()
	require.NoError(t, h.Close())
	h = openHost(t, root)
	makeDir(t, h, root, "a")
	require.NoError(t, h.ConnectPool(t.Context(), pool, domains[0], 1), "nothing says that there is another")
	makeDir(t, h, root, "b")
	id, err := h.StartSPM(t.Context(), pool)
	require.NoError(t, err)
	eventually(t, func() bool {
		s, err := h.TaskStatus(t.Context(), id)
		require.NoError(t, err)
		return s.State == string(task.Failed) && s.Code == CodeWrongMaster
	})
	require.NoError(t, h.ConnectPool(t.Context(), pool, domains[1], 2))
	startSPM(t, h, pool)
	require.Equal(t, map[uuid.UUID]int64{domains[1]: 2}, masters(t, h))
}

// The tasks move with the role although the master that keeps them has vanished: one that
// has ended is known, and one that could not be written any more is rolled back, or ends.
func TestTasksOfVanishedMaster(t *testing.T) {
	root := t.TempDir()
	var armed atomic.Bool
	h, pool, domains := managed(t, root, func(o *HostOptions) {
		o.At = func(point string) {
			if point == kindCreateVolume+":running:0:after" && armed.CompareAndSwap(true, false) {
				require.NoError(t, os.Rename(filepath.Join(root, "a"), filepath.Join(root, "a.away")))
			}
		}
	})
	b := domains[1]
	ended, err := h.CreateImageVolume(t.Context(), newImage(pool, b))
	require.NoError(t, err)
	waitTask(t, h, ended)
	armed.Store(true)
	cut, err := h.CreateImageVolume(t.Context(), newImage(pool, b))
	require.NoError(t, err)
	eventually(t, func() bool {
		i, err := h.pool.engine.Info(cut)
		require.NoError(t, err)
		return i.Blocked != nil && !i.Active
	})
	err = h.RevertTask(t.Context(), cut)
	require.True(t, err == nil || CodeOf(err) == CodeUnknownDomain, "%v", err)
	eventually(t, func() bool {
		i, err := h.pool.engine.Info(cut)
		require.NoError(t, err)
		return i.Blocked != nil && !i.Active
	})
	err = h.ClearTask(t.Context(), ended)
	requireCode(t, CodeUnknownDomain, err)
	require.ErrorContains(t, err, "name the active domain that becomes the next one")
	requireCode(t, CodeUnknownTask, h.ClearTask(t.Context(), uuid.New()))

	require.NoError(t, h.DeactivateDomain(t.Context(), pool, domains[0], b, 0))
	waitTask(t, h, ended)
	eventually(t, func() bool {
		s, err := h.TaskStatus(t.Context(), cut)
		require.NoError(t, err)
		return task.State(s.State).Ended()
	})
	require.NoError(t, h.ClearTask(t.Context(), ended))
	require.NoError(t, h.ClearTask(t.Context(), cut))
	images, err := h.Images(t.Context(), b)
	require.NoError(t, err)
	require.Len(t, images, 1, "what was cut off is rolled back")
}

// The role is given up although the master cannot be told.
func TestStopSPMWithoutMaster(t *testing.T) {
	root := t.TempDir()
	h, pool, domains := managed(t, root)
	back := away(t, root, "a")
	require.NoError(t, h.StopSPM(t.Context(), pool))
	require.Equal(t, roleFree, h.pool.role)
	_, err := h.SPMStatus(t.Context(), pool)
	requireCode(t, CodeUnknownDomain, err)
	require.ErrorContains(t, err, "reconstructMaster")
	back()
	s, err := h.SPMStatus(t.Context(), pool)
	require.NoError(t, err)
	require.Equal(t, RoleStatus{Role: "Free", ID: -1, Epoch: 1}, s)
	startSPM(t, h, pool)
	require.Equal(t, map[uuid.UUID]int64{domains[0]: 1}, masters(t, h))
}

// The host dies at every step of the move of a role whose master has vanished. Then the
// one is the master, or the other; and never both, once both are there.
func TestMoveFromVanishedMasterDies(t *testing.T) {
	moved := map[bool]int{}
	for steps, dead := int64(0), true; dead; steps++ {
		root := t.TempDir()
		d := &mortal{}
		d.left.Store(1 << 40)
		h, pool, domains := managed(t, root, func(o *HostOptions) { o.sync = d.sync })
		a, b := domains[0], domains[1]
		id, err := h.CreateImageVolume(t.Context(), newImage(pool, b))
		require.NoError(t, err)
		waitTask(t, h, id)
		back := away(t, root, "a")
		d.left.Store(steps)
		err = h.DeactivateDomain(t.Context(), pool, a, b, 2)
		dead = d.left.Load() < 0
		require.Equal(t, dead, err != nil, "%v", err)
		d.left.Store(0)
		killHost(t, h)

		name := fmt.Sprintf("step %d", steps)
		h = openHost(t, root)
		for _, n := range []string{"b", "c"} {
			makeDir(t, h, root, n)
		}
		err = h.ConnectPool(t.Context(), pool, uuid.Nil, 0)
		has := err == nil
		moved[has]++
		if has {
			require.NoError(t, h.ConnectPool(t.Context(), pool, b, 2), name)
			startSPM(t, h, pool)
			_, err := h.TaskStatus(t.Context(), id)
			require.NoError(t, err, "%s: its tasks came first", name)
		} else {
			requireCode(t, CodeUnknownPool, err)
		}
		back()
		makeDir(t, h, root, "a")
		if !has {
			require.NoError(t, h.ConnectPool(t.Context(), pool, a, 1), name)
			startSPM(t, h, pool)
			require.NoError(t, h.DeactivateDomain(t.Context(), pool, a, b, 2), name)
		}
		require.Equal(t, map[uuid.UUID]int64{b: 2}, masters(t, h), name)
		_, err = h.TaskStatus(t.Context(), id)
		require.NoError(t, err, name)
		require.NoError(t, h.ActivateDomain(t.Context(), pool, a), name)
		require.NoError(t, h.Close())
	}
	t.Logf("died before the role had moved %d times, and %d times after that or not at all", moved[false], moved[true])
	require.Greater(t, moved[false], 2)
	require.Greater(t, moved[true], 1)
}

// Who may say anew what a pool is.
func TestMayReconstruct(t *testing.T) {
	good := ReconstructMaster{Pool: testPool, Name: "pool", Master: testDomain, Domains: map[uuid.UUID]DomainState{testDomain: DomainActive}, MasterVersion: 4}
	known, there := &poolMeta{id: testPool, master: uuid.New(), version: 3, epoch: 50_000}, &poolMeta{id: testPool, master: testDomain, version: 3}
	with := func(change func(*ReconstructMaster)) ReconstructMaster {
		r := good
		change(&r)
		return r
	}
	for _, c := range []struct {
		what       string
		r          ReconstructMaster
		ours, read *poolMeta
		manages    bool
		code       Code // 0: it may
	}{
		{"nobody knows the pool", good, nil, nil, false, 0},
		{"its master is lost", good, known, nil, false, 0},
		{"who was the master before is there", good, known, &poolMeta{version: 2}, false, 0},
		{"the version that it had", with(func(r *ReconstructMaster) { r.MasterVersion = 3 }), known, nil, false, CodeWrongVersion},
		{"the first version", with(func(r *ReconstructMaster) { r.MasterVersion = 1 }), nil, nil, false, CodeWrongVersion},
		{"its master is there", good, nil, there, false, CodeWrongState},
		{"its master is there, and it is connected", good, known, there, false, CodeWrongState},
		{"it is managed", good, known, nil, true, CodeActive},
		{"the master is not listed", with(func(r *ReconstructMaster) { r.Master = uuid.New() }), nil, nil, false, CodeInvalid},
		{"no master", with(func(r *ReconstructMaster) { r.Master = uuid.Nil }), nil, nil, false, CodeInvalid},
		{"no pool", with(func(r *ReconstructMaster) { r.Pool = uuid.Nil }), nil, nil, false, CodeInvalid},
		{"no name", with(func(r *ReconstructMaster) { r.Name = "\n" }), nil, nil, false, CodeInvalid},
	} {
		err := mayReconstruct(c.r, c.ours, c.manages, c.read, 0)
		if c.code == 0 {
			require.NoError(t, err, c.what)
			continue
		}
		require.Error(t, err, c.what)
		require.Equal(t, c.code, CodeOf(err), "%s: %v", c.what, err)
	}
	require.EqualValues(t, 40_000, reconstructed(good, nil).epoch, "beyond what the lost one had")
	require.EqualValues(t, 50_000, reconstructed(good, known).epoch, "and beyond what is known")
}

// The master is lost, and nobody manages the pool: a client says what the pool is, and with
// that it is used again. The host may know the pool or not, and die at every step.
func TestReconstructMaster(t *testing.T) {
	for _, connected := range []bool{true, false} {
		moved := map[bool]int{}
		for steps, dead := int64(0), true; dead; steps++ {
			name := fmt.Sprintf("connected %v, step %d", connected, steps)
			root := t.TempDir()
			d := &mortal{}
			d.left.Store(1 << 40)
			h, pool, domains := managed(t, root, func(o *HostOptions) { o.sync = d.sync })
			a, b, c := domains[0], domains[1], domains[2]
			require.NoError(t, h.DeactivateDomain(t.Context(), pool, c, uuid.Nil, 0))
			require.NoError(t, h.DetachDomain(t.Context(), pool, c), "so that it has to claim the pool")
			back := away(t, root, "a")
			require.NoError(t, h.StopSPM(t.Context(), pool))
			if !connected {
				require.NoError(t, h.DisconnectPool(t.Context(), pool))
				err := h.ConnectPool(t.Context(), pool, b, 2)
				requireCode(t, CodeUnknownPool, err)
				require.ErrorContains(t, err, "reconstructMaster")
			}
			r := ReconstructMaster{Pool: pool, Name: "pool", Master: b, MasterVersion: 2,
				Domains: map[uuid.UUID]DomainState{a: DomainActive, b: DomainActive, c: DomainAttached}}
			d.left.Store(steps)
			err := h.ReconstructMaster(t.Context(), r)
			dead = d.left.Load() < 0
			require.Equal(t, dead, err != nil, "%s: %v", name, err)
			d.left.Store(0)
			killHost(t, h)

			h = openHost(t, root)
			for _, n := range []string{"b", "c"} {
				makeDir(t, h, root, n)
			}
			has := h.ConnectPool(t.Context(), pool, b, 2) == nil
			moved[has]++
			if !has {
				require.NoError(t, h.ReconstructMaster(t.Context(), r), name)
				require.NoError(t, h.ConnectPool(t.Context(), pool, b, 2), name)
			}
			startSPM(t, h, pool)
			require.Equal(t, map[uuid.UUID]DomainState{a: DomainAttached, b: DomainActive, c: DomainAttached}, states(t, h, pool), name)
			require.Greater(t, hostPool(t, h).SPMEpoch, int64(2*epochsPerMaster))
			create(t, h, "web1", gib)
			back()
			makeDir(t, h, root, "a")
			require.Equal(t, map[uuid.UUID]int64{b: 2}, masters(t, h), name)
			require.NoError(t, h.ActivateDomain(t.Context(), pool, a), name)
			requireCode(t, CodeActive, h.ReconstructMaster(t.Context(), r))
			r.Pool = uuid.New()
			requireCode(t, CodeAttached, h.ReconstructMaster(t.Context(), r))
			r.Master = makeDomain(t, h, root, "d")
			r.Domains[r.Master] = DomainActive
			requireCode(t, CodeNotInPool, h.ReconstructMaster(t.Context(), r))
			require.NoError(t, h.Close())
		}
		require.Greater(t, moved[false], 1)
		require.NotZero(t, moved[true])
	}
}

// A host that was killed knows afterwards which version the master had that is lost: the next
// one is newer, whoever is connected first when the lost one is back.
func TestLostMastersVersionIsRemembered(t *testing.T) {
	root, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	with := func(o *HostOptions) { o.State = state }
	h, pool, domains := managed(t, root, with)
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, domains[0], domains[1], 5))
	killHost(t, h)
	defer away(t, root, "b")()

	h = openHost(t, root, with)
	makeDir(t, h, root, "c") // what is remembered may be written again
	r := ReconstructMaster{Pool: pool, Name: "pool", Master: domains[2], MasterVersion: 5, Domains: map[uuid.UUID]DomainState{domains[2]: DomainActive}}
	err := h.ReconstructMaster(t.Context(), r)
	requireCode(t, CodeWrongVersion, err)
	require.ErrorContains(t, err, "version 5")
	r.MasterVersion = 6
	require.NoError(t, h.ReconstructMaster(t.Context(), r))
}
