package task_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/spm/task"
)

func start(t *testing.T, e *task.Engine, kind string, args any) uuid.UUID {
	t.Helper()
	id, err := e.Start(t.Context(), kind, args, task.StartOptions{})
	require.NoError(t, err)
	return id
}

func wait(t *testing.T, e *task.Engine, id uuid.UUID) task.Info {
	t.Helper()
	i, err := e.Wait(t.Context(), id)
	require.NoError(t, err)
	return i
}

func info(t *testing.T, e *task.Engine, id uuid.UUID) task.Info {
	t.Helper()
	i, err := e.Info(id)
	require.NoError(t, err)
	return i
}

func TestTask(t *testing.T) {
	w := newWorld()
	l := live(t, w, new(task.MemoryStore), 0, task.Options{})
	_, err := l.e.Start(t.Context(), "job", job{}, task.StartOptions{})
	require.ErrorContains(t, err, "Recover")
	require.Empty(t, l.recover())
	_, err = l.e.Recover(t.Context())
	require.Error(t, err, "once")
	j := job{Name: "a", Steps: 3, Commit: 2, Fail: -1}
	id := start(t, l.e, "job", j)
	_, err = l.e.Start(t.Context(), "job", j, task.StartOptions{ID: id})
	require.ErrorIs(t, err, fs.ErrExist)
	i := wait(t, l.e, id)
	requireOutcome(t, w, j, i)
	require.Equal(t, task.Finished, i.State)
	require.JSONEq(t, `"a2"`, string(i.Result))
	require.Equal(t, "step 2", i.StepName)
	require.False(t, i.Ended.Before(i.Created))
	require.Equal(t, []string{
		"job:queued:0:before", "job:queued:0:after",
		"job:running:0:before", "job:running:0:after", "do:a0:begin", "do:a0:half", "do:a0:done",
		"job:running:1:before", "job:running:1:after", "do:a1:begin", "do:a1:half", "do:a1:done",
		"job:running:2:before", "job:running:2:after", "do:a2:begin", "do:a2:half", "do:a2:done",
		"job:finished:2:before", "job:finished:2:after",
	}, l.trace())

	require.ErrorIs(t, l.e.Stop(t.Context(), id), task.ErrState, "it has ended")
	require.ErrorIs(t, l.e.Revert(t.Context(), id), task.ErrState, "its kind cannot be undone")
	require.NoError(t, l.e.Clear(t.Context(), id))
	require.Empty(t, l.e.All())
	err = l.e.Clear(t.Context(), id)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.EqualError(t, err, "task "+id.String()+": there is none of that UUID, or it has been cleared")
	_, err = l.e.Wait(t.Context(), id)
	require.ErrorIs(t, err, fs.ErrNotExist)
	l.end()
	_, err = l.e.Start(t.Context(), "job", j, task.StartOptions{})
	require.ErrorIs(t, err, block.ErrClosed)
}

// What cannot be started leaves nothing.
func TestStartRefuses(t *testing.T) {
	store := new(task.MemoryStore)
	bad := func(json.RawMessage) (task.Plan, error) { return task.Plan{Commit: 1}, nil }
	refuse := func(json.RawMessage) (task.Plan, error) { return task.Plan{}, errBad }
	half := func(json.RawMessage) (task.Plan, error) {
		return task.Plan{Steps: make([]task.Step, 2), Commit: 1, Revertible: true}, nil
	}
	e := task.New(t.Context(), store, []task.Kind{{Name: "bad", Build: bad}, {Name: "refuse", Build: refuse}, {Name: "half", Build: half}}, task.Options{})
	defer e.Close()
	_, err := e.Recover(t.Context())
	require.NoError(t, err)
	for _, c := range []struct {
		kind string
		args any
		want string
	}{
		{"none", 1, "no such kind"}, {"bad", 1, "a bug"}, {"half", 1, "a bug"}, {"refuse", 1, errBad.Error()},
		{"refuse", make(chan int), "unsupported"}, {"refuse", strings.Repeat("a", 9000), "at most"},
	} {
		_, err := e.Start(t.Context(), c.kind, c.args, task.StartOptions{})
		require.ErrorContains(t, err, c.want)
	}
	require.Empty(t, e.All())
	require.Empty(t, load(t, store))
}

