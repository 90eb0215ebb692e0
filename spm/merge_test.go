package spm

import (
	"context"
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/spm/task"
)

func (w *world) merge(image, ancestor, successor uuid.UUID) (string, any, error) {
	return w.ops.mergeVolumes(w.t.Context(), MergeVolumes{Domain: w.domain(), Image: image, Ancestor: ancestor, Successor: successor})
}

// The ancestor survives, with what the chain has shown at the successor.
func TestMergeCold(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "aaaa")
		b := w.volume(image, a, " b")
		c := w.volume(image, b, "  c")
		d := w.volume(image, c, "   d")
		kind, args, err := w.merge(image, b, c)
		w.must(kind, args, err)
		require.Equal(t, kindMerge, kind)
		require.Equal(t, "INTERNAL INTERNAL LEAF", w.types(w.m[0], image))
		require.Equal(t, "abca", w.shows(w.m[0], b))
		require.Equal(t, "abcd", w.shows(w.m[0], d))
		require.Equal(t, 1, w.m[0].info(b).Generation)
		w.consistent()

		kind, args, err = w.merge(image, a, d) // with what is between
		w.must(kind, args, err)
		id, shows := w.leaf(w.m[0], image)
		require.Equal(t, a, id)
		require.Equal(t, "abcd", shows)
		require.Equal(t, "LEAF", w.types(w.m[0], image))
		require.Equal(t, image.String(), w.m[0].info(a).Name)
		w.consistent()
	})
}

// A base that is raw and smaller becomes as large as its successor.
func TestMergeIntoRaw(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		r := w.newVolume(image, uuid.New())
		r.Size, r.Format, r.Alloc = 100*mib, Raw, Preallocated
		kind, args, err := w.ops.createVolume(t.Context(), r)
		w.must(kind, args, err)
		w.write(r.Volume, "raw")
		top := w.newVolume(image, uuid.New())
		top.Parent, top.Size = r.Volume, 300*mib
		kind, args, err = w.ops.createVolume(t.Context(), top)
		w.must(kind, args, err)
		w.write(top.Volume, " X")
		kind, args, err = w.merge(image, r.Volume, top.Volume)
		w.must(kind, args, err)
		require.Equal(t, "rXw", w.shows(w.m[0], r.Volume))
		i := w.m[0].info(r.Volume)
		require.EqualValues(t, 300*mib, i.Capacity)
		require.GreaterOrEqual(t, i.Granted, int64(300*mib))
		w.consistent()
	})
}

// A merge that fails leaves the ancestor illegal below a chain that is whole, and
// is tried again.
func TestMergeFailsAndIsRetried(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "aaaa")
	b := w.volume(image, a, " bb")
	w.jobs.fail["commit"] = errors.New("I/O error")
	kind, args, err := w.merge(image, a, b)
	require.NoError(t, err)
	require.ErrorContains(t, w.run(kind, args, -1), "I/O error")
	require.Equal(t, "INTERNAL! LEAF", w.types(w.m[0], image))
	_, shows := w.leaf(w.m[0], image)
	require.Equal(t, "abba", shows)
	w.consistent()
	_, err = w.ops.prepare(t.Context(), w.at(image, uuid.Nil), PrepareOptions{})
	require.NoError(t, err, "the leaf above an illegal volume can be served")
	require.NoError(t, w.ops.teardown(t.Context(), w.at(image, uuid.Nil)))
	_, err = w.ops.prepare(t.Context(), w.at(image, a), PrepareOptions{ReadOnly: true})
	requireCode(t, CodeIllegal, err)

	delete(w.jobs.fail, "commit")
	kind, args, err = w.merge(image, a, b)
	w.must(kind, args, err)
	require.Equal(t, "abba", w.shows(w.m[0], a))
	w.consistent()
}

// Who merges the ancestor of a merge that failed is told to repeat that one first: it can
// neither be deleted nor merged.
func TestMergeOfAnIllegalAncestor(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "aaaa")
	b := w.volume(image, a, " bb")
	c := w.volume(image, b, "  c")
	w.jobs.fail["commit"] = errors.New("I/O error")
	kind, args, err := w.merge(image, b, c)
	require.NoError(t, err)
	require.ErrorContains(t, w.run(kind, args, -1), "I/O error")
	delete(w.jobs.fail, "commit")
	for _, successor := range []uuid.UUID{b, c} {
		_, _, err = w.merge(image, a, successor)
		requireCode(t, CodeIllegal, err)
		require.ErrorContains(t, err, "volume "+b.String()+" is illegal: the merge of "+c.String()+" into "+b.String()+" was not completed: repeat that")
	}
	kind, args, err = w.merge(image, b, c)
	w.must(kind, args, err)
	kind, args, err = w.merge(image, a, b)
	w.must(kind, args, err)
	require.Equal(t, "abca", w.shows(w.m[0], a))
	w.consistent()
}

