package task_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/spm/task"
)

func TestTask(t *testing.T) {
	w := newWorld()
	l := live(t, w, new(task.MemoryStore), 0, task.Options{})
	require.Empty(t, l.recover())
	j := job{Name: "a", Steps: 3, Commit: 2, Fail: -1}
	id, err := l.e.Start(t.Context(), "job", j, task.StartOptions{})
	require.NoError(t, err)
	i, err := l.e.Wait(t.Context(), id)
	require.NoError(t, err)
	requireOutcome(t, w, j, i)
	require.Equal(t, task.Finished, i.State)
	require.JSONEq(t, `"a2"`, string(i.Result))
	require.NoError(t, l.e.Clear(t.Context(), id))
	require.Empty(t, l.e.All())
}
