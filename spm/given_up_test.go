package spm

import (
	"fmt"
	"os"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm/task"
)

// An extension that fails for good behind its commit point has failed: the metadata say what
// the image has, and the image can be extended, merged and deleted afterwards. So it is with
// one that was stopped when it did not go on.
func TestExtensionIsGivenUp(t *testing.T) {
	for _, served := range []bool{false, true} {
		for _, stopped := range []bool{false, true} {
			t.Run(fmt.Sprintf("served=%t/stopped=%t", served, stopped), func(t *testing.T) {
				both(t, 1, func(t *testing.T, w *world) { extensionIsGivenUp(t, w, served, stopped) })
			})
		}
	}
}

func extensionIsGivenUp(t *testing.T, w *world, served, stopped bool) {
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "aa")
	b := w.volume(image, a, "b")
	if served {
		_, err := w.ops.prepare(t.Context(), w.at(image, b), PrepareOptions{})
		require.NoError(t, err)
	}
	w.jobs.fail["resize"] = fmt.Errorf("refcount table: %w", ErrUnfit)
	if stopped {
		w.jobs.fail["resize"] = os.ErrPermission
	}
	kind, args, err := w.ops.extendVolumeSize(t.Context(), w.at(image, b), 2*gib)
	require.NoError(t, err)
	err = w.run(kind, args, -1)
	require.ErrorIs(t, err, w.jobs.fail["resize"])
	if stopped {
		require.NotNil(t, w.record, "it may be tried again")
		w.giveUp()
	}
	require.Nil(t, w.record, "it is given up")
	require.Equal(t, "1073741824", w.sizes(b))
	require.Equal(t, w.m[0].boundOf(volumeMeta{Capacity: gib, Format: Cow}), w.m[0].info(b).Bound)

	delete(w.jobs.fail, "resize")
	kind, args, err = w.ops.extendVolumeSize(t.Context(), w.at(image, b), 2*gib)
	w.must(kind, args, err)
	require.Equal(t, "2147483648", w.sizes(b))
	require.NoError(t, w.servers.Stop(t.Context(), image.String()))
	kind, args, err = w.merge(image, a, b)
	w.must(kind, args, err)
	w.consistent()
	kind, args, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})
	w.must(kind, args, err)
	w.consistent()
}

// One that died between the image and the metadata, and is given up then, is what its image
// has become.
func TestExtensionIsGivenUpBehindTheImage(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "a")
		kind, args, err := w.ops.extendVolumeSize(t.Context(), w.at(image, a), 2*gib)
		require.NoError(t, err)
		require.ErrorIs(t, w.run(kind, args, 6), errCrash) // before "metadata"
		w.restart()
		w.giveUp()
		require.Equal(t, "2147483648", w.sizes(a))
		w.consistent()
	})
}

// The image has gone, but not the domain: the extension is given up. If that has gone, too,
// it is tried again.
func TestExtensionOfWhatHasGone(t *testing.T) {
	w := newWorld(t, 1, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "a")
	kind, args, err := w.ops.extendVolumeSize(t.Context(), w.at(image, a), 2*gib)
	require.NoError(t, err)
	require.ErrorIs(t, w.run(kind, args, 4), errCrash) // before "resize"
	plan, path := w.plan(), w.m[0].info(a).Path
	require.NoError(t, os.Rename(w.dirs[0], w.dirs[0]+".gone"))
	err = plan.Steps[2].Do(t.Context(), nil)
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrUnfit)
	require.False(t, task.IsHopeless(err), "the domain may come back: %v", err)
	require.NoError(t, os.Rename(w.dirs[0]+".gone", w.dirs[0]))
	require.NoError(t, os.Remove(path))
	err = plan.Steps[2].Do(t.Context(), nil)
	require.True(t, task.IsHopeless(err), "%v", err)
	w.giveUp()
	require.EqualValues(t, gib, w.m[0].info(a).Capacity)
}