// mergeLiveUntil serves an image of two volumes, and merges them until the manager dies.
func (w *world) mergeLiveUntil(dieAt int) (image, a, b uuid.UUID) {
	w.t.Helper()
	image = uuid.New()
	a = w.volume(image, uuid.Nil, "aaaa")
	b = w.volume(image, a, " b")
	_, err := w.ops.prepare(w.t.Context(), w.at(image, uuid.Nil), PrepareOptions{})
	require.NoError(w.t, err)
	kind, args, err := w.merge(image, a, b)
	require.NoError(w.t, err)
	require.ErrorIs(w.t, w.run(kind, args, dieAt), errCrash)
	return image, a, b
}

// The leaf of a served image goes into its parent while the guest writes.
func TestMergeLive(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "aaaa")
		_, err := w.ops.prepare(t.Context(), w.at(image, uuid.Nil), PrepareOptions{})
		require.NoError(t, err)
		b := w.volume(image, a, "")
		s, err := w.servers.Find(t.Context(), image.String())
		require.NoError(t, err)
		require.Equal(t, b.String(), s.Leaf, "the server writes to the snapshot")
		require.NoError(t, w.servers.write(image.String(), 1, 'b'))

		kind, args, err := w.merge(image, a, b)
		require.NoError(t, err)
		require.Equal(t, kindMergeLive, kind)
		require.ErrorIs(t, w.run(kind, args, 8), errCrash) // before "publish"
		require.NoError(t, w.servers.write(image.String(), 2, 'c'))
		require.Equal(t, "abca", w.shows(w.m[0], a))
		require.Equal(t, "abca", w.shows(w.m[0], b))
		w.restart()
		require.True(t, w.recover())
		id, shows := w.leaf(w.m[0], image)
		require.Equal(t, a, id)
		require.Equal(t, "abca", shows)
		s, err = w.servers.Find(t.Context(), image.String())
		require.NoError(t, err)
		require.Equal(t, a.String(), s.Leaf)
		w.consistent()
	})
}

// A server that came back between "mirror" and "publish" writes to the leaf alone: that stays
// the leaf, and the merge can be done again.
func TestMergeLiveOfAServerThatCameBack(t *testing.T) {
	for _, dieAt := range []int{8, 10} { // before "publish", and before "pivot"
		both(t, 1, func(t *testing.T, w *world) {
			image, a, b := w.mergeLiveUntil(dieAt)
			require.NoError(t, w.servers.Stop(t.Context(), image.String()))
			_, err := w.servers.Start(t.Context(), Serve{Domain: w.domain().String(), Image: image.String(), Leaf: b.String()})
			require.NoError(t, err)
			require.NoError(t, w.servers.write(image.String(), 2, 'c'))
			w.restart()
			step := w.plan().Steps[w.record.Step]
			require.True(t, task.IsHopeless(step.Do(t.Context(), &task.Run{})), step.Name)
			w.giveUp()
			id, shows := w.leaf(w.m[0], image)
			require.Equal(t, b, id)
			require.Equal(t, "abca", shows)
			require.Equal(t, "INTERNAL! LEAF", w.types(w.m[0], image))
			w.consistent()
			kind, args, err := w.merge(image, a, b)
			w.must(kind, args, err)
			require.Equal(t, "abca", w.shows(w.m[0], a))
			w.consistent()
		})
	}
}

// Before "publish" a live merge is taken back, and the guest goes on writing to the
// leaf.
func TestMergeLiveIsCancelled(t *testing.T) {
	w := newWorld(t, 1, false)
	image, a, b := w.mergeLiveUntil(7) // after "mirror"
	w.restart()
	require.False(t, w.recover())
	require.NoError(t, w.servers.write(image.String(), 2, 'c'))
	require.Equal(t, "abca", w.shows(w.m[0], b))
	require.Equal(t, "INTERNAL! LEAF", w.types(w.m[0], image))
	s, err := w.servers.Find(t.Context(), image.String())
	require.NoError(t, err)
	require.Empty(t, s.Merge)
	w.consistent()
	kind, args, err := w.merge(image, a, b)
	w.must(kind, args, err)
	require.Equal(t, "abca", w.shows(w.m[0], a))
	w.consistent()
}

