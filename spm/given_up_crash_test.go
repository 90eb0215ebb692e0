package spm

import (
	"fmt"
	"os"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// A stuck task is one that does not get behind a step, and is given up.
type stuckTask struct {
	name    string
	domains int
	fails   string // the job that does; "": the process dies before the step
	step    int
	tell    func(w *world) tale
}

func stuckTasks() []stuckTask {
	served := func(w *world, blocks ...string) (image uuid.UUID, all []uuid.UUID) {
		image = uuid.New()
		all = []uuid.UUID{uuid.Nil}
		for _, b := range blocks {
			all = append(all, w.volume(image, all[len(all)-1], b))
		}
		_, err := w.ops.prepare(w.t.Context(), w.at(image, uuid.Nil), PrepareOptions{})
		require.NoError(w.t, err)
		return image, all[1:]
	}
	look := func(w *world, image uuid.UUID) func() string {
		return func() string {
			if len(w.m[0].family().images[image]) == 0 {
				return "nothing"
			}
			leaf, shows := w.leaf(w.m[0], image)
			return shows + " " + w.types(w.m[0], image) + " " + w.sizes(leaf)
		}
	}
	extend := func(w *world, r NewVolume) tale {
		kind, args, err := w.ops.createVolume(w.t.Context(), r)
		w.must(kind, args, err)
		kind, args, err = w.ops.extendVolumeSize(w.t.Context(), r.VolumeAt, 2*r.Size)
		is := fmt.Sprint(r.Size, " ", w.m[0].info(r.Volume).Granted)
		return tale{kind, args, err, func() string { return w.sizes(r.Volume) + fmt.Sprint(" ", w.m[0].info(r.Volume).Granted) }, is, is}
	}
	return []stuckTask{
		{"extend", 1, "resize", 2, func(w *world) tale {
			r := w.newVolume(uuid.New(), uuid.New())
			r.Alloc, r.Size = Preallocated, 512*mib
			return extend(w, r)
		}},
		{"extend raw", 1, "", 3, func(w *world) tale {
			r := w.newVolume(uuid.New(), uuid.New())
			r.Format, r.Alloc, r.Size = Raw, Preallocated, 128*mib
			return extend(w, r)
		}},
		{"extend a served image", 1, "resize", 3, func(w *world) tale {
			image, all := served(w, "a")
			kind, args, err := w.ops.extendVolumeSize(w.t.Context(), w.at(image, all[0]), 2*gib)
			return tale{kind, args, err, look(w, image), "a LEAF 1073741824", "a LEAF 1073741824"}
		}},
		{"snapshot", 1, "snapshot", 2, func(w *world) tale {
			image, all := served(w, "a")
			r := w.newVolume(image, uuid.New())
			r.Parent, r.Size = all[0], 0
			kind, args, err := w.ops.createVolume(w.t.Context(), r)
			return tale{kind, args, err, look(w, image), "a LEAF 1073741824", "a LEAF 1073741824"}
		}},
		{"merge a served leaf", 1, "pivot", 5, func(w *world) tale {
			image, all := served(w, "aa", "b")
			kind, args, err := w.merge(image, all[0], all[1])
			return tale{kind, args, err, look(w, image), "ba INTERNAL LEAF 1073741824", "ba INTERNAL! LEAF 1073741824"}
		}},
		{"copy", 1, "", 3, func(w *world) tale {
			image := uuid.New()
			w.volume(image, uuid.Nil, "a")
			to := w.at(uuid.New(), uuid.New())
			kind, args, err := w.ops.copyImage(w.t.Context(), CopyImage{From: w.at(image, uuid.Nil), To: to})
			return tale{kind, args, err, look(w, to.Image), "nothing", "nothing"}
		}},
		{"move", 2, "", 3, func(w *world) tale {
			image := uuid.New()
			w.volume(image, uuid.Nil, "a")
			kind, args, err := w.ops.moveImage(w.t.Context(), MoveImage{From: w.domain(), To: w.m[1].ident.domain, Image: image})
			return tale{kind, args, err, func() string {
				return look(w, image)() + fmt.Sprint(" ", len(w.m[1].family().images[image]))
			}, "a LEAF 1073741824 0", "a LEAF 1073741824 0"}
		}},
	}
}

// The process dies wherever it can while a task is given up, and the next one gives it up.
func TestGivingUpDiesEverywhere(t *testing.T) {
	for _, s := range stuckTasks() {
		t.Run(s.name, func(t *testing.T) {
			both(t, s.domains, func(t *testing.T, w *world) {
				clock := newDeath(w)
				for dieAt := 0; ; dieAt++ {
					is := s.tell(w)
					require.NoError(t, is.err)
					require.Equal(t, is.before, is.look())
					if s.fails == "" {
						require.ErrorIs(t, w.run(is.kind, is.args, 2*s.step), errCrash)
					} else {
						w.jobs.fail[s.fails] = os.ErrPermission
						require.ErrorIs(t, w.run(is.kind, is.args, -1), os.ErrPermission)
						delete(w.jobs.fail, s.fails)
					}
					require.Equal(t, s.step, w.record.Step)
					clock.set(dieAt)
					err := w.do(func() error { w.giveUp(); return nil })
					clock.set(-1)
					if err != nil {
						require.ErrorIs(t, err, errCrash)
						w.restart()
						w.giveUp()
					}
					require.Equal(t, is.after, is.look(), "died at %d", dieAt)
					for image := range w.servers.byKey {
						require.NoError(t, w.servers.Stop(t.Context(), image))
					}
					w.consistent()
					require.Equal(t, is.after, is.look(), "died at %d, and started again", dieAt)
					if err == nil {
						return
					}
				}
			})
		})
	}
}
