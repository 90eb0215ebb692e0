//go:build linux

package main_test

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// The manager kills itself before and after every record that a task of every kind
// writes. The next one says what became of the task, which has happened or has not; each
// volume that is legal shows what it did before or what it should afterwards; the domains
// are consistent and nothing is left; and what was rolled back can be done again.
func TestVDSMKilledAtEveryStep(t *testing.T) {
	testenv.Need(t, "long")
	testenv.Tool(t, "qemu-io")
	var deaths, again atomic.Int64
	t.Run("all", func(t *testing.T) {
		for _, s := range killStories {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				d := newDirWorld(t, s)
				outcomes := d.sweep(s)
				deaths.Add(int64(len(outcomes)))
				again.Add(int64(d.sweepRecovery(s, outcomes)))
			})
		}
	})
	t.Logf("killed at %d points of %d operations, and at %d points of what the next one did about that", deaths.Load(), len(killStories), again.Load())
}

// A dirWorld is a world in two directories, in which one story is told again and again:
// the directories are brought back to what they were. They are in memory where there is a
// place for that: a process that dies leaves the same there as on a disk, and no sync has to
// write what has just been brought back.
type dirWorld struct {
	*world
	t *testing.T
}

func newDirWorld(t *testing.T, s killStory) *dirWorld {
	h := newVDSMHostIn(t, testRunDir())
	d := &dirWorld{world: newWorld(t, h, h.newDir("a"), h.newDir("b")), t: t}
	s.prepare(d.world)
	require.Equal(t, s.before, d.shows())
	d.consistent()
	d.proc.Kill()
	d.copy(d.root, d.root+".saved")
	d.copy(d.state(), d.state()+".saved")
	return d
}

func (d *dirWorld) state() string { return filepath.Join(d.dir, "state") }

func (d *dirWorld) copy(from, to string) {
	d.t.Helper()
	require.NoError(d.t, os.RemoveAll(to))
	testenv.Run(d.t, "cp", "-a", "--sparse=always", from, to)
}

// restore brings back what the story begins with.
func (d *dirWorld) restore(s killStory) {
	d.t.Helper()
	d.proc.Kill()
	d.copy(d.root+".saved", d.root)
	d.copy(d.state()+".saved", d.state())
	d.start()
	if s.served {
		d.prepare(d.domains[0], d.id("i"))
	}
}

// sweep tells a story until the manager does not die any more, and returns what became
// of it each time.
func (d *dirWorld) sweep(s killStory) (outcomes []outcome) {
	for n := 0; ; n++ {
		d.restore(s)
		o := d.die(s, n)
		if o.point == "" {
			o.is = "success"
			d.judge(s, &o)
			break
		}
		d.start()
		d.judge(s, &o)
		outcomes = append(outcomes, o)
	}
	require.Len(d.t, outcomes, 2*(s.steps+2), "before and after each record: %v", outcomes)
	requireOneTurn(d.t, outcomes)
	return outcomes
}

// An outcome is where the manager died, and what became of the task.
type outcome struct {
	point string // "": it did not die
	task  string // "" if nobody was told
	is    string // nothing, success or cleanSuccess
}

func (o outcome) String() string { return o.point + ": " + o.is }

// requireOneTurn requires that a task which has begun is rolled back up to some point,
// and is finished from there on.
func requireOneTurn(t testing.TB, all []outcome) {
	t.Helper()
	turns, last := "", ""
	for _, o := range all {
		if o.is != last {
			turns, last = turns+" "+o.is, o.is
		}
	}
	require.Contains(t, []string{" nothing success cleanSuccess success"}, turns, "%v", all)
}

// plan lets the manager die at the nth point of tasks from now on, or kill a process
// then.
func (w *world) plan(n int, victim ...any) {
	w.t.Helper()
	_ = os.Remove(filepath.Join(w.deaths(), "died"))
	file := filepath.Join(w.deaths(), "plan")
	require.NoError(w.t, os.WriteFile(file+".new", []byte(fmt.Sprintln(append([]any{n}, victim...)...)), 0o600))
	require.NoError(w.t, os.Rename(file+".new", file))
}

// died is where it has, after the manager has ended or the task is over.
func (w *world) died(task string) (point string) {
	w.t.Helper()
	testenv.Eventually(w.t, startLimit, "the manager dies, or the task ends", func() bool {
		select {
		case <-w.proc.Done():
			text, err := os.ReadFile(filepath.Join(w.deaths(), "died"))
			require.NoError(w.t, err, "the manager has ended, and was not killed: %s", w.proc.Output())
			point = string(text)
			return true
		default:
		}
		return w.over(task)
	})
	if point == "" {
		require.NoError(w.t, os.Remove(filepath.Join(w.deaths(), "plan")))
	}
	return point
}

// over reports whether a task has ended, or the only one if its id is not known: nobody was
// told, because the manager died before it had answered.
func (w *world) over(task string) bool {
	if task != "" {
		s, err := w.task(task)
		return err == nil && s.State == "finished"
	}
	var r struct {
		Tasks map[string]taskState `json:"allTasksStatus"`
	}
	if w.ask("getAllTasksStatuses", nil, &r) != nil {
		return false
	}
	over := false
	for _, s := range r.Tasks {
		over = s.State == "finished"
	}
	return over
}

