package task_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm/task"
)

// A failing is a store that fails when it is told to.
type failing struct {
	task.MemoryStore
	mu   sync.Mutex
	fail func(r task.Record) (durable bool, err error)
}

func (f *failing) Save(ctx context.Context, r task.Record) error {
	f.mu.Lock()
	fail := f.fail
	f.mu.Unlock()
	if fail != nil {
		if durable, err := fail(r); err != nil {
			if durable {
				f.MemoryStore.Save(ctx, r)
			}
			return err
		}
	}
	return f.MemoryStore.Save(ctx, r)
}

func (f *failing) set(fail func(r task.Record) (bool, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

// A store that fails at any record of a task, once or for long, and has the record
// or not: nothing is done that is not written down, and in the end everything is done
// or undone.
func TestStoreFails(t *testing.T) {
	failures := 0
	for _, s := range scenarios() {
		for _, long := range []bool{false, true} {
			for _, durable := range []bool{false, true} {
				at := 1
				for runWithFailure(t, s, at, long, durable) {
					at++
					failures++
				}
			}
		}
	}
	require.Greater(t, failures, 500)
}

// runWithFailure runs a scenario and reports whether there was a record with that
// number.
func runWithFailure(t *testing.T, s scenario, at int, long, durable bool) bool {
	store, w := new(failing), newWorld()
	var n atomic.Int64
	store.set(func(task.Record) (bool, error) {
		if k := int(n.Add(1)); k == at || long && k > at {
			return durable, errDisk
		}
		return false, nil
	})
	l := live(t, w, store, 0, task.Options{Attempts: 3})
	defer l.end()
	l.recover()
	id, err := l.e.Start(t.Context(), "job", s.job, task.StartOptions{})
	if err != nil {
		require.ErrorIs(t, err, errDisk)
		require.Empty(t, load(t, store))
		require.Empty(t, l.e.All())
		return true
	}
	i := wait(t, l.e, id)
	if s.revert && i.State == task.Finished {
		require.NoError(t, l.e.Revert(t.Context(), id))
		i = wait(t, l.e, id)
	}
	hit := int(n.Load()) >= at
	if hit && long {
		require.Equal(t, task.Recovering, i.State)
		require.Contains(t, i.Failure().Message, errDisk.Error())
		require.ErrorIs(t, l.e.Clear(t.Context(), id), task.ErrState)
		store.set(nil)
		require.NoError(t, l.e.Revert(t.Context(), id))
		i = wait(t, l.e, id)
	}
	if s.Always && i.Blocked != nil {
		store.set(nil)
		require.NoError(t, l.e.Stop(t.Context(), id))
		i = wait(t, l.e, id)
	}
	requireOutcome(t, w, s.job, i, "%+v, save %d", s, at)
	requireSame(t, []task.Record{i.Record}, load(t, store))
	return hit
}

// A task whose records cannot be written can be stopped, which happens when they
// can.
func TestStopWhenTheStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(failing)
		g, e := gated(t, task.Plan{}, store, task.Options{})
		defer e.Close()
		store.set(func(r task.Record) (bool, error) {
			if r.State == task.Queued {
				return false, nil
			}
			return false, errDisk
		})
		id := start(t, e, "gate", 0)
		i := wait(t, e, id)
		require.Equal(t, task.Recovering, i.State)
		require.ErrorContains(t, e.Stop(t.Context(), id), errDisk.Error())
		store.set(nil)
		go func() {
			require.Equal(t, "undo0", <-g.began)
			g.open <- nil
		}()
		require.NoError(t, e.Stop(t.Context(), id))
		require.Equal(t, task.Failed, wait(t, e, id).State)
	})
}

// A task is given up behind its commit point if its step says that there is no hope, at
// once, and when it is blocked and somebody stops it. It has failed with the error of the
// step, and its locks are free. If giving up fails, it is blocked again.
func TestGivenUp(t *testing.T) {
	lock := []task.Lock{{Name: "x", Exclusive: true}}
	for _, j := range []job{
		{Name: "a", Steps: 3, Commit: 1, Fail: 1, Hopeless: true, Locks: lock},
		{Name: "a", Steps: 3, Commit: 1, Fail: 1, Always: true, Locks: lock},
	} {
		w := newWorld()
		l := live(t, w, new(task.MemoryStore), 0, task.Options{Attempts: 1, CodeOf: func(error) int { return 7 }})
		l.recover()
		id := start(t, l.e, "job", j)
		i := wait(t, l.e, id)
		require.Equal(t, task.Recovering, i.State)
		if j.Always {
			require.True(t, i.Stoppable)
			require.False(t, i.Undo)
			require.ErrorContains(t, l.e.Stop(t.Context(), id), "give up step 1: "+errBad.Error())
			i = info(t, l.e, id)
		}
		require.True(t, i.Undo)
		require.False(t, i.Stoppable)
		require.Equal(t, &task.Failure{Code: 7, Message: errBad.Error()}, i.Record.Error, "why it is given up")
		require.NoError(t, l.e.Stop(t.Context(), id))
		require.NoError(t, l.e.Revert(t.Context(), id))
		i = wait(t, l.e, id)
		require.Equal(t, task.Failed, i.State)
		requireOutcome(t, w, j, i)
		require.Equal(t, &task.Failure{Code: 7, Message: errBad.Error()}, i.Failure())
		require.Equal(t, map[string]string{"a0": "done", "a1": "given up"}, w.get())
		_, err := l.e.Locks().Acquire(t.Context(), lock)
		require.NoError(t, err)
		l.end()
	}
}

