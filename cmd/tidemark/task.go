package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"tidemark/spm/task"
)

// A taskView is what the verbs tell of a task.
type taskView struct {
	UUID    string       `json:"id"`
	Verb    string       `json:"verb"`
	State   string       `json:"state"`
	Step    string       `json:"step,omitempty"`
	Code    int          `json:"code"`
	Message string       `json:"message"`
	Done    decimalBytes `json:"done"`
	Total   decimalBytes `json:"total"`
	Pool    string       `json:"pool"`
	Created int64        `json:"created"` // seconds since 1970
	Ended   int64        `json:"ended,omitempty"`
	Args    string       `json:"args,omitempty"`
	Result  any          `json:"result,omitempty"`
}

func (t taskView) id() string     { return t.UUID }
func (t taskView) keys() []string { return []string{""} }

// over reports whether the task has ended.
func (t taskView) over() bool {
	return slices.Contains([]task.State{task.Finished, task.Failed, task.Cleared}, task.State(t.State))
}

// progress is how far it is, in words.
func (t taskView) progress() string {
	switch {
	case t.State == string(task.Finished):
		return "100 %"
	case t.over() || t.Total <= 0:
		return "-"
	}
	return fmt.Sprintf("%d %%", 100*min(t.Done, t.Total)/t.Total)
}

// tasks are all tasks, the oldest first.
func (s *storage) tasks(ctx context.Context) ([]taskView, error) {
	var r struct {
		Tasks map[string]taskView `json:"tasks"`
	}
	if err := s.ask(ctx, "getAllTasks", nil, &r); err != nil {
		return nil, err
	}
	var all []taskView
	for _, t := range r.Tasks {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b taskView) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.UUID, b.UUID))
	})
	return all, nil
}

// findTask is the task with that UUID, or whose UUID begins so.
func (s *storage) findTask(ctx context.Context, name string) (taskView, error) {
	all, err := s.tasks(ctx)
	if err != nil {
		return taskView{}, err
	}
	return match("task", name, all)
}

// group is a command of which only its verbs do anything.
func group(use, short, long string, verbs string) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long}
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("%s: there is no verb %q: expected %s", use, args[0], verbs)
		}
		return c.Help()
	}
	c.SetFlagErrorFunc(flagError)
	return c
}

// onStorage is what a verb does with the host's storage.
func onStorage(dial storageDialer, do func(c *cobra.Command, s *storage, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		s, err := dial()
		if err != nil {
			return err
		}
		defer s.Close()
		return do(c, s, args)
	}
}

// storageFlag adds --spm to a group.
func storageFlag(c *cobra.Command) storageDialer {
	path := c.PersistentFlags().String("spm", "", "socket of the manager (default $TIDEMARK_SPM)")
	return func() (*storage, error) { return dialStorage(*path) }
}

// newTask is the group of verbs about tasks.
func newTask() *cobra.Command {
	c := group("task", "List, wait for, stop and clear the tasks of the pool manager", `List, wait for, stop and clear the tasks of the pool manager. Every long operation is
one. It is persisted before it acts, and finished or undone by the next manager if
this one dies. It stays in the list until it is cleared.

TASK is a UUID, or how it begins.`, "list, info, wait, stop, revert or clear")
	dial := storageFlag(c)
	c.AddCommand(newTaskList(dial), newTaskInfo(dial), newTaskWait(dial),
		newTaskDo(dial, "stop", "stopTask", "Stop a task that has not ended: it is undone, unless it has gone too far",
			func(_, _ taskView) string { return "stopped" }),
		newTaskDo(dial, "revert", "revertTask", "Undo a task, or set one going again that does not go on: what has gone too far goes on",
			reverted),
		newTaskClear(dial))
	return c
}

func newTaskList(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the tasks", Args: noArguments}
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, _ []string) error {
		all, err := s.tasks(c.Context())
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), notNil(all), func(w io.Writer) error {
			if len(all) == 0 {
				_, err := fmt.Fprintln(w, "no tasks")
				return err
			}
			t := newTable(w, "TASK", "VERB", "STATE", "STEP", "PROGRESS", "BEGUN", "ERROR")
			for _, v := range all {
				t.row(v.UUID, v.Verb, v.State, cmp.Or(v.Step, "-"), v.progress(), shortTime(v.Created), v.failure())
			}
			return t.end()
		})
	})
	return c
}