// What an image is not fit for is found before anything has changed.
func TestExtensionIsRefusedInTime(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "a")
		b := w.volume(image, a, "b")
		resize := func(size int64) error {
			kind, args, err := w.ops.extendVolumeSize(t.Context(), w.at(image, b), size)
			if err != nil {
				return err
			}
			err = w.run(kind, args, -1)
			require.Nil(t, w.record, "it is rolled back")
			return err
		}
		w.jobs.fail["check"] = ErrUnfit
		require.ErrorIs(t, resize(2*gib), ErrUnfit)
		delete(w.jobs.fail, "check")

		chain, err := w.m[0].places(b) // somebody makes the image of the parent larger
		require.NoError(t, err)
		require.NoError(t, w.jobs.Resize(t.Context(), chain[:1], 4*gib))
		requireCode(t, CodeUnsupported, resize(2*gib))
		require.NoError(t, w.m[0].setMeta(t.Context(), image, a, func(meta *volumeMeta) { meta.Capacity = 4 * gib }))
		_, _, err = w.ops.extendVolumeSize(t.Context(), w.at(image, b), 2*gib)
		requireCode(t, CodeUnsupported, err)
		require.ErrorContains(t, err, "has 1073741824 bytes, and what it is based on has 4294967296")
		_, err = w.ops.prepare(t.Context(), w.at(image, b), PrepareOptions{})
		require.NoError(t, err)
		requireCode(t, CodeUnsupported, resize(2*gib))
		require.NoError(t, w.servers.Stop(t.Context(), image.String()))
		require.Equal(t, "1073741824", w.sizes(b))

		kind, args, err := w.merge(image, a, b)
		w.must(kind, args, err)
		kind, args, err = w.ops.extendVolumeSize(t.Context(), w.at(image, a), 5*gib)
		w.must(kind, args, err)
		w.consistent()
	})
}

// One that is preallocated is granted all that it can need with its new size, and is not
// extended where there is not so much; what a rollback does not need is given back.
func TestExtensionOfAPreallocatedVolume(t *testing.T) {
	for _, served := range []bool{false, true} {
		both(t, 1, func(t *testing.T, w *world) {
			r := w.newVolume(uuid.New(), uuid.New())
			r.Alloc, r.Size = Preallocated, 512*mib
			kind, args, err := w.ops.createVolume(t.Context(), r)
			w.must(kind, args, err)
			before := w.m[0].info(r.Volume)
			require.Equal(t, before.Bound, before.Granted)
			if served {
				_, err := w.ops.prepare(t.Context(), r.VolumeAt, PrepareOptions{})
				require.NoError(t, err)
			}
			kind, args, err = w.ops.extendVolumeSize(t.Context(), r.VolumeAt, gib)
			require.NoError(t, err)
			require.ErrorIs(t, w.run(kind, args, 3), errCrash) // after "space"
			require.Greater(t, w.m[0].info(r.Volume).Granted, int64(gib))
			w.undo(w.plan())
			require.Equal(t, before.Granted, w.m[0].info(r.Volume).Granted)

			w.must(kind, args, nil)
			i := w.m[0].info(r.Volume)
			require.Equal(t, i.Bound, i.Granted)
			require.Greater(t, i.Granted, int64(gib))
			require.Equal(t, "1073741824", w.sizes(r.Volume))
			m := w.m[0]
			ref := VolumeRef{Volume: r.Volume.String()}
			v, err := m.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: ref})
			require.NoError(t, err)
			back := VolumeReduceRequest{Header: Header{SPMEpoch: m.ident.epoch}, VolumeRef: ref, From: i.Granted, To: 2 * mib, Changes: v.Changes}
			reduced, err := m.ReduceVolume(t.Context(), back)
			require.NoError(t, err)
			require.Equal(t, i.Granted, reduced.Granted, "its holder gives nothing back")

			kind, args, err = w.ops.extendVolumeSize(t.Context(), r.VolumeAt, 512*gib)
			require.NoError(t, err)
			requireCode(t, CodePoolFull, w.run(kind, args, -1))
			require.Equal(t, i.Granted, w.m[0].info(r.Volume).Granted)
			require.Equal(t, "1073741824", w.sizes(r.Volume))
			require.NoError(t, w.servers.Stop(t.Context(), r.Image.String()))
			w.consistent()
		})
	}
}

