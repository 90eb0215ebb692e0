package spm

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// A level is left later than it is reached.
func TestLevels(t *testing.T) {
	level := ""
	for _, c := range []struct {
		used float64
		want string
	}{
		{0.5, LevelOK}, {0.849, LevelOK}, {0.85, LevelWarn}, {0.84, LevelWarn}, {0.829, LevelOK}, {0.96, LevelCritical},
		{0.94, LevelCritical}, {0.929, LevelWarn}, {0.84, LevelWarn}, {0.95, LevelCritical}, {0.1, LevelOK}, {1.2, LevelCritical},
	} {
		level = levelOf(level, c.used, warnAt, criticalAt)
		require.Equal(t, c.want, level, "%v", c.used)
	}
}

func TestReserveSize(t *testing.T) {
	require.EqualValues(t, 0, reserveSize(-1, 1<<40, 4096))
	require.EqualValues(t, 5, reserveSize(5, 1<<40, 4096))
	require.EqualValues(t, gib/4, reserveSize(0, 16*gib, 4096))
	require.EqualValues(t, gib, reserveSize(0, 1<<40, 4096), "at most")
	require.EqualValues(t, 256*mib, reserveSize(0, gib, 128*mib), "at least two extents")
	require.EqualValues(t, 0, reserveSize(0, 4*chunkSize, 4096), "a small pool has none")
}

func TestMeter(t *testing.T) {
	begin := time.Unix(1_000_000, 0)
	at := func(s int) time.Time { return begin.Add(time.Duration(s) * time.Second) }
	var g meter
	require.Zero(t, g.rate(at(0)))
	g.add(at(0), 100)
	require.Zero(t, g.rate(at(0)))
	for s := 1; s <= 100; s++ {
		g.add(at(s), 100+int64(s)*10)
	}
	require.LessOrEqual(t, len(g.samples), 13, "samples are apart")
	require.InDelta(t, 10, g.rate(at(100)), 0.01)
	require.InDelta(t, 5, g.rate(at(200)), 0.01, "nothing has come since")
	for s := 4000; s < 20000; s += 10 {
		g.add(at(s), 1100)
	}
	require.Zero(t, g.rate(at(20000)), "what is over is forgotten")
	require.LessOrEqual(t, len(g.samples), 362)
	require.InDelta(t, 100, timeToFull(1000, 10), 0.01)
	require.Zero(t, timeToFull(1000, 0))
	require.Zero(t, timeToFull(1000, -5))
	require.Zero(t, timeToFull(-5, 5))
}

// The watermarks are events, once each way.
func TestWatermarks(t *testing.T) {
	o := testOptions()
	o.WarnAt, o.CriticalAt = 0, 0
	m := openPool(t, t.TempDir(), o)
	create(t, m, "a", 10*gib)
	require.Equal(t, LevelOK, m.stats().Level)
	extend(t, m, "a", 1800*mib, 0)
	require.Equal(t, LevelWarn, m.stats().Level)
	extend(t, m, "a", 2000*mib, 0)
	require.Equal(t, LevelCritical, m.stats().Level)
	s := m.stats()
	require.EqualValues(t, 10*gib, s.Virtual)
	require.EqualValues(t, 2000*mib, s.Granted)
	require.InDelta(t, 5, s.Ratio, 0.001)
	require.Equal(t, 1, s.Volumes)
	remove(t, m, "a")
	happened, _, _ := m.o.journal.all.after(0)
	var levels []string
	for _, e := range happened {
		if e.Kind == EventLevel {
			levels = append(levels, e.Level)
		}
	}
	require.Equal(t, []string{LevelWarn, LevelCritical, LevelOK}, levels)
}

// setPriority sets a volume's, as the operation does.
func setPriority(t *testing.T, m *Manager, name string, priority int) {
	t.Helper()
	v := volumeOf(t, m, name)
	require.NoError(t, m.setMeta(t.Context(), uuid.MustParse(v.ImageUUID), uuid.MustParse(v.VolumeUUID),
		func(meta *volumeMeta) { meta.Priority = priority }))
}

// Of two volumes the one of lower priority waits first: also if it came first, and
// also if its priority changes while it waits.
func TestPriorityInAFullPool(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		setPriority(t, m, "b", 5)
		a := extendLater(t.Context(), m, "a", 200*mib, time.Hour)
		b := extendLater(t.Context(), m, "b", 200*mib, time.Hour)
		require.Equal(t, "b", pool(t, m).Waiting[0].Name)
		require.NoError(t, m.RaiseCapacity(t.Context(), 2*gib+72*mib)) // for one
		require.NoError(t, <-b)
		held(t, a)

		b = extendLater(t.Context(), m, "b", 272*mib, time.Hour)
		require.Equal(t, "b", pool(t, m).Waiting[0].Name)
		setPriority(t, m, "a", 6)
		synctest.Wait()
		require.Equal(t, "a", pool(t, m).Waiting[0].Name)
		require.NoError(t, m.RaiseCapacity(t.Context(), 2*gib+2*72*mib))
		require.NoError(t, <-a)
		held(t, b)
		require.NoError(t, m.RaiseCapacity(t.Context(), 2*gib+3*72*mib))
		require.NoError(t, <-b)
	})
}

