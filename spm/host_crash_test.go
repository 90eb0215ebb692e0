package spm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// mortal is a process that dies at a sync: it, and every one after it, fails. What is
// done between two syncs is done or not, so that each sync is one moment to die at.
type mortal struct{ left atomic.Int64 }

func (d *mortal) sync(f *os.File) error {
	if d.left.Add(-1) < 0 {
		return errDead
	}
	return f.Sync()
}

// A hostStory is what a client does with two domains in directories and one on a group,
// whose names are chosen before, so that it can be told again to the end.
type hostStory struct {
	root    string
	group   *fakeGroup
	a, b, c uuid.UUID
	pool    uuid.UUID
}

func newHostStory(t *testing.T) hostStory {
	s := hostStory{root: t.TempDir(), group: namedGroup(t, "vg1", 16), a: uuid.New(), b: uuid.New(), c: uuid.New(), pool: uuid.New()}
	for _, d := range []string{"a", "b"} {
		require.NoError(t, os.Mkdir(filepath.Join(s.root, d), 0o755))
	}
	return s
}

// host starts one that has everything connected.
func (s hostStory) host(t *testing.T, sync func(*os.File) error) *Host {
	t.Helper()
	o := HostOptions{Options: testOptions(), Roots: []string{s.root}, Devices: []string{"/dev/one"}, Groups: fakeGroups{"/dev/one": s.group}}
	o.Capacity, o.sync = 0, sync
	h, err := OpenHost(o)
	require.NoError(t, err)
	connect(t, h, DomainLocal, filepath.Join(s.root, "a"))
	connect(t, h, DomainLocal, filepath.Join(s.root, "b"))
	connect(t, h, DomainBlock, "/dev/one")
	return h
}

// chapters are the steps of the story. Each bears to be repeated as a whole: what the
// dead process has done is no error.
func (s hostStory) chapters(t *testing.T, h *Host) []func() error {
	ctx := t.Context()
	made := func(err error) error {
		if CodeOf(err) == CodeExists {
			return nil
		}
		return err
	}
	return []func() error{
		func() error {
			return made(h.CreateDomain(ctx, CreateDomain{Type: DomainLocal, ID: s.a, Where: filepath.Join(s.root, "a"), Capacity: gib}))
		},
		func() error {
			return made(h.CreateDomain(ctx, CreateDomain{Type: DomainLocal, ID: s.b, Where: filepath.Join(s.root, "b"), Capacity: gib}))
		},
		func() error { return made(h.CreateDomain(ctx, CreateDomain{Type: DomainBlock, ID: s.c, Where: "vg1"})) },
		func() error {
			return made(h.CreatePool(ctx, CreatePool{ID: s.pool, Master: s.a, Domains: []uuid.UUID{s.a, s.b}, MasterVersion: 1}))
		},
		func() error { return s.manage(t, h) },
		func() error { return h.AttachDomain(ctx, s.pool, s.c) },
		func() error { return h.ActivateDomain(ctx, s.pool, s.c) },
		func() error { return s.moveTo(t, h, s.c) },
		func() error { return h.DetachDomain(ctx, s.pool, s.b) },
		func() error { return h.FormatDomain(ctx, s.b) },
		func() error { return h.StopSPM(ctx, s.pool) },
		func() error { return h.DestroyPool(ctx, s.pool) },
		func() error { return h.FormatDomain(ctx, s.c) },
	}
}

// manage makes the host the SPM, of the master that there is.
func (s hostStory) manage(t *testing.T, h *Host) error {
	if err := h.ConnectPool(t.Context(), s.pool, uuid.Nil, 0); err != nil {
		return err
	}
	return h.startNow(t.Context(), s.pool)
}

// moveTo moves the master's role from a.
func (s hostStory) moveTo(t *testing.T, h *Host, to uuid.UUID) error {
	info, err := h.PoolInfo(t.Context(), s.pool)
	if err != nil || info.Master == to {
		return err
	}
	return h.DeactivateDomain(t.Context(), s.pool, s.a, to, 0)
}

// The host dies at every step of every change of domains and pools. The next one finds
// every domain whole or not at all, and a pool that is what one step before or behind
// says; and goes on from there to the same end.
func TestHostDiesAtEveryStep(t *testing.T) {
	deaths := 0
	for chapter := range newHostStory(t).chapters(t, nil) {
		for _, disk := range []string{"files", "group"} {
			for steps := int64(0); ; steps++ {
				s := newHostStory(t)
				done := s.die(t, chapter, disk, steps)
				name := fmt.Sprintf("chapter %d, %s, step %d", chapter, disk, steps)
				s.survive(t, name, chapter)
				if done {
					break
				}
				deaths++
			}
		}
	}
	t.Logf("%d deaths", deaths)
	require.Greater(t, deaths, 40)
}

