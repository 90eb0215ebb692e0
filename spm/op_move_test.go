package spm

import (
	"context"
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
	"tidemark/spm/task"
)

// locks are those that a task takes.
func (w *world) locks(kind string, args any, err error) []task.Lock {
	w.t.Helper()
	require.NoError(w.t, err)
	raw, err := json.Marshal(args)
	require.NoError(w.t, err)
	i := slices.IndexFunc(w.ops.kinds(), func(k task.Kind) bool { return k.Name == kind })
	plan, err := w.ops.kinds()[i].Build(raw)
	require.NoError(w.t, err)
	return plan.Locks
}

// Between the look at the template and the first volume on it, nothing but a lock
// says that an image is coming that needs it.
func TestMoveHoldsTheTemplate(t *testing.T) {
	w := newWorld(t, 2, false)
	to := w.m[1].ident.domain
	base, clone, template := uuid.New(), uuid.New(), w.at(uuid.New(), uuid.New())
	kind, args, err := w.ops.copyImage(t.Context(), CopyImage{From: w.at(base, w.volume(base, uuid.Nil, "tmpl")), To: template, Type: Shared})
	w.must(kind, args, err)
	kind, args, err = w.ops.moveImage(t.Context(), MoveImage{From: w.domain(), To: to, Image: template.Image, Copy: true})
	w.must(kind, args, err)
	r := w.newVolume(clone, uuid.New())
	r.ParentImage, r.Parent = template.Image, template.Volume
	kind, args, err = w.ops.createVolume(t.Context(), r)
	w.must(kind, args, err)

	var held task.Locks
	release, err := held.Acquire(t.Context(), w.locks(w.ops.moveImage(t.Context(), MoveImage{From: w.domain(), To: to, Image: clone})))
	require.NoError(t, err)
	remove := w.locks(w.ops.deleteImage(t.Context(), DeleteImage{Domain: to, Image: template.Image}))
	now, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = held.Acquire(now, remove)
	require.ErrorIs(t, err, context.Canceled, "the template can go while an image comes that is based on it")
	release()
	release, err = held.Acquire(now, remove)
	require.NoError(t, err)
	release()
}

// From the moment at which an image is whole elsewhere nobody opens the original, also if
// it cannot go yet because somebody has it open.
func TestMovedOriginalIsNotOpened(t *testing.T) {
	w := newWorld(t, 2, false)
	image := uuid.New()
	a := w.volume(image, uuid.Nil, "a")
	b := w.volume(image, a, " b")
	kind, args, err := w.ops.moveImage(t.Context(), MoveImage{From: w.domain(), To: w.m[1].ident.domain, Image: image})
	require.NoError(t, err)
	raw, err := json.Marshal(args)
	require.NoError(t, err)
	w.record = &task.Record{Kind: kind, Args: raw}
	steps := w.plan().Steps
	last := len(steps) - 1
	for _, s := range steps[:last] {
		require.NoError(t, s.Do(t.Context(), &task.Run{}), s.Name)
	}
	f, err := hostfile.Open(w.m[0].info(a).Path, hostfile.Options{Fixed: true})
	require.NoError(t, err)
	requireCode(t, CodeInUse, steps[last].Do(t.Context(), &task.Run{}))
	require.Equal(t, []string{Illegal, Illegal}, []string{w.m[0].info(a).Legality, w.m[0].info(b).Legality})
	require.NoError(t, f.Close())
	require.NoError(t, steps[last].Do(t.Context(), &task.Run{}))
	require.Empty(t, w.m[0].family().images[image])
	require.Equal(t, "ab", w.shows(w.m[1], b))
}
