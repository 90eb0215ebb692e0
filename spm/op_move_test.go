package spm

import (
	"context"
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

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
