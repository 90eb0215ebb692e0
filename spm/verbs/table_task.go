package verbs

import (
	"context"

	"github.com/google/uuid"

	"tidemark/spm"
)

var argTask = Arg{Name: "taskID", Kind: kindUUID, Doc: "the task"}

// taskNumbers are the numbers of the verbs about tasks.
var taskNumbers = map[spm.Code]int{spm.CodeWrongState: 410}

// The errors of the verbs that look at a task, and of those that end tasks, or forget
// them: one of a newer version is left alone, and the master that keeps them may have
// vanished.
var (
	taskCodes = []spm.Code{spm.CodeUnknownTask, spm.CodeWrongState}
	endCodes  = with(taskCodes, spm.CodeNotConnected, spm.CodeNotSPM, spm.CodeUnknownDomain, spm.CodeUnsupported)
)

const (
	statusDoc = "taskID, taskState (running, aborting, cleaning, finished), taskResult (success, cleanSuccess: it has failed and was rolled back, cleanFailure: it has failed and some of what it has done stays, or empty), " +
		"code (0, or the error's), message; ours: state, step, done, total (decimal strings, in the unit of the step), result"
	taskDoc = "object: id, verb (the kind of task)"
)

var taskVerbs = []Verb{
	{
		Name: "getTaskStatus", VDSM: true, Doc: "How far a task is.",
		Methods: []Method{{"Task.getStatus", "taskID", "taskStatus"}},
		Args:    argsOf(argTask), Reply: []Member{{"taskStatus", "object: " + statusDoc}}, Codes: taskCodes, As: taskNumbers,
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			st, err := s.TaskStatus(ctx, get[uuid.UUID](a, "taskID"))
			return Reply{"taskStatus": taskStatus(st)}, err
		},
	},
	{
		Name: "getTaskInfo", VDSM: true, Doc: "What a task is.",
		Methods: []Method{{"Task.getInfo", "taskID", "TaskInfo"}},
		Args:    argsOf(argTask), Reply: []Member{{"TaskInfo", taskDoc}}, Codes: taskCodes, As: taskNumbers,
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			i, err := s.TaskInfo(ctx, get[uuid.UUID](a, "taskID"))
			return Reply{"TaskInfo": taskInfo(i)}, err
		},
	},
	{
		Name: "getAllTasksStatuses", VDSM: true, Doc: "How far all tasks are.",
		Methods: []Method{{"Host.getAllTasksStatuses", "", "allTasksStatus"}},
		Reply:   []Member{{"allTasksStatus", "object of each task by its UUID: as in getTaskStatus"}},
		call:    allTasks("allTasksStatus", func(i spm.TaskInfo) map[string]any { return taskStatus(i.TaskStatus) }),
	},
	{
		Name: "getAllTasksInfo", VDSM: true, Doc: "What all tasks are.",
		Methods: []Method{{"Host.getAllTasksInfo", "", "allTasksInfo"}},
		Reply:   []Member{{"allTasksInfo", "object of each task by its UUID: as in getTaskInfo"}},
		call:    allTasks("allTasksInfo", taskInfo),
	},
	{
		Name: "getAllTasks", VDSM: true, Doc: "All that is known of all tasks.",
		Methods: []Method{{"Host.getAllTasks", "", "tasks"}},
		Args:    argsOf(argOptions),
		Reply: []Member{{"tasks", "object of each task by its UUID: id, verb, state (ours: queued, running, aborting, recovering, finished, failed), code, message, " +
			"result, tag; ours: step, done, total, pool, created, ended (seconds since 1970), args (a string with JSON)"}},
		call: allTasks("tasks", taskDetails),
	},
	{
		Name: "stopTask", VDSM: true,
		Doc: "Stop a task that has not ended: it is rolled back, unless it has gone too far for that. One that has, and does not go on (recovering), is given up: " +
			"it has failed, and what it has done so far stays, such as volumes that are illegal; what it had locked can be worked on again.",
		Methods: []Method{{"Task.stop", "taskID", ""}},
		Args:    argsOf(argTask), Codes: endCodes, As: taskNumbers,
		call: ofTask(spm.Storage.StopTask),
	},
	{
		Name: "revertTask", VDSM: true,
		Doc: "Set a task going again that does not go on (recovering): it is rolled back, or finished if it has gone too far for that. Of one that has failed, " +
			"or is being rolled back, it is no error. One that goes on is refused: stop it, or wait. So is one that has finished.",
		Methods: []Method{{"Task.revert", "taskID", ""}},
		Args:    argsOf(argTask), Codes: endCodes, As: taskNumbers,
		call: ofTask(spm.Storage.RevertTask),
	},
	{
		Name: "clearTask", VDSM: true, Doc: "Forget a task that has ended.",
		Methods: []Method{{"Task.clear", "taskID", ""}},
		Args:    argsOf(argTask), Codes: endCodes, As: taskNumbers,
		call: ofTask(spm.Storage.ClearTask),
	},
}

// ofTask is a verb about a task.
func ofTask(do func(spm.Storage, context.Context, uuid.UUID) error) call {
	return func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
		return nothing(do(s, ctx, get[uuid.UUID](a, "taskID")))
	}
}

// allTasks answers with an object of all tasks.
func allTasks(name string, show func(spm.TaskInfo) map[string]any) call {
	return func(ctx context.Context, s spm.Storage, _ args) (Reply, error) {
		tasks, err := s.Tasks(ctx)
		m := make(map[string]any, len(tasks))
		for _, t := range tasks {
			m[t.ID.String()] = show(t)
		}
		return Reply{name: m}, err
	}
}
