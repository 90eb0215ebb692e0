package task

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
)

// A Kind is a sort of operation. Its name is persisted, so it never changes.
type Kind struct {
	Name string
	// Build makes the plan of a task from its arguments. It is asked again by the
	// process that recovers the task, and must answer the same.
	Build func(args json.RawMessage) (Plan, error)
}

// A Plan is what a task does. Before step n begins, "n begins" is durable.
//
// Commit is how many steps can be undone. A task that dies, is stopped or fails
// while it is at one of them is rolled back: Undo of that step and of all before
// it, the last one first. Once they have all ended the task goes forward only:
// what is left is repeated until it has succeeded, or the task is given up.
type Plan struct {
	Locks  []Lock
	Steps  []Step
	Commit int
	// Revertible says that the task can be undone as a whole after it has finished,
	// until it is cleared ([Engine.Revert]). Commit is the number of steps then.
	Revertible bool
}

// A Step is a part of a task. Do and Undo may find that they have been done, in
// part or as a whole, by a process that died, and Undo that Do never began.
type Step struct {
	Name string
	Do   func(ctx context.Context, r *Run) error
	Undo func(ctx context.Context, r *Run) error // nil: there is nothing to undo
	// GiveUp is for a step that cannot be undone, of a task that is given up there: it
	// makes the best of what is half done, so that what is said of it is so, and others
	// can work on it. It may find what Undo may. nil: there is nothing to do.
	GiveUp func(ctx context.Context, r *Run) error
}

// Hopeless is an error of a step that no repetition avoids: behind the commit point it
// ends the task ([Step].GiveUp).
func Hopeless(err error) error { return hopelessError{err} }

type hopelessError struct{ error }

func (e hopelessError) Unwrap() error { return e.error }

// IsHopeless reports whether an error is, or wraps, one of Hopeless.
func IsHopeless(err error) bool { return errors.As(err, new(hopelessError)) }

// A Lock is a resource that a task needs, shared or for itself, from before its
// first step until it has ended. All that a task needs are taken in the order of
// their names.
type Lock struct {
	Name      string
	Exclusive bool
}

// A Record is a task as it is persisted. Error is why it is rolled back, or given up.
type Record struct {
	Version int             `json:"version"`
	ID      uuid.UUID       `json:"task_uuid"`
	Kind    string          `json:"kind"`
	Args    json.RawMessage `json:"args"`
	State   State           `json:"state"`
	Step    int             `json:"step"`               // that has begun, forwards or backwards
	Reached int             `json:"reached,omitempty"`  // the last step that has begun forwards; an older version kept none
	Undo    bool            `json:"undo,omitempty"`     // backwards; where it cannot be undone, it is given up
	GivenUp bool            `json:"given_up,omitempty"` // has failed behind the commit point: what it has done stays
	Error   *Failure        `json:"error,omitempty"`
	Blocked *Failure        `json:"blocked,omitempty"` // why a recovering task does not go on
	Result  json.RawMessage `json:"result,omitempty"`
	Created time.Time       `json:"created"`
	Ended   time.Time       `json:"ended,omitzero"`
}

// A Failure is an error that survives its process.
type Failure struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// Error makes a Failure an error.
func (f *Failure) Error() string { return f.Message }

// A Store keeps records. It is safe for concurrent use.
type Store interface {
	// Load returns all records; what it returns is durable. Something that is not a
	// record is reported in the log and is no error.
	Load(ctx context.Context) ([]Record, error)
	// Save is atomic, and durable when it returns. After an error the store holds
	// the old record or the new one, and Save may be repeated.
	Save(ctx context.Context, r Record) error
	// Delete is durable when it returns. What is not there is no error.
	Delete(ctx context.Context, id uuid.UUID) error
}

// State is where a task is in its life.
type State string

// The states.
const (
	Queued     State = "queued" // waits for its resources
	Running    State = "running"
	Aborting   State = "aborting"   // is rolled back
	Recovering State = "recovering" // found by another process than it was begun in, or blocked
	Finished   State = "finished"   // has done what it should
	Failed     State = "failed"     // has done nothing, or was given up: its error says why
	Cleared    State = "cleared"    // is forgotten
)

// A Run is a task in progress, as its steps see it.
type Run struct {
	// Reached is the number of the last step that has begun, also for who undoes an
	// earlier one: what comes behind it has done nothing. It is 0 for a task that an
	// older version has begun.
	Reached int

	id       uuid.UUID
	progress func(done, total int64)
	result   func(v any) error
}

// ID is the task's.
func (r *Run) ID() uuid.UUID { return r.id }

// Progress tells how much of the step is done.
func (r *Run) Progress(done, total int64) { r.progress(done, total) }

// Result is what the task answers; it is kept with the next record. A task that
// fails has none.
func (r *Run) Result(v any) error { return r.result(v) }
