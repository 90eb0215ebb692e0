package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidemark/spm"
	"tidemark/spm/task"
)

// taskPoll is how often a task is looked at that somebody waits for.
const taskPoll = 50 * time.Millisecond

// lingerLimit is how much longer than until an interrupt the manager may take to say what
// has become of a task, so that who is interrupted is told.
const lingerLimit = 2 * time.Second

// lingering is ctx, and lingerLimit longer.
func lingering(ctx context.Context) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(lingerLimit, func() { cancel(context.Cause(ctx)) })
	})
	return longer, func() {
		stop()
		cancel(nil)
	}
}

// beginTask asks a verb that begins a task, and returns that.
func (s *storage) beginTask(ctx context.Context, verb string, args named) (id string, err error) {
	var r struct {
		UUID string `json:"uuid"`
	}
	longer, cancel := lingering(ctx)
	defer cancel()
	if err = s.ask(longer, verb, args, &r); err != nil && longer.Err() != nil {
		err = fmt.Errorf("%w: whether its task has begun is not known; look for it with: %s task list", err, self())
	}
	return r.UUID, err
}

// endTask waits until a task has ended, as waitFor does, and clears it.
func (s *storage) endTask(ctx context.Context, id string, progress io.Writer) (taskView, error) {
	t, err := s.waitFor(ctx, id, progress)
	if err != nil {
		return t, err
	}
	longer, cancel := lingering(ctx)
	defer cancel()
	if err := s.ask(longer, "clearTask", named{"taskID": id}, nil); err != nil {
		return t, fmt.Errorf("task %s has ended (%s), and is not cleared: %w; clear it with: %s task clear %s", id, t.State, err, self(), id)
	}
	return t, nil
}

// waitFor waits until a task has ended, with its progress on progress unless that is
// nil. An error is the task's, or says how to go on.
func (s *storage) waitFor(ctx context.Context, id string, progress io.Writer) (taskView, error) {
	var r struct {
		Status taskView `json:"taskStatus"`
	}
	tick := time.NewTicker(taskPoll)
	defer tick.Stop()
	line := ""
	interrupted := func() (taskView, error) {
		if progress != nil {
			drawProgress(progress, line, taskView{State: string(task.Finished)})
		}
		return r.Status, fmt.Errorf("task %s goes on; wait for it with: %s task wait %s", id, self(), id)
	}
	for {
		r.Status = taskView{}
		err := s.ask(ctx, "getTaskStatus", named{"taskID": id}, &r)
		switch {
		case err != nil && ctx.Err() != nil:
			return interrupted()
		case spm.CodeOf(err) == spm.CodeStopping:
			return taskView{}, fmt.Errorf("task %s: %w; then wait for it with: %s task wait %s", id, err, self(), id)
		case err != nil:
			return taskView{}, err
		}
		t := r.Status
		t.UUID = id
		if progress != nil {
			line = drawProgress(progress, line, t)
		}
		switch {
		case t.State == string(task.Failed):
			return t, fmt.Errorf("task %s has failed, and what it had done is undone: %s (code %d)", id, t.Message, t.Code)
		case t.over():
			return t, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return interrupted()
		}
	}
}

// drawProgress writes how far a task is over the line that was there, and returns
// what is there now; nothing, once it has ended.
func drawProgress(w io.Writer, was string, t taskView) string {
	now := ""
	if !t.over() {
		now = strings.TrimSpace(fmt.Sprintf("%s %s: %s", t.State, t.Step, t.progress()))
	}
	if now != was {
		fmt.Fprintf(w, "\r%-*s", len(was), now) //nolint:errcheck // it is only for the eye
		if now == "" {
			fmt.Fprint(w, "\r") //nolint:errcheck // as above
		}
	}
	return now
}

// terminal is w if it is one.
func terminal(w io.Writer) io.Writer {
	f, ok := w.(*os.File)
	if !ok {
		return nil
	}
	if st, err := f.Stat(); err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return nil
	}
	return w
}

// A begun is a task that a command has begun, and what is new with it.
type begun struct {
	Task   string `json:"task_uuid"`
	Image  string `json:"image_uuid,omitempty"`
	Volume string `json:"volume_uuid,omitempty"`
	State  string `json:"state,omitempty"` // if it was waited for, or changed
	Result any    `json:"result,omitempty"`
}

// taskFlags are the options of a command that begins a task.
type taskFlags struct {
	wait bool
	out  *outputFormat
}

func addTaskFlags(c *cobra.Command) *taskFlags {
	f := &taskFlags{out: outputFlag(c)}
	c.Flags().BoolVar(&f.wait, "wait", false, "until the task has ended, with its progress on a terminal; then the task is cleared")
	return f
}

// begin asks a verb that begins a task, and waits for it if that is wanted. done
// says what the task has done, or is to do.
func (f *taskFlags) begin(c *cobra.Command, s *storage, verb string, args named, b begun, done string) error {
	var err error
	if b.Task, err = s.beginTask(c.Context(), verb, args); err != nil {
		return err
	}
	if !f.wait {
		return f.out.print(c.OutOrStdout(), b, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "task %s has begun; when it has ended: %s; wait for that with: %s task wait %s\n", b.Task, done, self(), b.Task)
			return err
		})
	}
	t, err := s.endTask(c.Context(), b.Task, terminal(c.ErrOrStderr()))
	if err != nil {
		return err
	}
	b.State, b.Result = t.State, t.Result
	return f.out.print(c.OutOrStdout(), b, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, done)
		return err
	})
}
