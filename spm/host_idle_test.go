package spm

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm/task"
)

// A gate is a log that holds whoever says that a task has finished: its record says so
// already, and its goroutine goes on.
type gate struct{ reached, open chan struct{} }

func (g gate) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("a task has finished")) && bytes.Contains(p, []byte("createVolume")) {
		close(g.reached)
		<-g.open
	}
	return len(p), nil
}

// Who has seen that a task has finished may stop the SPM at once.
func TestTaskThatHasFinishedKeepsNobody(t *testing.T) {
	root := t.TempDir()
	g := gate{make(chan struct{}), make(chan struct{})}
	h := openHost(t, root, func(o *HostOptions) { o.Log = slog.New(slog.NewTextHandler(g, nil)) })
	a := makeDomain(t, h, root, "a")
	pool := makePool(t, h, a)
	startSPM(t, h, pool)
	id, err := h.CreateImageVolume(t.Context(), NewVolume{
		VolumeAt: VolumeAt{Pool: pool, Domain: a, Image: uuid.New(), Volume: uuid.New()}, Size: gib, Format: Cow, Alloc: Sparse, Type: Leaf,
	})
	require.NoError(t, err)
	<-g.reached
	s, err := h.TaskStatus(t.Context(), id)
	busy := h.idle(h.pool)
	close(g.open)
	require.NoError(t, err)
	require.Equal(t, string(task.Finished), s.State)
	require.NoError(t, busy)
	require.NoError(t, h.StopSPM(t.Context(), pool))
}
