package spm

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// A taskStory is a task in a world that was prepared for it.
type taskStory struct {
	name    string
	domains int
	tell    func(w *world) tale
}

// A tale is a task, where to look, and what is seen there before and after it.
type tale struct {
	kind          string
	args          any
	err           error
	look          func() string
	before, after string
}

func stories() []taskStory {
	one := func(w *world, image uuid.UUID) func() string {
		return func() string {
			if len(w.m[0].family().images[image]) == 0 {
				return "nothing"
			}
			_, shows := w.leaf(w.m[0], image)
			return shows + " " + w.types(w.m[0], image)
		}
	}
	return []taskStory{
		{"create", 1, func(w *world) tale {
			r := w.newVolume(uuid.New(), uuid.New())
			kind, args, err := w.ops.createVolume(w.t.Context(), r)
			return tale{kind, args, err, one(w, r.Image), "nothing", " LEAF"}
		}},
		{"snapshot", 1, func(w *world) tale {
			image := uuid.New()
			r := w.newVolume(image, uuid.New())
			r.Parent, r.Size = w.volume(image, uuid.Nil, "a"), 0
			kind, args, err := w.ops.createVolume(w.t.Context(), r)
			return tale{kind, args, err, one(w, image), "a LEAF", "a INTERNAL LEAF"}
		}},
		{"delete", 1, func(w *world) tale {
			image := uuid.New()
			a := w.volume(image, uuid.Nil, "a")
			b := w.volume(image, a, "b")
			c := w.volume(image, b, "c")
			kind, args, err := w.ops.deleteVolumes(w.t.Context(), DeleteVolumes{Domain: w.domain(), Image: image, Volumes: []uuid.UUID{b, c}, PostZero: true})
			return tale{kind, args, err, one(w, image), "c INTERNAL INTERNAL LEAF", "a LEAF"}
		}},
		{"delete image", 1, func(w *world) tale {
			image := uuid.New()
			w.volume(image, w.volume(image, uuid.Nil, "a"), "b")
			kind, args, err := w.ops.deleteImage(w.t.Context(), DeleteImage{Domain: w.domain(), Image: image})
			return tale{kind, args, err, one(w, image), "b INTERNAL LEAF", "nothing"}
		}},
		{"copy", 1, func(w *world) tale {
			image := uuid.New()
			w.volume(image, w.volume(image, uuid.Nil, "aa"), "b")
			to := w.at(uuid.New(), uuid.New())
			kind, args, err := w.ops.copyImage(w.t.Context(), CopyImage{From: w.at(image, uuid.Nil), To: to})
			return tale{kind, args, err, one(w, to.Image), "nothing", "ba LEAF"}
		}},
		{"merge", 1, func(w *world) tale {
			image := uuid.New()
			a := w.volume(image, uuid.Nil, "aaa")
			b := w.volume(image, a, "bb")
			w.volume(image, b, "c")
			kind, args, err := w.merge(image, a, b)
			return tale{kind, args, err, one(w, image), "cba INTERNAL INTERNAL LEAF", "cba INTERNAL LEAF"}
		}},
		{"merge leaf", 1, func(w *world) tale {
			image := uuid.New()
			a := w.volume(image, uuid.Nil, "aaa")
			b := w.volume(image, w.volume(image, a, "bb"), "c")
			kind, args, err := w.merge(image, a, b)
			return tale{kind, args, err, one(w, image), "cba INTERNAL INTERNAL LEAF", "cba LEAF"}
		}},
		{"merge all", 1, func(w *world) tale {
			image := uuid.New()
			a := w.volume(image, uuid.Nil, "aaa")
			c := w.volume(image, w.volume(image, a, " b"), "c") // what is between shows something of a
			w.volume(image, c, "   d")
			kind, args, err := w.merge(image, a, c)
			return tale{kind, args, err, one(w, image), "cbad INTERNAL INTERNAL INTERNAL LEAF", "cbad INTERNAL LEAF"}
		}},
		{"extend", 1, func(w *world) tale {
			image := uuid.New()
			a := w.volume(image, uuid.Nil, "a")
			kind, args, err := w.ops.extendVolumeSize(w.t.Context(), w.at(image, a), 2*gib)
			return tale{kind, args, err, func() string { return w.sizes(a) }, fmt.Sprint(gib), fmt.Sprint(2 * gib)}
		}},
		{"reduce", 1, func(w *world) tale {
			image := uuid.New()
			a := w.volume(image, uuid.Nil, "a")
			extend(w.t, w.m[0], a.String(), 3*fakeExtent, 0)
			kind, args, err := w.ops.reduceVolume(w.t.Context(), w.at(image, a))
			return tale{kind, args, err, one(w, image), "a LEAF", "a LEAF"}
		}},
		{"move", 2, func(w *world) tale {
			image := uuid.New()
			w.volume(image, w.volume(image, uuid.Nil, "aa"), "b")
			kind, args, err := w.ops.moveImage(w.t.Context(), MoveImage{From: w.domain(), To: w.m[1].ident.domain, Image: image})
			return tale{kind, args, err, func() string {
				out := ""
				for n, m := range w.m {
					if len(m.family().images[image]) > 0 {
						_, shows := w.leaf(m, image)
						out += fmt.Sprint(n, " ", shows, " ", w.types(m, image))
					}
				}
				return out
			}, "0 ba INTERNAL LEAF", "1 ba INTERNAL LEAF"}
		}},
	}
}