// failure is why a task has failed, or "-".
func (t taskView) failure() string {
	if t.Code == 0 {
		return "-"
	}
	return fmt.Sprintf("%s (code %d)", t.Message, t.Code)
}

func shortTime(seconds int64) string {
	if seconds == 0 {
		return "-"
	}
	return time.Unix(seconds, 0).Local().Format(time.DateTime)
}

// notNil is a list that is [] in JSON where it is empty.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func newTaskInfo(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "info TASK", Short: "Show one task", Args: operands("TASK"), ValidArgsFunction: completeTasks(dial)}
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, args []string) error {
		v, err := s.findTask(c.Context(), args[0])
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), v, func(w io.Writer) error {
			t := newTable(w)
			t.row("task", v.UUID)
			t.row("verb", v.Verb)
			t.row("state", v.State)
			t.row("step", cmp.Or(v.Step, "-"))
			t.row("progress", v.progress())
			t.row("error", v.failure())
			t.row("pool", v.Pool)
			t.row("begun", shortTime(v.Created))
			t.row("ended", shortTime(v.Ended))
			t.row("arguments", v.Args)
			return t.end()
		})
	})
	return c
}

func newTaskWait(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "wait TASK", Short: "Wait until a task has ended, and clear it if it has succeeded", Args: operands("TASK"),
		Example:           "  tidemark task wait 6f1e",
		ValidArgsFunction: completeTasks(dial)}
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, args []string) error {
		v, err := s.findTask(c.Context(), args[0])
		if err != nil {
			return err
		}
		t, err := s.endTask(c.Context(), v.UUID, terminal(c.ErrOrStderr()))
		if err != nil {
			return err
		}
		v.State, v.Step, v.Done, v.Total, v.Result = t.State, t.Step, t.Done, t.Total, t.Result
		return out.print(c.OutOrStdout(), v, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s: %s\n", v.Verb, v.State)
			return err
		})
	})
	return c
}

// reverted says what revertTask has done to a task, from what it was before and is now.
func reverted(was, is taskView) string {
	switch state := task.State(is.State); {
	case state == task.Failed:
		return "undone"
	case state == task.Aborting, was.State == string(task.Finished):
		return "is being undone"
	case state == task.Finished:
		return "could not be undone any more: it went on, and has finished"
	}
	return "set going again (" + is.State + "): it is undone, or finished if it has gone too far for that"
}

// newTaskDo is a command that asks a verb about a task, and says what has become of it.
func newTaskDo(dial storageDialer, use, verb, short string, done func(was, is taskView) string) *cobra.Command {
	c := &cobra.Command{Use: use + " TASK", Short: short, Args: operands("TASK"), ValidArgsFunction: completeTasks(dial)}
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, args []string) error {
		v, err := s.findTask(c.Context(), args[0])
		if err != nil {
			return err
		}
		if err := s.ask(c.Context(), verb, named{"taskID": v.UUID}, nil); err != nil {
			return err
		}
		is, err := s.findTask(c.Context(), v.UUID)
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), begun{Task: v.UUID, State: is.State}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s: %s\n", v.UUID, done(v, is))
			return err
		})
	})
	return c
}

func newTaskClear(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "clear TASK | --all", Short: "Forget a task that has ended, or all that have", ValidArgsFunction: completeTasks(dial)}
	all := c.Flags().Bool("all", false, "all tasks that have ended")
	c.Args = func(c *cobra.Command, args []string) error {
		if *all {
			return noArguments(c, args)
		}
		return operands("TASK")(c, args)
	}
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, args []string) error {
		clear, err := s.tasks(c.Context())
		if err != nil {
			return err
		}
		if clear = slices.DeleteFunc(clear, func(t taskView) bool { return *all && !t.over() }); !*all {
			one, err := match("task", args[0], clear)
			if err != nil {
				return err
			}
			clear = []taskView{one}
		}
		cleared := []string{}
		var errs []error
		for _, t := range clear {
			if err := s.ask(c.Context(), "clearTask", named{"taskID": t.UUID}, nil); err != nil {
				errs = append(errs, err)
				continue
			}
			cleared = append(cleared, t.UUID)
		}
		return errors.Join(append(errs, out.print(c.OutOrStdout(), cleared, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "cleared %d\n", len(cleared))
			return err
		}))...)
	})
	return c
}
