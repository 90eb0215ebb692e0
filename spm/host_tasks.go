package spm

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/google/uuid"

	"tidemark/internal/block"
	"tidemark/spm/task"
)

// KindStartSPM is the kind of the task that makes the host the SPM. It is not
// persisted, and known until somebody clears it.
const KindStartSPM = "spmStart"

// startTask persists a task, and returns its id.
func (h *Host) startTask(ctx context.Context, kind string, args any) (uuid.UUID, error) {
	e, err := h.engine()
	if err != nil {
		return uuid.Nil, err
	}
	id, err := e.Start(ctx, kind, args, task.StartOptions{})
	return id, h.taskError(err)
}

// taskError gives an error of the engine its code. Where tasks are kept may have vanished
// with the master.
func (h *Host) taskError(err error) error {
	coded := engineError(err)
	if coded == nil || CodeOf(coded) != CodeInternal {
		return coded
	}
	if gone := h.masterGone(); gone != nil {
		return &Error{Code: gone.Code, err: err, Message: err.Error() + ": " + gone.Message}
	}
	return coded
}

// engine is that of the pool's tasks.
func (h *Host) engine() (*task.Engine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.pool == nil:
		return nil, roleTable[roleStranger][verbUse].refusal("the pool")
	case h.pool.role != roleSPM:
		return nil, roleTable[h.pool.role][verbUse].refusal("pool " + h.pool.meta.id.String())
	case h.pool.engine == nil:
		return nil, errorf(CodeStopping, "the tasks of pool %s are moving: repeat the request", h.pool.meta.id)
	}
	return h.pool.engine, nil
}

// locks are those of the pool's tasks.
func (h *Host) locks() *task.Locks {
	e, err := h.engine()
	if err != nil {
		return new(task.Locks) // what is asked for is refused anyway
	}
	return e.Locks()
}

// engineError gives an error of the engine its code.
func engineError(err error) error {
	var own *Error
	var failed *task.Failure
	code := CodeInternal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return own
	case errors.As(err, &failed):
		code = Code(failed.Code)
	case errors.Is(err, task.ErrTooMany):
		code = CodeTooManyTasks
	case errors.Is(err, task.ErrState):
		code = CodeWrongState
	case errors.Is(err, task.ErrForeign):
		code = CodeUnsupported
	case errors.Is(err, task.ErrUnknown):
		code = CodeUnknownTask
	case errors.Is(err, block.ErrClosed):
		code = CodeStopping
	}
	return &Error{Code: code, Message: err.Error(), err: err}
}

// codeOfTask is the code of the error that a task fails with.
func codeOfTask(err error) int {
	if errors.Is(err, task.ErrStopped) || errors.Is(err, task.ErrReverted) || errors.Is(err, task.ErrInterrupted) {
		return int(CodeAborted)
	}
	return int(CodeOf(err))
}

// TaskStatus is how far a task is.
func (h *Host) TaskStatus(ctx context.Context, id uuid.UUID) (TaskStatus, error) {
	i, err := h.TaskInfo(ctx, id)
	return i.TaskStatus, err
}

// TaskInfo is what a task is.
func (h *Host) TaskInfo(_ context.Context, id uuid.UUID) (TaskInfo, error) {
	h.mu.Lock()
	if s := h.starts[id]; s != nil {
		defer h.mu.Unlock()
		return s.infoLocked(), nil
	}
	h.mu.Unlock()
	e, err := h.engine()
	if err != nil {
		if code := CodeOf(err); code == CodeNotSPM || code == CodeNotConnected {
			return TaskInfo{}, errorf(CodeUnknownTask, "task %s: %v", id, err)
		}
		return TaskInfo{}, err
	}
	i, err := e.Info(id)
	if err != nil {
		return TaskInfo{}, engineError(err)
	}
	return h.taskInfo(i), nil
}

// Tasks are all tasks, the oldest first.
func (h *Host) Tasks(context.Context) ([]TaskInfo, error) {
	h.mu.Lock()
	all := make([]TaskInfo, 0, len(h.starts))
	for _, s := range h.starts {
		all = append(all, s.infoLocked())
	}
	h.mu.Unlock()
	if e, err := h.engine(); err == nil { // without the role there are no others
		for _, i := range e.All() {
			all = append(all, h.taskInfo(i))
		}
	}
	slices.SortStableFunc(all, func(a, b TaskInfo) int {
		return cmp.Or(a.Created.Compare(b.Created), slices.Compare(a.ID[:], b.ID[:]))
	})
	return all, nil
}

// infoLocked describes the task of becoming the SPM.
func (s *spmStart) infoLocked() TaskInfo {
	i := TaskInfo{TaskStatus: TaskStatus{ID: s.id, Kind: KindStartSPM, State: string(task.Running), Step: s.step}, Pool: s.pool,
		Created: s.created, Ended: s.ended}
	switch {
	case s.ended.IsZero():
	case s.err != nil:
		i.State, i.Code, i.Message = string(task.Failed), CodeOf(s.err), s.err.Error()
	default:
		i.State, i.Success = string(task.Finished), true
	}
	return i
}

// taskInfo describes a task of the engine.
func (h *Host) taskInfo(i task.Info) TaskInfo {
	out := TaskInfo{
		TaskStatus: TaskStatus{
			ID: i.ID, Kind: i.Kind, State: string(i.State), Success: i.State == task.Finished, GivenUp: i.GivenUp,
			Done: i.Done, Total: i.Total, Step: i.StepName, Result: i.Result,
		},
		Args: i.Args, Created: i.Created, Ended: i.Ended,
	}
	if f := i.Failure(); f != nil {
		out.Code, out.Message = Code(f.Code), f.Message
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pool != nil {
		out.Pool = h.pool.meta.id
	}
	return out
}

// StopTask ends a task that can be undone yet.
func (h *Host) StopTask(ctx context.Context, id uuid.UUID) error {
	if ended, ok := h.startEnded(id); ok {
		if ended.IsZero() {
			return errorf(CodeWrongState, "task %s: becoming the SPM cannot be stopped: wait for it, and stop the SPM", id)
		}
		return nil
	}
	e, err := h.engine()
	if err != nil {
		return err
	}
	return h.taskError(e.Stop(ctx, id))
}

// RevertTask rolls a task back that has not ended, or has and can be undone.
func (h *Host) RevertTask(ctx context.Context, id uuid.UUID) error {
	if _, ok := h.startEnded(id); ok {
		return errorf(CodeWrongState, "task %s: becoming the SPM is not reverted: stop the SPM", id)
	}
	e, err := h.engine()
	if err != nil {
		return err
	}
	return h.taskError(e.Revert(ctx, id))
}

// ClearTask forgets a task that has ended.
func (h *Host) ClearTask(ctx context.Context, id uuid.UUID) error {
	if ended, ok := h.startEnded(id); ok {
		if ended.IsZero() {
			return errorf(CodeWrongState, "task %s goes on: wait for it", id)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.starts, id)
		return nil
	}
	e, err := h.engine()
	if err != nil {
		return err
	}
	return h.taskError(e.Clear(ctx, id))
}

// startEnded is when a task of becoming the SPM has ended, if it is one.
func (h *Host) startEnded(id uuid.UUID) (ended time.Time, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.starts[id]
	if s == nil {
		return ended, false
	}
	return s.ended, true
}