// What a served image does not allow.
func TestMergeServedRefused(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "a")
	b := w.volume(image, a, "")
	c := w.volume(image, b, "")
	_, err := w.ops.prepare(t.Context(), w.at(image, uuid.Nil), PrepareOptions{})
	require.NoError(t, err)
	_, _, err = w.merge(image, a, b)
	requireCode(t, CodeInUse, err)
	_, _, err = w.merge(image, a, c)
	requireCode(t, CodeInUse, err)
	_, _, err = w.ops.deleteVolumes(t.Context(), DeleteVolumes{Domain: w.domain(), Image: image, Volumes: []uuid.UUID{c}})
	requireCode(t, CodeInUse, err)
	_, _, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})
	requireCode(t, CodeInUse, err)
	_, _, err = w.ops.reduceVolume(t.Context(), w.at(image, c))
	requireCode(t, CodeInUse, err)
	_, _, err = w.ops.copyImage(t.Context(), CopyImage{From: w.at(image, c), To: w.at(uuid.New(), uuid.New())})
	requireCode(t, CodeInUse, err)
	_, _, err = w.ops.copyImage(t.Context(), CopyImage{From: w.at(image, b), To: w.at(uuid.New(), uuid.New())})
	require.NoError(t, err, "nobody writes to what is below the leaf")
}

// largeJobs find that a merge takes more than anybody has measured.
type largeJobs struct {
	*fakeJobs
	needs int64
}

func (j largeJobs) Commit(ctx context.Context, chain []Place, base int, p Progress) error {
	if chain[base].Granted < j.needs {
		return block.ErrNoSpace
	}
	return j.fakeJobs.Commit(ctx, chain, base, p)
}

// brokenJobs find that a merge takes more than anybody has measured, and fail when they
// have it.
type brokenJobs struct{ largeJobs }

func (j brokenJobs) Commit(ctx context.Context, chain []Place, base int, p Progress) error {
	if err := j.largeJobs.Commit(ctx, chain, base, p); err != nil {
		return err
	}
	return errors.New("I/O error")
}

// An ancestor gives back what it was granted for a merge that failed, but for what has
// been written there.
func TestMergeThatFailsGivesSpaceBack(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "aaaa")
		b := w.volume(image, a, " bb")
		before, all := w.m[0].info(a).Granted, granted(w)
		w.ops.jobs = brokenJobs{largeJobs{w.jobs, before + 5*fakeExtent}}
		kind, args, err := w.merge(image, a, b)
		require.NoError(t, err)
		require.ErrorContains(t, w.run(kind, args, -1), "I/O error")
		require.Equal(t, "INTERNAL! LEAF", w.types(w.m[0], image))
		require.Equal(t, before, w.m[0].info(a).Granted)
		require.Equal(t, all, granted(w))
		require.Equal(t, "abba", w.shows(w.m[0], b))
		w.consistent()

		w.jobs.end = before + 3*fakeExtent // of the data that a merge has written
		kind, args, err = w.merge(image, a, b)
		require.NoError(t, err)
		require.ErrorContains(t, w.run(kind, args, -1), "I/O error")
		require.Equal(t, before+3*fakeExtent, w.m[0].info(a).Granted, "no data are cut off")

		w.jobs.end, w.ops.jobs = 0, w.jobs
		kind, args, err = w.merge(image, a, b)
		w.must(kind, args, err)
		require.Equal(t, "abba", w.shows(w.m[0], a))
		w.consistent()
	})
}

// granted is what all volumes of the first domain have.
func granted(w *world) (sum int64) {
	for id := range w.m[0].family().all {
		sum += w.m[0].info(id).Granted
	}
	return sum
}