// A gate is a kind whose steps say that they have begun, and wait.
type gate struct {
	began chan string // of do and undo
	open  chan error  // what they return
}

func newGate() gate { return gate{make(chan string), make(chan error)} }

func (g gate) kind(p task.Plan) task.Kind {
	step := func(what string, i int) func(context.Context, *task.Run) error {
		return func(ctx context.Context, _ *task.Run) error {
			select {
			case g.began <- fmt.Sprint(what, i):
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case err := <-g.open:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return task.Kind{Name: "gate", Build: func(json.RawMessage) (task.Plan, error) {
		q := p
		q.Steps = nil
		for i := range p.Steps {
			q.Steps = append(q.Steps, task.Step{Name: fmt.Sprint(i), Do: step("do", i), Undo: step("undo", i)})
		}
		return q, nil
	}}
}

// gated opens an engine of one kind of three steps, two of which can be undone. It
// runs in a bubble: what it leaves behind fails the test.
func gated(t *testing.T, p task.Plan, s task.Store, o task.Options) (gate, *task.Engine) {
	if p.Steps == nil {
		p.Steps, p.Commit = make([]task.Step, 3), 2
	}
	g := newGate()
	e := task.New(t.Context(), s, []task.Kind{g.kind(p)}, o)
	_, err := e.Recover(t.Context())
	require.NoError(t, err)
	return g, e
}

func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		code := func(err error) int {
			if errors.Is(err, task.ErrStopped) {
				return 7
			}
			return 8
		}
		g, e := gated(t, task.Plan{Locks: []task.Lock{{Name: "x", Exclusive: true}}}, new(task.MemoryStore), task.Options{CodeOf: code})
		defer e.Close()
		id := start(t, e, "gate", 0)
		waits := start(t, e, "gate", 0)
		require.Equal(t, "do0", <-g.began)
		g.open <- nil
		require.Equal(t, "do1", <-g.began)
		require.True(t, info(t, e, id).Stoppable)
		require.ErrorIs(t, e.Clear(t.Context(), id), task.ErrState)
		require.ErrorIs(t, e.Revert(t.Context(), id), task.ErrState)

		require.True(t, info(t, e, waits).Stoppable)
		require.NoError(t, e.Stop(t.Context(), waits))
		i := info(t, e, waits)
		require.Equal(t, task.Failed, i.State)
		require.Equal(t, &task.Failure{Code: 7, Message: task.ErrStopped.Error()}, i.Failure())

		require.NoError(t, e.Stop(t.Context(), id))
		require.NoError(t, e.Stop(t.Context(), id), "again")
		require.Equal(t, "undo1", <-g.began)
		require.Equal(t, task.Aborting, info(t, e, id).State)
		require.NoError(t, e.Stop(t.Context(), id), "again")
		g.open <- nil
		require.Equal(t, "undo0", <-g.began)
		g.open <- nil
		i = wait(t, e, id)
		require.Equal(t, task.Failed, i.State)
		require.Equal(t, 7, i.Failure().Code)

		id = start(t, e, "gate", 0)
		for _, s := range []string{"do0", "do1", "do2"} {
			require.Equal(t, s, <-g.began)
			if s != "do2" {
				g.open <- nil
			}
		}
		require.False(t, info(t, e, id).Stoppable)
		err := e.Stop(t.Context(), id)
		require.ErrorIs(t, err, task.ErrState)
		require.ErrorContains(t, err, "commit point")
		require.ErrorContains(t, e.Revert(t.Context(), id), "commit point")
		g.open <- nil
		require.Equal(t, task.Finished, wait(t, e, id).State)
	})
}