// The other tasks that cannot go on, and are stopped: what is half done says so, nothing
// shows other data than before, and the image can be used.
func TestTasksAreGivenUp(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "aaa")
		_, err := w.ops.prepare(t.Context(), w.at(image, a), PrepareOptions{})
		require.NoError(t, err)
		stuck := func(kind string, args any, err error) {
			t.Helper()
			require.NoError(t, err)
			require.ErrorIs(t, w.run(kind, args, -1), os.ErrPermission)
			w.giveUp()
		}

		w.jobs.fail["snapshot"] = os.ErrPermission
		r := w.newVolume(image, uuid.New())
		r.Parent, r.Size = a, 0
		stuck(w.ops.createVolume(t.Context(), r))
		require.Equal(t, "LEAF", w.types(w.m[0], image), "the server writes to the old leaf")
		require.NoError(t, w.servers.write(image.String(), 2, 'A'))
		delete(w.jobs.fail, "snapshot")
		kind, args, err := w.ops.createVolume(t.Context(), r)
		w.must(kind, args, err)
		b := r.Volume
		require.NoError(t, w.servers.write(image.String(), 1, 'b'))

		w.jobs.fail["pivot"] = os.ErrPermission
		stuck(w.merge(image, a, b))
		require.Equal(t, "INTERNAL! LEAF", w.types(w.m[0], image))
		require.NoError(t, w.servers.write(image.String(), 0, 'b'))
		require.Equal(t, "bbA", w.shows(w.m[0], b))
		delete(w.jobs.fail, "pivot")
		require.NoError(t, w.servers.Stop(t.Context(), image.String()))
		w.consistent()
		kind, args, err = w.merge(image, a, b)
		w.must(kind, args, err)
		require.Equal(t, "LEAF", w.types(w.m[0], image))
		require.Equal(t, "bbA", w.shows(w.m[0], a))

		c := w.volume(image, a, " c")
		w.volume(image, c, "d")
		w.jobs.fail["rebase"] = os.ErrPermission
		stuck(w.merge(image, a, c))
		require.Equal(t, "INTERNAL INTERNAL! LEAF", w.types(w.m[0], image))
		w.consistent()
		d, shows := w.leaf(w.m[0], image)
		require.Equal(t, "dcA", shows)
		delete(w.jobs.fail, "rebase")
		kind, args, err = w.merge(image, c, d)
		w.must(kind, args, err)
		_, shows = w.leaf(w.m[0], image)
		require.Equal(t, "dcA", shows)
		w.consistent()
	})
}

// Who deletes an image by force does not wait for a task that has it and does not go on.
func TestDeleteImageByForceGivesUp(t *testing.T) {
	h, base, leaf, _, _ := storedImages(t, "")
	jobs := h.ops.jobs.(*fakeJobs)
	jobs.fail["resize"] = os.ErrPermission
	id, err := h.ExtendVolumeSize(t.Context(), leaf, 2*gib)
	require.NoError(t, err)
	eventually(t, func() bool {
		e, err := h.engine()
		require.NoError(t, err)
		i, err := e.Info(id)
		require.NoError(t, err)
		return i.Blocked != nil && !i.Active
	})
	r := DeleteImage{Pool: base.Pool, Domain: base.Domain, Image: base.Image}
	waits, err := h.DeleteImage(t.Context(), r)
	require.NoError(t, err)
	require.NoError(t, h.StopTask(t.Context(), waits))
	r.Force = true
	removed, err := h.DeleteImage(t.Context(), r)
	require.NoError(t, err)
	s, err := h.TaskStatus(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, string(task.Failed), s.State)
	require.True(t, s.GivenUp)
	require.Contains(t, s.Message, os.ErrPermission.Error())
	waitTask(t, h, removed)
}

// A raw volume that was shown as large as its metadata say keeps what may have been written
// there, although who has shown it so has gone when the extension is given up.
func TestExtensionOfARawVolumeIsGivenUp(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		r := w.newVolume(uuid.New(), uuid.New())
		r.Size, r.Format, r.Alloc = 128*mib, Raw, Preallocated
		kind, args, err := w.ops.createVolume(t.Context(), r)
		w.must(kind, args, err)
		_, err = w.ops.prepare(t.Context(), r.VolumeAt, PrepareOptions{})
		require.NoError(t, err)
		kind, args, err = w.ops.extendVolumeSize(t.Context(), r.VolumeAt, 384*mib)
		require.NoError(t, err)
		require.Equal(t, kindResizeLive, kind)
		require.ErrorIs(t, w.run(kind, args, 7), errCrash) // after "resize"
		require.NoError(t, w.servers.Stop(t.Context(), r.Image.String()))
		w.restart()
		w.giveUp()
		i := w.m[0].info(r.Volume)
		require.EqualValues(t, 384*mib, i.Capacity)
		require.GreaterOrEqual(t, i.Granted, i.Capacity)
		w.consistent()
	})
}
