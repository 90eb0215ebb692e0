package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidemark/spm/task"
)

// taskPoll is how often a task is looked at that somebody waits for.
const taskPoll = 50 * time.Millisecond

// waitFor waits until a task has ended, with its progress on progress unless that is
// nil. An error is the task's.
func (s *storage) waitFor(ctx context.Context, id string, progress io.Writer) (taskView, error) {
	var r struct {
		Status taskView `json:"taskStatus"`
	}
	tick := time.NewTicker(taskPoll)
	defer tick.Stop()
	for line := ""; ; {
		r.Status = taskView{}
		if err := s.ask(ctx, "getTaskStatus", named{"taskID": id}, &r); err != nil {
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
			return t, fmt.Errorf("task %s goes on; wait for it with: tidemark task wait %s", id, id)
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
	var r struct {
		UUID string `json:"uuid"`
	}
	if err := s.ask(c.Context(), verb, args, &r); err != nil {
		return err
	}
	b.Task = r.UUID
	if !f.wait {
		return f.out.print(c.OutOrStdout(), b, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "task %s has begun; when it has ended: %s; wait for that with: %s task wait %s\n", b.Task, done, self(), b.Task)
			return err
		})
	}
	t, err := s.waitFor(c.Context(), b.Task, terminal(c.ErrOrStderr()))
	if err != nil {
		return err
	}
	if err := s.ask(c.Context(), "clearTask", named{"taskID": b.Task}, nil); err != nil {
		return err
	}
	b.State, b.Result = t.State, t.Result
	return f.out.print(c.OutOrStdout(), b, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, done)
		return err
	})
}