// A step that has succeeded all the same does not make a stop undone.
func TestStopWhileAStepSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, done := make(chan bool), make(chan bool)
		undone := 0
		kind := task.Kind{Name: "deaf", Build: func(json.RawMessage) (task.Plan, error) {
			return task.Plan{Commit: 1, Steps: []task.Step{{
				Do:   func(context.Context, *task.Run) error { began <- true; <-done; return nil },
				Undo: func(context.Context, *task.Run) error { undone++; return nil },
			}}}, nil
		}}
		e := task.New(t.Context(), new(task.MemoryStore), []task.Kind{kind}, task.Options{})
		defer e.Close()
		_, err := e.Recover(t.Context())
		require.NoError(t, err)
		id := start(t, e, "deaf", 0)
		<-began
		require.NoError(t, e.Stop(t.Context(), id))
		done <- true
		require.Equal(t, task.Failed, wait(t, e, id).State)
		require.Equal(t, 1, undone)
	})
}

// A step behind the commit point, and an undo, is repeated, then it is blocked; the
// task keeps its locks, and goes on by Revert or in the next process.
func TestBlocked(t *testing.T) {
	for _, undo := range []bool{false, true} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("undo=%v/restart=%v", undo, restart), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { blocked(t, undo, restart) })
			})
		}
	}
}

// What passes by itself is waited for, but not for ever; what follows it is an error
// like any other.
func TestPassing(t *testing.T) {
	passing, lasting := errors.New("somebody has it"), errors.New("the disk is gone")
	for _, c := range []struct {
		name  string
		last  error // after ten times passing; nil: it succeeds then
		tries int
		state task.State
	}{
		{"it passes", nil, 11, task.Finished},
		{"something else is wrong", lasting, 11, task.Recovering},
		{"it does not pass", passing, 17, task.Recovering},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, e := gated(t, task.Plan{Steps: make([]task.Step, 1)}, new(task.MemoryStore), task.Options{Attempts: 3,
					Pause: time.Second, Patience: 30 * time.Second, Passing: func(err error) bool { return errors.Is(err, passing) }})
				defer e.Close()
				id := start(t, e, "gate", 0)
				for i := range c.tries {
					require.Equal(t, "do0", <-g.began)
					err := passing
					if i >= 10 {
						err = c.last
					}
					g.open <- err
				}
				require.Equal(t, c.state, wait(t, e, id).State)
			})
		})
	}
}

func blocked(t *testing.T, undo, restart bool) {
	plan := task.Plan{Locks: []task.Lock{{Name: "x", Exclusive: true}}}
	store := new(task.MemoryStore)
	g, e := gated(t, plan, store, task.Options{Attempts: 3, Pause: time.Second})
	defer func() { e.Close() }()
	began := time.Now()
	id := start(t, e, "gate", 0)
	require.Equal(t, "do0", <-g.began)
	g.open <- nil
	require.Equal(t, "do1", <-g.began)
	stuck, end := "do2", task.Finished
	if undo {
		stuck, end = "undo1", task.Failed
		g.open <- errBad
	} else {
		g.open <- nil
	}
	trouble := errors.New("the disk is gone")
	for range 3 {
		require.Equal(t, stuck, <-g.began)
		g.open <- trouble
	}
	i := wait(t, e, id)
	require.Equal(t, 3*time.Second, time.Since(began), "1 s and 2 s")
	require.Equal(t, task.Recovering, i.State)
	require.Contains(t, i.Failure().Message, trouble.Error())
	require.Equal(t, undo, i.Undo)
	if undo {
		require.Equal(t, errBad.Error(), i.Record.Error.Message, "why it is rolled back")
	}
	require.ErrorIs(t, e.Clear(t.Context(), id), task.ErrState)
	require.Equal(t, !undo, i.Stoppable, "it can be given up")
	if undo {
		require.NoError(t, e.Stop(t.Context(), id))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	_, err := e.Locks().Acquire(ctx, plan.Locks)
	require.ErrorIs(t, err, context.DeadlineExceeded, "it keeps its locks")

	if restart {
		e.Close()
		g, e = gated(t, plan, store, task.Options{})
	} else {
		require.NoError(t, e.Revert(t.Context(), id))
	}
	require.NoError(t, e.Revert(t.Context(), id), "it goes on already")
	require.Equal(t, stuck, <-g.began)
	require.Nil(t, info(t, e, id).Blocked)
	g.open <- nil
	if undo {
		require.Equal(t, "undo0", <-g.began)
		g.open <- nil
	}
	require.Equal(t, end, wait(t, e, id).State)
	release, err := e.Locks().Acquire(t.Context(), plan.Locks)
	require.NoError(t, err)
	release()
}

// A finished task is undone, with its locks; until it has them it is as it was.
func TestRevert(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plan := task.Plan{Steps: make([]task.Step, 2), Commit: 2, Revertible: true, Locks: []task.Lock{{Name: "x"}}}
		store := new(task.MemoryStore)
		g, e := gated(t, plan, store, task.Options{})
		defer e.Close()
		id := start(t, e, "gate", 0)
		for range 2 {
			<-g.began
			g.open <- nil
		}
		i := wait(t, e, id)
		require.Equal(t, task.Finished, i.State)
		release, err := e.Locks().Acquire(t.Context(), []task.Lock{{Name: "x", Exclusive: true}})
		require.NoError(t, err)
		require.NoError(t, e.Revert(t.Context(), id))
		require.NoError(t, e.Revert(t.Context(), id))
		synctest.Wait()
		require.Equal(t, task.Finished, info(t, e, id).State)
		require.ErrorIs(t, e.Clear(t.Context(), id), task.ErrState)
		release()
		require.Equal(t, "undo1", <-g.began)
		require.True(t, load(t, store)[0].Ended.IsZero())
		g.open <- nil
		require.Equal(t, "undo0", <-g.began)
		g.open <- nil
		i = wait(t, e, id)
		require.Equal(t, task.Failed, i.State)
		require.Equal(t, task.ErrReverted.Error(), i.Failure().Message)
		require.NoError(t, e.Revert(t.Context(), id))
		require.NoError(t, e.Clear(t.Context(), id))
	})
}

