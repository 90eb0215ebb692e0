package task_test

import (
	"fmt"
	"maps"
	"runtime"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm/task"
)

// scenarios are jobs, and what a client does with them beside starting them.
type scenario struct {
	job
	revert bool // once it has finished
}

func scenarios() []scenario {
	var all []scenario
	for steps := range 4 {
		for commit := range steps + 1 {
			for fail := -1; fail < steps; fail++ {
				all = append(all, scenario{job: job{Name: "x", Steps: steps, Commit: commit, Fail: fail}})
				if fail >= commit {
					all = append(all, scenario{job: job{Name: "x", Steps: steps, Commit: commit, Fail: fail, Hopeless: true}},
						scenario{job: job{Name: "x", Steps: steps, Commit: commit, Fail: fail, Always: true}})
				}
			}
			for stop := range steps {
				all = append(all, scenario{job: job{Name: "x", Steps: steps, Commit: commit, Fail: -1, Stop: 1 + stop}})
			}
		}
		all = append(all, scenario{job{Name: "x", Steps: steps, Commit: steps, Fail: -1, Revertible: true}, true})
	}
	return all
}

// begin runs a scenario in a process that may be killed; it returns whether the
// client was told that there is a task.
func (s scenario) begin(l *life, id uuid.UUID) bool {
	l.recover()
	_, err := l.e.Start(l.t.Context(), "job", s.job, task.StartOptions{ID: id})
	if err == nil {
		i, _ := l.e.Wait(l.t.Context(), id)
		if s.revert && i.State == task.Finished {
			l.e.Revert(l.t.Context(), id)
			l.e.Wait(l.t.Context(), id)
		}
		l.abandon(id)
	}
	l.end()
	return err == nil
}

// again runs the process after that.
func again(l *life) []task.Info {
	l.recover()
	all := l.settle()
	for _, i := range all {
		l.abandon(i.ID)
	}
	l.end()
	return all
}

// abandon stops a task that is blocked.
func (l *life) abandon(id uuid.UUID) {
	if i, _ := l.e.Info(id); i.Blocked == nil {
		return
	}
	if l.e.Stop(l.t.Context(), id) == nil {
		l.w.mu.Lock()
		defer l.w.mu.Unlock()
		l.w.stopped = true
	}
}

// The process is killed at every point, the next one at every point of its
// recovery, and the one after that is not.
func TestKilledAtEveryPoint(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	kills, second := 0, 0
	for _, s := range scenarios() {
		for at := 1; ; at++ {
			store, w := new(task.MemoryStore), newWorld()
			id := uuid.New()
			l := live(t, w, store, at, task.Options{})
			started := s.begin(l, id)
			if !l.isDead() {
				require.True(t, started)
				requireEnd(t, w, s, store, true, "nothing was killed")
				break
			}
			kills++
			left, begun, stopped, state := w.get(), w.begun, w.stopped, copyOf(t, store)
			for then := 1; ; then++ {
				store, w := copyOf(t, state), newWorld()
				w.is, w.begun, w.stopped = maps.Clone(left), maps.Clone(begun), stopped
				next := live(t, w, store, then, task.Options{})
				again(next)
				died := next.isDead()
				if died {
					second++
					again(live(t, w, store, 0, task.Options{}))
				}
				requireEnd(t, w, s, store, started, "%+v killed at %v, then at %v", s, l.trace(), next.trace())
				if !died {
					break
				}
			}
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("%d scenarios, %d kills, %d of them with a second", len(scenarios()), kills, second)
	require.Greater(t, kills, 500)
	requireNoMoreGoroutines(t, goroutines)
}

// requireEnd checks that everything or nothing has been done.
func requireEnd(t *testing.T, w *world, s scenario, store task.Store, started bool, msg string, args ...any) {
	t.Helper()
	msg = fmt.Sprintf(msg, args...)
	l := live(t, w, store, 0, task.Options{})
	require.Empty(t, l.recover(), msg)
	all := l.e.All()
	l.end()
	if len(all) == 0 {
		require.False(t, started, msg)
		require.Empty(t, w.get(), msg)
		return
	}
	require.Len(t, all, 1, msg)
	requireOutcome(t, w, s.job, all[0], msg)
	if s.Fail >= 0 && s.Fail < s.Commit {
		require.Equal(t, task.Failed, all[0].State, msg)
	}
	if w.stopped || s.Hopeless && s.Commit == 0 {
		require.Equal(t, task.Failed, all[0].State, msg)
	}
	if s.Commit == 0 && !s.revert && !s.Always && !s.Hopeless {
		require.Equal(t, task.Finished, all[0].State, msg)
	}
}

func copyOf(t *testing.T, s task.Store) *task.MemoryStore {
	records, err := s.Load(t.Context())
	require.NoError(t, err)
	c := new(task.MemoryStore)
	for _, r := range records {
		require.NoError(t, c.Save(t.Context(), r))
	}
	return c
}