// What cannot be deleted is there again.
func TestClearFails(t *testing.T) {
	store := &undeletable{}
	l := live(t, newWorld(), store, 0, task.Options{Max: 1})
	l.recover()
	id := start(t, l.e, "job", job{Fail: -1})
	wait(t, l.e, id)
	require.ErrorIs(t, l.e.Clear(t.Context(), id), errDisk)
	require.Equal(t, task.Finished, info(t, l.e, id).State)
}

type undeletable struct{ task.MemoryStore }

func (*undeletable) Delete(context.Context, uuid.UUID) error { return errDisk }

// A step that fails and a store that cannot even write that down: one Revert sets
// both going.
func TestBlockedAndTheStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(failing)
		g, e := gated(t, task.Plan{Steps: make([]task.Step, 1)}, store, task.Options{Attempts: 1})
		defer e.Close()
		id := start(t, e, "gate", 0)
		<-g.began
		store.set(func(task.Record) (bool, error) { return false, errDisk })
		g.open <- errBad
		require.Contains(t, wait(t, e, id).Failure().Message, errDisk.Error())
		store.set(nil)
		require.NoError(t, e.Revert(t.Context(), id))
		<-g.began
		g.open <- nil
		require.Equal(t, task.Finished, wait(t, e, id).State)
	})
}

// A task that is to be undone, which could not be written, makes no room for another: it
// has locks, and goes on.
func TestUnsavedRevertIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(failing)
		plan := task.Plan{Steps: make([]task.Step, 1), Commit: 1, Revertible: true, Locks: []task.Lock{{Name: "x", Exclusive: true}}}
		g, e := gated(t, plan, store, task.Options{Attempts: 1, Max: 1})
		defer e.Close()
		id := start(t, e, "gate", 0)
		<-g.began
		g.open <- nil
		require.Equal(t, task.Finished, wait(t, e, id).State)
		store.set(func(r task.Record) (bool, error) {
			if r.ID == id {
				return false, errDisk
			}
			return false, nil
		})
		require.NoError(t, e.Revert(t.Context(), id))
		require.Equal(t, task.Recovering, wait(t, e, id).State)
		_, err := e.Start(t.Context(), "gate", 0, task.StartOptions{})
		require.ErrorIs(t, err, task.ErrTooMany)
		store.set(nil)
		require.NoError(t, e.Revert(t.Context(), id))
		require.Equal(t, "undo0", <-g.began)
		g.open <- nil
		require.Equal(t, task.Failed, wait(t, e, id).State)
	})
}

// A request that comes while a task's last change is being told waits for that: it
// is not lost, and what is told is in order.
func TestRequestsWhileATaskComesToRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan bool)
		var told []task.State
		g, e := gated(t, task.Plan{Steps: make([]task.Step, 1)}, new(task.MemoryStore), task.Options{Attempts: 1, Notify: func(i task.Info) {
			if i.Blocked != nil || i.State == task.Finished {
				<-goOn
			}
			told = append(told, i.State)
		}})
		defer e.Close()
		request := func(f func(context.Context, uuid.UUID) error, id uuid.UUID) {
			answer := make(chan error, 1)
			go func() { answer <- f(t.Context(), id) }()
			synctest.Wait()
			require.Empty(t, answer, "it waits")
			goOn <- true
			require.NoError(t, <-answer)
		}
		id := start(t, e, "gate", 0)
		<-g.began
		g.open <- errBad
		synctest.Wait()
		require.NotNil(t, info(t, e, id).Blocked)
		request(e.Revert, id)
		<-g.began
		g.open <- nil
		synctest.Wait()
		require.Equal(t, task.Finished, info(t, e, id).State)
		request(e.Clear, id)
		require.Equal(t, []task.State{task.Queued, task.Running, task.Recovering, task.Recovering, task.Finished, task.Cleared}, told)
	})
}
