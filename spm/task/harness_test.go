package task_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm/task"
)

var (
	errDead = errors.New("the process is dead")
	errBad  = errors.New("the step fails")
)

// A world is what is outside the process: what steps have done, by name.
type world struct {
	mu      sync.Mutex
	is      map[string]string // "half" or "done"
	begun   map[string]int    // how many steps of a job ever were, by its name
	stopped bool              // a Stop has been accepted
}

func newWorld() *world { return &world{is: map[string]string{}, begun: map[string]int{}} }

func (w *world) set(name, value string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if value == "" {
		delete(w.is, name)
		return
	}
	w.is[name] = value
}

func (w *world) get() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.is)
}

// A job is the arguments of the tests' kind: which steps there are, what fails.
type job struct {
	Name       string // prefix of what it does to the world
	Steps      int
	Commit     int
	Revertible bool
	Fail       int // the step whose Do fails, always if it can be undone; -1: none
	Stop       int // at step Stop-1 a client stops it; 0: nobody does
	// Always says that a step behind the commit point that fails does so each time, and
	// Hopeless that it says so.
	Always, Hopeless bool
	Locks            []task.Lock
}

func (j job) key(i int) string { return fmt.Sprintf("%s%d", j.Name, i) }

// requireOutcome checks that a job has done everything or nothing.
func requireOutcome(t *testing.T, w *world, j job, i task.Info, msg ...any) {
	t.Helper()
	want, givenUp := map[string]string{}, false
	switch i.State {
	case task.Finished:
		for n := range j.Steps {
			want[j.key(n)] = "done"
		}
		require.Nil(t, i.Record.Error, msg...)
	case task.Failed:
		require.NotNil(t, i.Record.Error, msg...)
		require.Empty(t, i.Result, msg...)
		if (j.Always || j.Hopeless) && j.Fail >= j.Commit && i.Record.Error.Message == errBad.Error() {
			for n := range j.Fail {
				want[j.key(n)] = "done"
			}
			want[j.key(j.Fail)] = "given up"
			givenUp = true
		}
	default:
		require.Fail(t, "it has not ended: "+string(i.State), msg...)
	}
	require.Equal(t, want, w.get(), msg...)
	require.Equal(t, givenUp, i.GivenUp, msg...)
}

// A life is a process: an engine that can be killed at any point that matters.
type life struct {
	t      *testing.T
	w      *world
	store  task.Store
	owners *owners // nil: locks are not watched
	e      *task.Engine
	cancel context.CancelFunc

	mu     sync.Mutex
	points []string
	killAt int // the number of the point; 0: never
	dead   bool
	failed map[string]int
}

// live starts a process on what another has left, killed at a point.
func live(t *testing.T, w *world, s task.Store, killAt int, o task.Options) *life {
	l := &life{t: t, w: w, store: s, killAt: killAt, failed: map[string]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	l.cancel = cancel
	o.At = func(p string) { l.point(p) }
	if o.Pause == 0 {
		o.Pause = time.Microsecond
	}
	l.e = task.New(ctx, (*mortalStore)(l), []task.Kind{{Name: "job", Build: l.build}}, o)
	t.Cleanup(l.end)
	return l
}

// end waits for what is left of it.
func (l *life) end() {
	l.e.Close()
	l.cancel()
}

// point passes a point, and reports whether the process lives on.
func (l *life) point(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		return false
	}
	l.points = append(l.points, name)
	if len(l.points) == l.killAt {
		l.dead = true
		l.cancel()
	}
	return !l.dead
}

func (l *life) isDead() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dead
}

func (l *life) trace() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.points)
}

func (l *life) build(args json.RawMessage) (task.Plan, error) {
	var j job
	if err := json.Unmarshal(args, &j); err != nil {
		return task.Plan{}, err
	}
	p := task.Plan{Commit: j.Commit, Locks: j.Locks, Revertible: j.Revertible}
	for i := range j.Steps {
		s := task.Step{Name: fmt.Sprint("step ", i), Do: func(ctx context.Context, r *task.Run) error { return l.do(ctx, r, j, i) }}
		if i < j.Commit {
			s.Undo = func(_ context.Context, r *task.Run) error { return l.undo(r, j, i) }
		} else {
			s.GiveUp = func(_ context.Context, r *task.Run) error { return l.giveUp(r, j, i) }
		}
		p.Steps = append(p.Steps, s)
	}
	return p, nil
}