// die begins the story's task, of which the manager dies at a point.
func (w *world) die(s killStory, n int) (o outcome) {
	w.t.Helper()
	w.plan(n)
	var r struct {
		Task string `json:"uuid"`
	}
	err := w.ask(s.verb, s.args(w), &r)
	if err != nil {
		testenv.Eventually(w.t, startLimit, fmt.Sprintf("the manager that has not answered dies (%v)", err), func() bool {
			select {
			case <-w.proc.Done():
				return true
			default:
				return false
			}
		})
	}
	o.task, o.point = r.Task, w.died(r.Task)
	return o
}

// judge looks at what the next manager has made of a death.
func (w *world) judge(s killStory, o *outcome) {
	w.t.Helper()
	tasks := w.tasks()
	if len(tasks) == 0 {
		require.Empty(w.t, o.task, "%s: the task is not known any more", o)
		o.is = "nothing"
	} else {
		w.judgeTask(s, o, tasks)
	}
	if s.served {
		w.teardown(w.domains[0], w.id("i"))
	}
	want, now := s.after, w.shows()
	if o.is != "success" {
		want = s.before
	}
	if o.is == "cleanSuccess" {
		want, now = rolledBack(want, now, s.leaves, s.torn)
	}
	require.Equal(w.t, want, now, "%s", o)
	w.consistent()
	if o.is == "success" {
		return
	}
	if s.served {
		w.prepare(w.domains[0], w.id("i"))
	}
	w.run(s.verb, s.args(w))
	if s.served {
		w.teardown(w.domains[0], w.id("i"))
	}
	require.Equal(w.t, s.after, w.shows(), "%s: done again", o)
	w.consistent()
}

// judgeTask waits for the end of the task that was found, and forgets it.
func (w *world) judgeTask(s killStory, o *outcome, tasks map[string]string) {
	w.t.Helper()
	require.Len(w.t, tasks, 1, "%s", o)
	for id, kind := range tasks {
		require.Equal(w.t, s.verb, strings.TrimSuffix(kind, ".live"), "%s", o)
		if o.task != "" {
			require.Equal(w.t, o.task, id)
		}
		o.task = id
	}
	end := w.await(o.task)
	o.is = end.Result
	if o.is == "cleanSuccess" {
		require.Contains(w.t, end.Message, "interrupted", "%s", o)
		require.NotZero(w.t, end.Code, "%s", o)
	}
	w.requireTasks(o.task)
	w.do("clearTask", arguments{"taskID": o.task})
}

// sweepRecovery kills the manager that finds a task which it rolls back, and one that
// finds a task which it finishes, at each point of that.
func (d *dirWorld) sweepRecovery(s killStory, outcomes []outcome) (deaths int) {
	back := len(outcomes) - 1
	for outcomes[back].is != "cleanSuccess" {
		back--
	}
	for _, first := range []int{back, back + 1} {
		for n := 0; ; n++ {
			d.restore(s)
			o := d.die(s, first)
			require.NotEmpty(d.t, o.point)
			d.plan(n)
			d.launch()
			second := d.died(o.task)
			if second == "" {
				d.judge(s, &o)
				break
			}
			deaths++
			o.point += ", and then " + second
			d.start()
			d.judge(s, &o)
			require.Equal(d.t, outcomes[first].is, o.is, "%s", o)
		}
	}
	return deaths
}

// The same on volume groups, at ten points of different operations.
func TestVDSMGroupKilled(t *testing.T) {
	testenv.Need(t, "long")
	testenv.Tool(t, "qemu-io")
	_, rng := testenv.Seed(t)
	first, second := newGroup(t, 1, 4*gib), newGroup(t, 1, 4*gib)
	w := newWorld(t, newVDSMHost(t, slices.Concat(first.paths(), second.paths())...), first, second)
	const samples = 10
	var told []string
	for _, i := range rng.Perm(len(killStories)) {
		s := killStories[i]
		if s.dirOnly {
			continue
		}
		w.forget()
		s.prepare(w)
		require.Equal(t, s.before, w.shows())
		if s.served {
			w.prepare(w.domains[0], w.id("i"))
		}
		o := w.die(s, rng.IntN(2*(s.steps+2)))
		require.NotEmpty(t, o.point, s.name)
		w.start()
		w.judge(s, &o)
		w.clear()
		told = append(told, s.name+": "+o.String())
		if len(told) == samples {
			break
		}
	}
	t.Logf("killed at %d points:\n%s", len(told), strings.Join(told, "\n"))
}

// clear removes all images.
func (w *world) clear() {
	w.t.Helper()
	for _, domain := range w.domains {
		var images []string
		for _, v := range w.volumes(domain) {
			if !slices.Contains(images, v.Image) {
				images = append(images, v.Image)
			}
		}
		slices.SortFunc(images, func(a, b string) int { // nobody is based on what goes first
			return cmp.Compare(w.names[a], w.names[b])
		})
		for _, image := range images {
			w.run("deleteImage", arguments{"sdUUID": domain, "spUUID": w.pool, "imgUUID": image})
		}
	}
	require.Empty(w.t, w.shows())
	w.consistent()
}