// A closed engine has cancelled its steps and waited for them, the records are as
// they were, and the locks are free.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plan := task.Plan{Steps: make([]task.Step, 3), Commit: 2, Locks: []task.Lock{{Name: "x", Exclusive: true}}}
		store, locks := new(task.MemoryStore), new(task.Locks)
		g, e := gated(t, plan, store, task.Options{Locks: locks})
		first, second := start(t, e, "gate", 0), start(t, e, "gate", 0)
		<-g.began
		before := load(t, store)
		e.Close()
		e.Close()
		requireSame(t, before, load(t, store))
		release, err := locks.Acquire(t.Context(), plan.Locks)
		require.NoError(t, err)
		release()
		for _, id := range []uuid.UUID{first, second} {
			_, err = e.Wait(t.Context(), id)
			require.ErrorIs(t, err, block.ErrClosed)
			require.ErrorIs(t, e.Stop(t.Context(), id), block.ErrClosed)
		}

		// The next one undoes what had begun, and then runs what was queued.
		g, e = gated(t, plan, store, task.Options{Locks: locks})
		defer e.Close()
		require.Equal(t, "undo0", <-g.began)
		require.Equal(t, task.Recovering, info(t, e, first).State)
		require.Equal(t, task.Queued, info(t, e, second).State)
		g.open <- nil
		require.Equal(t, task.ErrInterrupted.Error(), wait(t, e, first).Failure().Message)
		for range 3 {
			<-g.began
			g.open <- nil
		}
		require.Equal(t, task.Finished, wait(t, e, second).State)
	})
}

// No more tasks are at a step than there are workers; who waits for locks is none.
func TestWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, e := gated(t, task.Plan{}, new(task.MemoryStore), task.Options{Workers: 2})
		defer e.Close()
		for range 3 {
			start(t, e, "gate", 0)
		}
		synctest.Wait()
		<-g.began
		<-g.began
		synctest.Wait()
		select {
		case s := <-g.began:
			require.Fail(t, "a third has begun: "+s)
		default:
		}
		go func() {
			for range 3*3 - 2 {
				<-g.began
			}
		}()
		for range 3 * 3 {
			g.open <- nil
		}
		for _, i := range e.All() {
			require.Equal(t, task.Finished, wait(t, e, i.ID).State)
		}
	})
}

