package storagetest

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"tidemark/spm"
	"tidemark/spm/task"
)

// begin begins a task, which ends with do. The caller has the lock.
func (f *Fake) begin(kind string, pool uuid.UUID, do func()) uuid.UUID {
	t := &spm.TaskInfo{Pool: pool, Created: f.now(), Args: []byte("{}")}
	t.ID, t.Kind, t.State, t.Step, t.Total = uuid.New(), kind, string(task.Running), "work", 100
	f.tasks[t.ID] = t
	f.tell(spm.Event{Kind: spm.EventTask, TaskUUID: t.ID.String(), State: t.State})
	end := func() {
		if t.State != string(task.Running) {
			return
		}
		do()
		f.end(t, task.Finished)
	}
	hold := f.Hold
	if hold == nil {
		end()
		return t.ID
	}
	go func() {
		hold(kind)
		defer f.lock()()
		end()
	}()
	return t.ID
}

func (f *Fake) end(t *spm.TaskInfo, state task.State) {
	t.State, t.Success, t.Ended = string(state), state == task.Finished, f.now()
	if t.Success {
		t.Done = t.Total
	}
	f.tell(spm.Event{Kind: spm.EventTask, TaskUUID: t.ID.String(), State: t.State})
}

// Progress says how far all running tasks are, of 100.
func (f *Fake) Progress(done int64) {
	defer f.lock()()
	for _, t := range f.tasks {
		if t.Ended.IsZero() {
			t.Done = done
		}
	}
}

func (f *Fake) task(id uuid.UUID) (*spm.TaskInfo, error) {
	if t := f.tasks[id]; t != nil && (t.Kind == kindStart || f.pool != nil && f.pool.spm) {
		return t, nil
	}
	return nil, fail(spm.CodeUnknownTask, "there is no task %s", id)
}

// TaskStatus is a task's state.
func (f *Fake) TaskStatus(_ context.Context, id uuid.UUID) (spm.TaskStatus, error) {
	defer f.lock()()
	t, err := f.task(id)
	if err != nil {
		return spm.TaskStatus{}, err
	}
	return t.TaskStatus, nil
}

// TaskInfo is a task.
func (f *Fake) TaskInfo(_ context.Context, id uuid.UUID) (spm.TaskInfo, error) {
	defer f.lock()()
	t, err := f.task(id)
	if err != nil {
		return spm.TaskInfo{}, err
	}
	return *t, nil
}

// Tasks are all tasks.
func (f *Fake) Tasks(context.Context) ([]spm.TaskInfo, error) {
	defer f.lock()()
	out := []spm.TaskInfo{}
	for _, t := range sorted(f.tasks) {
		out = append(out, *t)
	}
	return out, nil
}

// changing returns a task of a pool that this host manages. The caller has the lock.
func (f *Fake) changing(id uuid.UUID) (*spm.TaskInfo, error) {
	if f.pool == nil {
		return nil, fail(spm.CodeNotConnected, "no pool is connected")
	}
	if t := f.tasks[id]; t == nil || t.Kind != kindStart {
		if _, err := f.managed(f.pool.id); err != nil {
			return nil, err
		}
	}
	return f.task(id)
}

// kindStart are the tasks that go on without the role.
const kindStart = "spmStart"

// StopTask ends a running task.
func (f *Fake) StopTask(_ context.Context, id uuid.UUID) error {
	defer f.lock()()
	t, err := f.changing(id)
	switch {
	case err != nil:
		return err
	case !t.Ended.IsZero():
		return fail(spm.CodeWrongState, "task %s has ended", id)
	}
	t.Code, t.Message = spm.CodeAborted, "stopped"
	f.end(t, task.Failed)
	return nil
}

// RevertTask has nothing to do: here no task is blocked, and of one that has failed all is
// undone.
func (f *Fake) RevertTask(_ context.Context, id uuid.UUID) error {
	defer f.lock()()
	t, err := f.changing(id)
	switch {
	case err != nil:
		return err
	case t.Ended.IsZero():
		return fail(spm.CodeWrongState, "task %s has not ended: stop it, or wait", id)
	case t.Success:
		return fail(spm.CodeWrongState, "task %s has ended, and cannot be undone as a whole", id)
	}
	return nil
}

// ClearTask forgets a task that has ended.
func (f *Fake) ClearTask(_ context.Context, id uuid.UUID) error {
	defer f.lock()()
	t, err := f.changing(id)
	switch {
	case err != nil:
		return err
	case t.Ended.IsZero():
		return fail(spm.CodeWrongState, "task %s has not ended", id)
	}
	delete(f.tasks, id)
	return nil
}

// Tell adds an event.
func (f *Fake) Tell(e spm.Event) {
	defer f.lock()()
	f.tell(e)
}

func (f *Fake) tell(e spm.Event) {
	e.Number, e.Time = int64(len(f.events)+1), f.now()
	f.events = append(f.events, e)
	if f.more != nil {
		close(f.more)
		f.more = nil
	}
}

// WatchStorage returns the events after a number, or waits for the next.
func (f *Fake) WatchStorage(ctx context.Context, after int64) ([]spm.Event, error) {
	for {
		events, more := f.after(after)
		if len(events) > 0 {
			return events, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (f *Fake) after(number int64) ([]spm.Event, <-chan struct{}) {
	defer f.lock()()
	if number > int64(len(f.events)) {
		number = 0
	}
	if f.more == nil {
		f.more = make(chan struct{})
	}
	return slices.Clone(f.events[number:]), f.more
}