// Data beyond the bound of an ancestor's own size are not cut off.
func TestMergeIntoSmallerThatFails(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	r := w.newVolume(image, uuid.New())
	r.Size = 100 * mib
	kind, args, err := w.ops.createVolume(t.Context(), r)
	w.must(kind, args, err)
	up := w.newVolume(image, uuid.New())
	up.Parent, up.Size = r.Volume, gib
	kind, args, err = w.ops.createVolume(t.Context(), up)
	w.must(kind, args, err)
	w.ops.jobs, w.jobs.end = brokenJobs{largeJobs{w.jobs, 700 * mib}}, 600*mib
	kind, args, err = w.merge(image, r.Volume, up.Volume)
	require.NoError(t, err)
	require.ErrorContains(t, w.run(kind, args, -1), "I/O error")
	require.EqualValues(t, roundUp(600*mib, w.m[0].unit()), w.m[0].info(r.Volume).Granted)
	w.consistent()
}

// heldJobs fail while somebody has the ancestor open.
type heldJobs struct {
	*fakeJobs
	hold func()
}

func (j heldJobs) Commit(context.Context, []Place, int, Progress) error {
	j.hold()
	return errors.New("I/O error")
}

// An ancestor that somebody has open when a merge fails keeps its space until it is
// reduced, and is illegal below a leaf that is whole before and after that.
func TestMergeThatFailsIsReduced(t *testing.T) {
	for _, format := range []string{Cow, Raw} {
		t.Run(format, func(t *testing.T) {
			both(t, 1, func(t *testing.T, w *world) {
				image := uuid.New()
				r := w.newVolume(image, uuid.New())
				r.Size = 100 * mib
				if r.Format = format; format == Raw {
					r.Alloc = Preallocated
				}
				kind, args, err := w.ops.createVolume(t.Context(), r)
				w.must(kind, args, err)
				w.write(r.Volume, "aaaa")
				up := w.newVolume(image, uuid.New())
				up.Parent = r.Volume
				kind, args, err = w.ops.createVolume(t.Context(), up)
				w.must(kind, args, err)
				before := w.m[0].info(r.Volume).Granted
				var release func()
				w.ops.jobs = heldJobs{w.jobs, func() {
					require.NoError(t, w.m[0].grantAtLeast(t.Context(), image, r.Volume, 300*mib, false))
					release = w.hold(r.Volume)
				}}
				kind, args, err = w.merge(image, r.Volume, up.Volume)
				require.NoError(t, err)
				require.ErrorContains(t, w.run(kind, args, -1), "I/O error")
				require.GreaterOrEqual(t, w.m[0].info(r.Volume).Granted, int64(300*mib))
				_, _, err = w.ops.reduceVolume(t.Context(), w.at(image, r.Volume))
				requireCode(t, CodeInUse, err)
				release()
				w.ops.jobs = w.jobs
				kind, args, err = w.ops.reduceVolume(t.Context(), w.at(image, r.Volume))
				w.must(kind, args, err)
				require.LessOrEqual(t, w.m[0].info(r.Volume).Granted, before)
				require.Equal(t, "INTERNAL! LEAF", w.types(w.m[0], image))
				require.Equal(t, "aaaa", w.shows(w.m[0], up.Volume))
				w.consistent()
				kind, args, err = w.merge(image, r.Volume, up.Volume)
				w.must(kind, args, err)
				require.Equal(t, "aaaa", w.shows(w.m[0], r.Volume))
				w.consistent()
			})
		})
	}
}

// hold holds a volume as who has it open does.
func (w *world) hold(id uuid.UUID) (release func()) {
	w.t.Helper()
	m := w.m[0]
	m.mu.Lock()
	v := m.volumes[id]
	m.mu.Unlock()
	done, err := m.store.hold(v)
	require.NoError(w.t, err)
	return func() { require.NoError(w.t, done()) }
}

// The bound of an ancestor is that of its new size while it is merged into, also after
// it has been marked.
func TestMergeIntoSmaller(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		r := w.newVolume(image, uuid.New())
		r.Size = 100 * mib
		kind, args, err := w.ops.createVolume(t.Context(), r)
		w.must(kind, args, err)
		up := w.newVolume(image, uuid.New())
		up.Parent, up.Size = r.Volume, gib
		kind, args, err = w.ops.createVolume(t.Context(), up)
		w.must(kind, args, err)
		w.ops.jobs = largeJobs{w.jobs, 600 * mib}
		kind, args, err = w.merge(image, r.Volume, up.Volume)
		w.must(kind, args, err)
		require.GreaterOrEqual(t, w.m[0].info(r.Volume).Granted, int64(600*mib))
	})
}
