// Package task runs long operations that survive the death of their process.
package task

import (
	"context"
	"encoding/json"
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
// what is left is repeated until it has succeeded.
type Plan struct {
	Locks  []Lock
	Steps  []Step
	Commit int
}

// A Step is a part of a task. Do and Undo may find that they have been done, in
// part or as a whole, by a process that died, and Undo that Do never began.
type Step struct {
	Name string
	Do   func(ctx context.Context, r *Run) error
	Undo func(ctx context.Context, r *Run) error // nil: there is nothing to undo
}

// A Lock is a resource that a task needs, shared or for itself, from before its
// first step until it has ended. All that a task needs are taken in the order of
// their names.
type Lock struct {
	Name      string
	Exclusive bool
}

// A Record is a task as it is persisted.
type Record struct {
	Version int             `json:"version"`
	ID      uuid.UUID       `json:"task_uuid"`
	Kind    string          `json:"kind"`
	Args    json.RawMessage `json:"args"`
	State   State           `json:"state"`
	Step    int             `json:"step"` // that has begun, forwards or backwards
	Error   *Failure        `json:"error,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Created time.Time       `json:"created"`
	Ended   time.Time       `json:"ended,omitzero"`
}

// A Failure is an error that survives its process.
type Failure struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// A Store keeps records. Save is atomic and durable.
type Store interface {
	Load(ctx context.Context) ([]Record, error)
	Save(ctx context.Context, r Record) error
	Delete(ctx context.Context, id uuid.UUID) error
}

// State is where a task is in its life.
type State string

// The states.
const (
	Queued     State = "queued" // waits for its resources
	Running    State = "running"
	Aborting   State = "aborting"   // is rolled back
	Recovering State = "recovering" // found by another process than it was begun in
	Finished   State = "finished"   // has done what it should
	Failed     State = "failed"     // has done nothing: its error says why
	Cleared    State = "cleared"    // is forgotten
)

// A Run is a task in progress, as its steps see it.
type Run struct {
	id       uuid.UUID
	progress func(done, total int64)
	result   func(v any) error
}

// ID is the task's.
func (r *Run) ID() uuid.UUID { return r.id }

// Progress tells how much of the step is done.
func (r *Run) Progress(done, total int64) { r.progress(done, total) }

// Result is what the task answers; it is kept with the next record.
func (r *Run) Result(v any) error { return r.result(v) }