// die tells the story up to a chapter, in which the process dies at a change of that
// sort of disk. It reports whether it has not.
func (s hostStory) die(t *testing.T, chapter int, disk string, steps int64) bool {
	t.Helper()
	d := &mortal{}
	d.left.Store(1 << 40)
	h := s.host(t, d.sync)
	all := s.chapters(t, h)
	for i, c := range all[:chapter] {
		require.NoError(t, c(), "chapter %d", i)
	}
	if disk == "files" {
		d.left.Store(steps)
	} else {
		s.group.live(int(steps))
	}
	err := all[chapter]()
	dead := d.left.Load() < 0
	if disk == "group" {
		s.group.mu.Lock()
		dead = s.group.changes == 0 && err != nil
		s.group.mu.Unlock()
	}
	d.left.Store(0) // what a closing process would yet write is not written
	s.group.live(0)
	killHost(t, h)
	s.group.live(-1)
	if err != nil {
		require.True(t, errors.Is(err, errDead), "%v", err)
	}
	return !dead
}

// survive lets the next host find what there is, and come to the end.
func (s hostStory) survive(t *testing.T, name string, chapter int) {
	t.Helper()
	h := s.host(t, (*os.File).Sync)
	defer func() { require.NoError(t, h.Close()) }()
	all, errs := h.look(t.Context())
	require.Empty(t, errs, name)
	for _, f := range all {
		require.True(t, f.there(), name)
	}
	info, found := s.pooled(t, h, name)
	if found && info.SPM.Role == "SPM" {
		for d, state := range info.Domains {
			require.Equal(t, state == DomainActive, h.active(d) != nil, "%s: %s is %s", name, d, state)
		}
		f, err := h.find(t.Context(), info.Master)
		require.NoError(t, err, name)
		require.True(t, f.is.master, name)
		masters := 0
		all, _ = h.look(t.Context())
		for _, f := range all {
			if f.is.master {
				masters++
			}
		}
		require.Equal(t, 1, masters, "%s: what the move of the master left is done", name)
	}
	for i, c := range s.chapters(t, h)[chapter:] {
		err := c()
		require.True(t, err == nil || s.wasDone(chapter+i, i, err), "%s: then chapter %d: %v", name, chapter+i, err)
	}
	other := uuid.New()
	require.NoError(t, h.CreateDomain(t.Context(), CreateDomain{Type: DomainBlock, ID: other, Where: "vg1"}), name)
	require.NoError(t, h.FormatDomain(t.Context(), other), name)
	require.Empty(t, s.group.State().Volumes, name)
	require.Empty(t, s.group.State().Tags, name)
	next := uuid.New()
	require.NoError(t, h.CreateDomain(t.Context(), CreateDomain{Type: DomainLocal, ID: next, Where: filepath.Join(s.root, "b")}), name)
	left, err := filepath.Glob(filepath.Join(s.root, "b", "*"))
	require.NoError(t, err)
	require.ElementsMatch(t, []string{filepath.Join(s.root, "b", next.String()), filepath.Join(s.root, "b", "spm.lock")}, left, name)
	require.Equal(t, DomainUnattached, mustState(t, h, s.a), name)
}

// wasDone reports whether the chapter that the process died in had been done: then it
// cannot be done again, and says so.
func (s hostStory) wasDone(chapter, since int, err error) bool {
	code := CodeOf(err)
	switch chapter {
	case 8: // detached
		return since == 0 && code == CodeNotInPool
	case 9, 12: // formatted
		return since == 0 && code == CodeUnknownDomain
	case 10: // nobody has the role any more
		return code == CodeNotConnected
	case 11: // destroyed
		return since == 0 && (code == CodeUnknownPool || code == CodeNotConnected) || code == CodeNotConnected
	}
	return false
}

func mustState(t *testing.T, h *Host, d uuid.UUID) DomainState {
	t.Helper()
	i, err := h.DomainInfo(t.Context(), d)
	require.NoError(t, err)
	return i.State
}

// pooled makes the host the SPM of the pool, if there is one.
func (s hostStory) pooled(t *testing.T, h *Host, name string) (info PoolInfo, found bool) {
	t.Helper()
	err := s.manage(t, h)
	if CodeOf(err) == CodeUnknownPool {
		return info, false
	}
	require.NoError(t, err, name)
	info, err = h.PoolInfo(t.Context(), s.pool)
	require.NoError(t, err, name)
	return info, true
}

// tree is everything below a directory, with its content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			all[path] = "directory"
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if all[path] = info.ModTime().String(); info.Size() < mib {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			all[path] += string(b)
		}
		return nil
	}))
	return all
}