// do is a step: it leaves something half done on its way.
func (l *life) do(ctx context.Context, r *task.Run, j job, i int) error {
	if !l.point("do:" + j.key(i) + ":begin") {
		return errDead
	}
	l.requireDurable(r.ID(), i, false)
	l.requireAlone(j)
	l.requireReached(r, j, i, false)
	l.w.set(j.key(i), "half")
	if !l.point("do:" + j.key(i) + ":half") {
		return errDead
	}
	switch {
	case i == j.Fail && j.Hopeless:
		return task.Hopeless(errBad)
	case i == j.Fail && (i < j.Commit || j.Always || l.fails(j.key(i), 2)):
		return errBad
	}
	if i == j.Stop-1 && l.e.Stop(context.Background(), r.ID()) == nil {
		l.w.mu.Lock()
		l.w.stopped = true
		l.w.mu.Unlock()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	l.w.set(j.key(i), "done")
	r.Progress(int64(i+1), int64(j.Steps))
	if err := r.Result(j.key(i)); err != nil {
		return err
	}
	if l.owners != nil && i == j.Steps-1 {
		l.owners.leave(j)
	}
	if !l.point("do:" + j.key(i) + ":done") {
		return errDead
	}
	return nil
}

// requireReached requires that a step knows how far its task has come: to itself, if it
// goes ahead, and otherwise to the last one that has begun, or was about to.
func (l *life) requireReached(r *task.Run, j job, i int, back bool) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	if !back {
		require.Equal(l.t, i, r.Reached, j.key(i))
		l.w.begun[j.Name] = max(l.w.begun[j.Name], i+1)
		return
	}
	require.Contains(l.t, []int{l.w.begun[j.Name] - 1, l.w.begun[j.Name]}, r.Reached, "undo of %s", j.key(i))
	require.GreaterOrEqual(l.t, r.Reached, i, "undo of %s", j.key(i))
}

func (l *life) undo(r *task.Run, j job, i int) error {
	if !l.point("undo:" + j.key(i) + ":begin") {
		return errDead
	}
	l.requireReached(r, j, i, true)
	l.requireDurable(r.ID(), i, true)
	l.requireAlone(j)
	if l.w.get()[j.key(i)] != "" {
		l.w.set(j.key(i), "half")
	}
	if !l.point("undo:" + j.key(i) + ":half") {
		return errDead
	}
	if i == j.Fail && l.fails("undo "+j.key(i), 1) {
		return errBad
	}
	l.w.set(j.key(i), "")
	if l.owners != nil && i == 0 {
		l.owners.leave(j)
	}
	if !l.point("undo:" + j.key(i) + ":done") {
		return errDead
	}
	return nil
}

// giveUp leaves a step, and the first time it fails half done.
func (l *life) giveUp(r *task.Run, j job, i int) error {
	if !l.point("give up:" + j.key(i) + ":begin") {
		return errDead
	}
	require.True(l.t, i >= j.Commit && i == j.Fail, "step %d of %+v is given up", i, j)
	l.requireReached(r, j, i, true)
	l.requireDurable(r.ID(), i, true)
	l.requireAlone(j)
	l.w.set(j.key(i), "half")
	if !l.point("give up:" + j.key(i) + ":half") {
		return errDead
	}
	if l.fails("give up "+j.key(i), 1) {
		return errBad
	}
	l.w.set(j.key(i), "given up")
	if l.owners != nil {
		l.owners.leave(j)
	}
	if !l.point("give up:" + j.key(i) + ":done") {
		return errDead
	}
	return nil
}

// fails reports whether something still fails, which it does n times.
func (l *life) fails(what string, n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed[what]++
	return l.failed[what] <= n
}

// requireDurable checks that the step that begins has been announced.
func (l *life) requireDurable(id uuid.UUID, step int, undo bool) {
	records, err := l.store.Load(context.Background())
	if err != nil {
		l.t.Error(err)
		return
	}
	i := slices.IndexFunc(records, func(r task.Record) bool { return r.ID == id })
	if i < 0 || records[i].Step != step || records[i].Undo != undo || records[i].State == task.Queued {
		l.t.Errorf("step %d begins, undo %v, and the store has %+v", step, undo, records)
	}
}

// requireAlone checks that a job has what it locks.
func (l *life) requireAlone(j job) {
	if l.owners == nil {
		return
	}
	if err := l.owners.enter(j); err != nil {
		l.t.Error(err)
	}
}

// A mortalStore is the store of a process: nothing reaches it from a dead one.
type mortalStore life

func (m *mortalStore) Load(ctx context.Context) ([]task.Record, error) { return m.store.Load(ctx) }

func (m *mortalStore) Save(ctx context.Context, r task.Record) error {
	if (*life)(m).isDead() {
		return errDead
	}
	return m.store.Save(ctx, r)
}

func (m *mortalStore) Delete(ctx context.Context, id uuid.UUID) error {
	if (*life)(m).isDead() {
		return errDead
	}
	return m.store.Delete(ctx, id)
}

// recover opens the engine.
func (l *life) recover() []task.Info {
	l.t.Helper()
	found, err := l.e.Recover(l.t.Context())
	require.NoError(l.t, err)
	return found
}

// settle waits until nothing more becomes of any task.
func (l *life) settle() []task.Info {
	for _, i := range l.e.All() {
		l.e.Wait(l.t.Context(), i.ID)
	}
	return l.e.All()
}