// A volume of higher priority is served before those of a lower one that wait,
// without a place; one of the same priority is behind them.
func TestPriorityPasses(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		setPriority(t, m, "b", -1)
		b := extendLater(t.Context(), m, "b", gib, time.Hour)
		require.NoError(t, m.RaiseCapacity(t.Context(), 2*gib+72*mib)) // too little for b
		held(t, b)
		require.EqualValues(t, 200*mib, extend(t, m, "a", 200*mib, 0))
		require.NoError(t, m.RaiseCapacity(t.Context(), 2*gib+100*mib))
		setPriority(t, m, "a", -1)
		_, err := m.ExtendVolume(t.Context(), extendRequest("a", 220*mib, 0))
		requireCode(t, CodePoolFull, err)
		require.NoError(t, m.RaiseCapacity(t.Context(), 4*gib))
		require.NoError(t, <-b)
	})
}

// On a full pool nothing is granted but to a merge, which takes the reserve and
// gives back more; and volumes can be deleted. Then who waits goes on.
func TestFullPoolMergesAndDeletes(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		for _, m := range w.m {
			require.NoError(t, m.Close())
		}
		w.o.Reserve, w.o.Capacity = 2*fakeExtent, gib
		w.o.Poll = 5 * time.Millisecond
		if w.group != nil {
			w.o.Capacity = 0
			w.group.edit(func(*GroupState) error { w.group.total = 10 * fakeExtent; return nil })
		} else {
			w.dirs = []string{t.TempDir()}
		}
		w.open()
		m := w.m[0]
		low, high := uuid.New(), uuid.New()
		a := w.volume(low, w.volume(low, uuid.Nil, "z"), "a")
		b := w.volume(low, a, " b")
		c := w.volume(high, uuid.Nil, "c")
		require.NoError(t, w.ops.setPriority(t.Context(), w.at(high, c), 10))
		w.jobs.end = 100 * mib // of each image: together more than one of them has
		extend(t, m, c.String(), 3*fakeExtent, 0)
		require.EqualValues(t, w.o.Reserve, m.stats().Free)
		_, err := m.ExtendVolume(t.Context(), extendRequest(c.String(), 4*fakeExtent, 0))
		requireCode(t, CodePoolFull, err)
		wayOut := "raise the capacity"
		if w.group != nil {
			wayOut = "extend the volume group"
		}
		require.ErrorContains(t, err, ": remove a volume or "+wayOut)
		_, _, err = w.ops.createVolume(t.Context(), w.newVolume(uuid.New(), uuid.New()))
		requireCode(t, CodePoolFull, err)
		_, err = m.CreateVolume(t.Context(), VolumeCreateRequest{Name: "d", Size: gib}) // as a task whose request came before it was full
		requireCode(t, CodePoolFull, err)

		wait := func(id uuid.UUID, need int64) chan error {
			done := make(chan error, 1)
			r := extendRequest(id.String(), need, need)
			r.WaitMS = time.Hour.Milliseconds()
			waiting := len(pool(t, m).Waiting)
			go func() { _, err := m.ExtendVolume(t.Context(), r); done <- err }()
			eventually(t, func() bool { return len(pool(t, m).Waiting) == waiting+1 })
			return done
		}
		first := wait(b, 2*fakeExtent)
		second := wait(c, 4*fakeExtent)
		require.Equal(t, c.String(), pool(t, m).Waiting[0].VolumeUUID, "the lower priority waits first")

		require.EqualValues(t, fakeExtent, m.info(a).Granted)
		kind, args, err := w.merge(low, a, b)
		w.must(kind, args, err)
		require.Greater(t, m.info(a).Granted, int64(fakeExtent), "the reserve is for merging, also while others wait")
		requireCode(t, CodeNotFound, <-first) // b has gone into a
		select {
		case <-second:
			t.Fatal("there is space for nobody yet")
		default:
		}
		kind, args, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: low})
		w.must(kind, args, err)
		require.NoError(t, <-second)
	})
}

// A volume that is asked to begin with less than a chunk begins with one; what a server
// tells of a raw volume, which it may write to everywhere, is not what that uses; and a
// domain whose capacity cannot be raised does not advise it.
func TestFirstSizeUseAndAdvice(t *testing.T) {
	w := newWorld(t, 1, false)
	m := w.m[0]
	thin, raw := w.newVolume(uuid.New(), uuid.New()), w.newVolume(uuid.New(), uuid.New())
	thin.Initial = 512
	raw.Format, raw.Size = Raw, 64*mib
	for _, r := range []NewVolume{thin, raw} {
		kind, args, err := w.ops.createVolume(t.Context(), r)
		w.must(kind, args, err)
	}
	require.EqualValues(t, chunkSize, m.info(thin.Volume).Granted)
	m.learnUsed(raw.Volume, raw.Size)
	require.Less(t, m.info(raw.Volume).Used, raw.Size)

	m.o.Capacity = 0 // as in a domain that a host has opened
	thin.Image, thin.Volume, thin.Initial = uuid.New(), uuid.New(), 1<<40
	thin.Size = 1 << 40
	_, _, err := w.ops.createVolume(t.Context(), thin)
	requireCode(t, CodePoolFull, err)
	require.ErrorContains(t, err, "remove a volume or move an image to another domain")
}
