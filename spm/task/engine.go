package task

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// Options are an engine's. The zero value works.
type Options struct {
	// Workers is how many tasks are at a step at once; 0: 8.
	Workers int
	// Max is how many tasks are kept, ended ones among them; 0: 500.
	Max int
	// Keep is how long an ended task is kept; 0: a day.
	Keep time.Duration
	// Attempts is how often a step that has to succeed is tried; 0: 5. Pause is
	// the time before the second time, and doubles with each; 0: 100 ms.
	Attempts int
	Pause    time.Duration
	// Passing says which errors pass by themselves, as that of what somebody else uses
	// for a moment; nil: none. A step that has to succeed and fails so is tried for
	// Patience at least; 0: 15 s.
	Passing  func(error) bool
	Patience time.Duration
	// Locks is the table of the resources; nil: a new one. Who does something that
	// is no task takes locks there as well.
	Locks *Locks
	// CodeOf is the code of an error that a task fails with; nil: 0 for all.
	CodeOf func(error) int
	// Notify is told of every change of a task once it is durable, and of progress
	// at most four times a second. Calls about one task are in order. It may call
	// Info and All, and holds up the task that it is told of.
	Notify func(Info)
	// At is told of every moment at which the death of the process is different
	// from its death at another: KIND:STATE:STEP:before and ...:after, around each
	// Save; STATE has "-undo" behind it while the step is undone. For tests.
	At  func(point string)
	Log *slog.Logger
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	o.Workers = cmp.Or(o.Workers, 8)
	o.Max = cmp.Or(o.Max, 500)
	o.Keep = cmp.Or(o.Keep, 24*time.Hour)
	o.Attempts = cmp.Or(o.Attempts, 5)
	o.Pause = cmp.Or(o.Pause, 100*time.Millisecond)
	o.Patience = cmp.Or(o.Patience, 15*time.Second)
	if o.Passing == nil {
		o.Passing = func(error) bool { return false }
	}
	if o.Locks == nil {
		o.Locks = new(Locks)
	}
	if o.CodeOf == nil {
		o.CodeOf = func(error) int { return 0 }
	}
	if o.Notify == nil {
		o.Notify = func(Info) {}
	}
	if o.At == nil {
		o.At = func(string) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// The errors that a task may fail with beside those of its steps, and those of an
// engine beside [ErrState].
var (
	ErrStopped  = errors.New("the task was stopped")
	ErrReverted = errors.New("the task was reverted")
	// ErrInterrupted: the process that ran the task has ended.
	ErrInterrupted = errors.New("the task was interrupted, and has been rolled back")
	// ErrTooMany: as many tasks as are kept have not ended.
	ErrTooMany = errors.New("too many tasks")
	// ErrUnknown: there is no such task.
	ErrUnknown = errors.New("no such task")
	// ErrForeign: a task that this process does not understand.
	ErrForeign = errors.New("not a task that this version knows")
)

// An Engine runs the tasks of a store.
type Engine struct {
	store  Store
	kinds  map[string]Kind
	o      Options
	ctx    context.Context // ends when the engine is closed
	cancel context.CancelFunc
	slots  chan struct{} // one for every worker
	wg     sync.WaitGroup

	mu     sync.Mutex // guards everything below, and the tasks
	tasks  map[uuid.UUID]*task
	opened bool // Recover has loaded the store
	closed bool
}

// A task is a Record in this process. The engine's mutex guards it.
type task struct {
	rec     Record // the last that is durable
	next    Record // decided, and not known to be durable
	plan    Plan
	foreign string // why it is left alone
	hidden  bool   // it is not durable yet
	claim   *claim // nil: it has no locks and waits for none

	driven  bool               // a goroutine drives it
	rest    chan struct{}      // closed when it does not any more
	cancel  context.CancelFunc // of its step, or of its waiting
	stopped bool               // a client has stopped it, which nothing has come of yet
	unsaved *Failure           // why next could not be made durable

	result      json.RawMessage // of a step, since rec
	done, total int64           // progress of the step
	told        time.Time       // when Notify was told of progress last
}

// New returns an engine of a store. It does nothing before Recover. When ctx ends
// that is as if it were closed; Close must be called all the same.
func New(ctx context.Context, s Store, kinds []Kind, o Options) *Engine {
	o = o.withDefaults()
	e := &Engine{store: s, kinds: map[string]Kind{}, o: o, slots: make(chan struct{}, o.Workers), tasks: map[uuid.UUID]*task{}}
	for _, k := range kinds {
		e.kinds[k.Name] = k
	}
	e.ctx, e.cancel = context.WithCancel(ctx)
	return e
}

// Locks is the table of the resources that tasks hold.
func (e *Engine) Locks() *Locks { return e.o.Locks }

// Recover loads what the store has, once, before the first Start. Tasks that were
// queued run, those that had begun go on or are rolled back, in the background:
// these have their locks when it returns, so that whoever comes later waits for
// them. It returns those that have not ended.
func (e *Engine) Recover(ctx context.Context) ([]Info, error) {
	if err := e.usable(false); err != nil {
		return nil, err
	}
	records, err := e.store.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("load tasks: %w", err)
	}
	slices.SortFunc(records, func(a, b Record) int {
		return cmp.Or(a.Created.Compare(b.Created), slices.Compare(a.ID[:], b.ID[:]))
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.opened {
		return nil, errors.New("task engine: closed, or recovered already")
	}
	e.opened = true
	var unended []*task
	for _, r := range records {
		t := e.understand(r)
		e.tasks[r.ID] = t
		if !r.State.Ended() || t.foreign != "" {
			unended = append(unended, t)
		}
	}
	infos := make([]Info, 0, len(unended))
	for _, t := range unended {
		infos = append(infos, t.infoLocked())
	}
	for _, begun := range []bool{true, false} { // those that have begun held their locks
		for _, t := range unended {
			if begun == (t.rec.State != Queued) {
				e.resumeLocked(t)
			}
		}
	}
	return infos, nil
}

// usable returns an error unless the engine has been opened, or has not.
func (e *Engine) usable(opened bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed || e.ctx.Err() != nil:
		return fmt.Errorf("task engine: %w", block.ErrClosed)
	case opened && !e.opened:
		return errors.New("task engine: nothing may be started before Recover has loaded what there is")
	case !opened && e.opened:
		return errors.New("task engine: Recover has been called already")
	}
	return nil
}

// understand makes a task of a record that was found.
func (e *Engine) understand(r Record) *task {
	t := &task{rec: r, next: r, rest: make(chan struct{})}
	close(t.rest)
	k, known := e.kinds[r.Kind]
	switch {
	case r.Version > recordVersion:
		t.foreign = fmt.Sprintf("its record has version %d, and we know %d", r.Version, recordVersion)
		return t
	case r.State.Ended():
		if known {
			t.plan, _ = k.plan(r.Args) // only Revert needs it
		}
		return t
	case !known:
		t.foreign = fmt.Sprintf("its kind %q is unknown", r.Kind)
		return t
	}
	plan, err := k.plan(r.Args)
	switch {
	case err != nil:
		t.foreign = err.Error()
	case r.Step > max(len(plan.Steps)-1, 0):
		t.foreign = fmt.Sprintf("it is at step %d, and its kind %q has %d", r.Step, r.Kind, len(plan.Steps))
	default:
		t.plan = plan
	}
	return t
}

// resumeLocked sets a task going that was found.
func (e *Engine) resumeLocked(t *task) {
	log := e.o.Log.With("task", t.rec.ID, "kind", t.rec.Kind, "state", t.rec.State, "step", t.rec.Step)
	if t.foreign != "" {
		log.Warn("a task is left alone", "why", t.foreign)
		return
	}
	log.Info("a task was found")
	if err := e.moveLocked(t, found, ErrInterrupted); err != nil {
		log.Error("a task is left alone", "err", err)
		return
	}
	e.launchLocked(t)
}

// plan is Build's answer, checked.
func (k Kind) plan(args json.RawMessage) (Plan, error) {
	p, err := k.Build(args)
	switch {
	case err != nil:
		return Plan{}, fmt.Errorf("arguments of %s: %w", k.Name, err)
	case p.Commit < 0 || p.Commit > len(p.Steps):
		return Plan{}, fmt.Errorf("%s: %d of %d steps can be undone: a bug", k.Name, p.Commit, len(p.Steps))
	case p.Revertible && p.Commit != len(p.Steps):
		return Plan{}, fmt.Errorf("%s: it is revertible, and %d of %d steps can be undone: a bug", k.Name, p.Commit, len(p.Steps))
	}
	return p, nil
}

func (t *task) shape() shape {
	return shape{len(t.plan.Steps), t.plan.Commit, t.plan.Revertible}
}

// Close stops the engine as a crash would stop its tasks, but it waits for the
// steps in progress, which are cancelled. The records stay as they are, and what
// they lock is free again.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.cancel()
	e.wg.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, t := range e.tasks {
		if t.claim != nil {
			e.o.Locks.leave(t.claim)
			t.claim = nil
		}
	}
}