// Ended tasks make room, the oldest first, and those of yesterday; others do not.
func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := new(task.MemoryStore)
		g, e := gated(t, task.Plan{Steps: make([]task.Step, 1), Commit: 1}, store, task.Options{Max: 3})
		defer e.Close()
		var ids []uuid.UUID
		run := func() {
			ids = append(ids, start(t, e, "gate", 0))
			<-g.began
			g.open <- nil
			wait(t, e, ids[len(ids)-1])
			time.Sleep(time.Minute)
		}
		kept := func() (k []uuid.UUID) {
			for _, i := range e.All() {
				k = append(k, i.ID)
			}
			require.Len(t, load(t, store), len(k))
			return k
		}
		for range 5 {
			run()
		}
		require.Equal(t, ids[2:], kept())
		time.Sleep(24*time.Hour - 90*time.Second)
		run()
		require.Equal(t, ids[4:], kept(), "a day is over for all but the last")

		for range 3 {
			start(t, e, "gate", 0)
		}
		_, err := e.Start(t.Context(), "gate", 0, task.StartOptions{})
		require.ErrorIs(t, err, task.ErrTooMany)
		require.Len(t, kept(), 3)
	})
}

// What this process does not understand is kept, listed and not touched, and so it
// is by the next one.
func TestForeign(t *testing.T) {
	store := new(task.MemoryStore)
	version, kind, args, step := newRecord(1), newRecord(2), newRecord(3), newRecord(4)
	version.Version = 2
	kind.Kind = "dance"
	args.Args = json.RawMessage(`{"Steps":"two"}`)
	step.Args, step.Step, step.State = json.RawMessage(`{"Steps":2,"Commit":1}`), 2, task.Running
	records := map[string]task.Record{"version 2": version, "dance": kind, "arguments": args, "at step 2": step}
	for _, r := range records {
		require.NoError(t, store.Save(t.Context(), r))
	}
	before := load(t, store)
	for range 2 {
		l := live(t, newWorld(), store, 0, task.Options{})
		require.Len(t, l.recover(), 4)
		for why, r := range records {
			i := wait(t, l.e, r.ID)
			require.Contains(t, i.Foreign, why)
			require.ErrorIs(t, l.e.Stop(t.Context(), r.ID), task.ErrForeign)
			require.ErrorIs(t, l.e.Revert(t.Context(), r.ID), task.ErrForeign)
			require.ErrorIs(t, l.e.Clear(t.Context(), r.ID), task.ErrForeign)
		}
		l.end()
		requireSame(t, before, load(t, store))
	}
	// An ended one of a kind that there is no more may be cleared.
	r := newRecord(9)
	r.Kind, r.State = "dance", task.Finished
	require.NoError(t, store.Save(t.Context(), r))
	l := live(t, newWorld(), store, 0, task.Options{})
	l.recover()
	require.ErrorIs(t, l.e.Revert(t.Context(), r.ID), task.ErrState)
	require.NoError(t, l.e.Clear(t.Context(), r.ID))
}

// Progress is told at most four times a second, and everything in order.
func TestNotify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kind := task.Kind{Name: "slow", Build: func(json.RawMessage) (task.Plan, error) {
			return task.Plan{Steps: []task.Step{{Name: "copy", Do: func(_ context.Context, r *task.Run) error {
				for n := range int64(1000) {
					r.Progress(n, 1000)
					time.Sleep(time.Millisecond)
				}
				return r.Result(map[string]int{"n": 1})
			}}}}, nil
		}}
		var mu sync.Mutex
		var told []task.Info
		e := task.New(t.Context(), new(task.MemoryStore), []task.Kind{kind}, task.Options{Notify: func(i task.Info) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, i)
		}})
		defer e.Close()
		_, err := e.Recover(t.Context())
		require.NoError(t, err)
		id := start(t, e, "slow", 0)
		wait(t, e, id)
		require.NoError(t, e.Clear(t.Context(), id))
		var what []string
		for _, i := range told {
			what = append(what, fmt.Sprint(i.State, " ", i.Done))
		}
		require.Equal(t, []string{"queued 0", "running 0", "running 0", "running 250", "running 500", "running 750", "finished 0", "cleared 0"}, what)
		require.Equal(t, "copy", told[3].StepName)
		require.EqualValues(t, 1000, told[3].Total)
	})
}