// sizes is the virtual size, which the image and the metadata must agree on.
func (w *world) sizes(id uuid.UUID) string {
	at, err := w.m[0].places(id)
	require.NoError(w.t, err)
	i, err := w.jobs.load(at[len(at)-1])
	require.NoError(w.t, err)
	require.Equal(w.t, i.Size, w.m[0].info(id).Capacity)
	return fmt.Sprint(i.Size)
}

// The process dies before and after every step of every task. The next one finishes
// the task or rolls it back, and either shows.
func TestTasksDieAtEveryStep(t *testing.T) {
	for _, s := range stories() {
		t.Run(s.name, func(t *testing.T) {
			both(t, s.domains, func(t *testing.T, w *world) { sweepSteps(t, w, s) })
		})
	}
}

func sweepSteps(t *testing.T, w *world, s taskStory) {
	for dieAt, undone, done := 0, 0, 0; ; dieAt++ {
		is := s.tell(w)
		require.NoError(t, is.err)
		require.Equal(t, is.before, is.look())
		before := w.views()
		switch err := w.run(is.kind, is.args, dieAt); {
		case err == nil:
			require.Equal(t, is.after, is.look())
			w.consistent()
			require.Positive(t, undone)
			if dieAt > 4 {
				require.Positive(t, done)
			}
			return
		default:
			require.ErrorIs(t, err, errCrash)
		}
		w.restart()
		if w.recover() {
			done++
			require.Equal(t, is.after, is.look(), "died at %d, was finished", dieAt)
			w.requireViews(before, true, fmt.Sprint("died at ", dieAt))
		} else {
			undone++
			require.Equal(t, legalText(is.before), legalText(is.look()), "died at %d, was rolled back", dieAt)
			w.requireViews(before, false, fmt.Sprint("died at ", dieAt))
		}
		w.consistent()
	}
}

// views are what all legal volumes show.
func (w *world) views() map[uuid.UUID]string {
	w.t.Helper()
	out := map[uuid.UUID]string{}
	for _, m := range w.m {
		for id, k := range m.family().all {
			if k.legal() {
				out[id] = w.shows(m, id)
			}
		}
	}
	return out
}

// requireViews requires that every legal volume shows what it did before: or, after a task
// that was finished, what another one did, which was merged into it.
func (w *world) requireViews(before map[uuid.UUID]string, finished bool, when string) {
	w.t.Helper()
	some := slices.Collect(maps.Values(before))
	for id, now := range w.views() {
		switch was, there := before[id]; {
		case !there:
		case finished:
			require.Contains(w.t, some, now, "%s, was finished: volume %s", when, id)
		default:
			require.Equal(w.t, was, now, "%s, was rolled back: volume %s", when, id)
		}
	}
}

// legalText leaves out that volumes of a merge that was rolled back are illegal.
func legalText(s string) string {
	out := []byte{}
	for _, b := range []byte(s) {
		if b != '!' {
			out = append(out, b)
		}
	}
	return string(out)
}

// The same within steps: at every sync of a directory, at every change of a group,
// and in the middle of every job.
func TestTasksDieWithinEveryStep(t *testing.T) {
	for _, s := range stories() {
		t.Run(s.name, func(t *testing.T) {
			both(t, s.domains, func(t *testing.T, w *world) { sweepMoments(t, w, s) })
		})
	}
}

func sweepMoments(t *testing.T, w *world, s taskStory) {
	clock := newDeath(w)
	for dieAt := 0; ; dieAt++ {
		is := s.tell(w)
		require.NoError(t, is.err)
		before := w.views()
		clock.set(dieAt)
		err := w.run(is.kind, is.args, -1)
		clock.set(-1)
		if err == nil {
			require.Positive(t, dieAt)
			return
		}
		require.ErrorIs(t, err, errCrash)
		w.restart()
		w.judge(is, before, fmt.Sprint("died at ", dieAt))
	}
}

// judge recovers a task and looks.
func (w *world) judge(is tale, before map[uuid.UUID]string, when string) {
	w.t.Helper()
	finished := w.recover()
	if finished {
		require.Equal(w.t, is.after, is.look(), "%s, was finished", when)
	} else {
		require.Equal(w.t, legalText(is.before), legalText(is.look()), "%s, was rolled back", when)
	}
	w.requireViews(before, finished, when)
	w.consistent()
}

// A death lets the process die at one of the moments of a world.
type death struct{ count, at int }

func newDeath(w *world) *death {
	d := &death{at: -1}
	moment := func() {
		if d.at < 0 {
			return
		}
		if d.count == d.at {
			d.at = -1
			panic(errCrash)
		}
		d.count++
	}
	w.jobs.die = func(string) { moment() }
	w.moment = moment
	return d
}

// set lets it die at the moment of that number from now on; negative: not at all.
func (d *death) set(at int) { d.count, d.at = 0, at }

// A process dies over a task, and the next one over what it does about that.
func TestRecoveryDiesEverywhere(t *testing.T) {
	for _, s := range stories() {
		t.Run(s.name, func(t *testing.T) {
			both(t, s.domains, func(t *testing.T, w *world) {
				is := s.tell(w)
				require.NoError(t, is.err)
				require.ErrorIs(t, w.run(is.kind, is.args, 0), errCrash)
				commit := w.plan().Commit
				sweepRecovery(t, w, s, 2*commit-1) // the last that is rolled back
				sweepRecovery(t, w, s, 2*commit)   // the first that is not
			})
		})
	}
}

func sweepRecovery(t *testing.T, w *world, s taskStory, step int) {
	clock := newDeath(w)
	for dieAt := 0; ; dieAt++ {
		is := s.tell(w)
		require.NoError(t, is.err)
		before := w.views()
		err := w.run(is.kind, is.args, step)
		if err == nil { // there is no step behind the commit point
			return
		}
		require.ErrorIs(t, err, errCrash)
		w.restart()
		record := *w.record
		clock.set(dieAt)
		err = w.do(func() error { w.recover(); return nil })
		clock.set(-1)
		if err == nil {
			w.consistent()
			return
		}
		w.record = &record
		w.restart()
		w.judge(is, before, fmt.Sprintf("died at %d of the recovery", dieAt))
	}
}

// What is half done says so, to who has lost the task: what counts is what is legal.
func TestHalfDoneIsIllegal(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		image := uuid.New()
		a := w.volume(image, uuid.Nil, "aaa")
		b := w.volume(image, a, "bb")
		c := w.volume(image, b, "c")
		to := w.at(uuid.New(), uuid.New())
		kind, args, err := w.ops.copyImage(t.Context(), CopyImage{From: w.at(image, c), To: to})
		require.NoError(t, err)
		require.ErrorIs(t, w.run(kind, args, 4), errCrash) // before "copy"
		require.Equal(t, "LEAF!", w.types(w.m[0], to.Image))
		_, err = w.ops.prepare(t.Context(), to, PrepareOptions{})
		requireCode(t, CodeIllegal, err)
		require.False(t, w.recover())

		kind, args, err = w.merge(image, a, c)
		require.NoError(t, err)
		require.ErrorIs(t, w.run(kind, args, 10), errCrash) // before "rebase"
		require.Equal(t, "LEAF INTERNAL! LEAF!", w.types(w.m[0], image))
		w.restart()
		id, shows := w.leaf(w.m[0], image)
		require.Equal(t, a, id)
		require.Equal(t, "cba", shows)
		require.True(t, w.recover())

		kind, args, err = w.ops.deleteImage(t.Context(), DeleteImage{Domain: w.domain(), Image: image})
		w.must(kind, args, err)
		w.consistent()
	})
}

// The removal of an image without a task, of which no part is left either.
func TestRemovalOfAChainDiesEverywhere(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		clock := newDeath(w)
		for dieAt := 0; ; dieAt++ {
			image := uuid.New()
			a := w.volume(image, uuid.Nil, "a")
			w.volume(image, w.volume(image, a, "b"), "c")
			clock.set(dieAt)
			err := w.do(func() error {
				_, err := w.m[0].RemoveVolume(t.Context(), VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: image.String()}})
				return err
			})
			clock.set(-1)
			if err == nil {
				require.Positive(t, dieAt)
				w.consistent()
				return
			}
			require.ErrorIs(t, err, errCrash)
			w.restart()
			if len(w.m[0].family().images[image]) > 0 {
				require.Equal(t, "INTERNAL INTERNAL LEAF", w.types(w.m[0], image))
			}
			w.consistent()
		}
	})
}
