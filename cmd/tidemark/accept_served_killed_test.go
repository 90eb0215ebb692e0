//go:build linux

package main_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// What serves an image is killed at points of the tasks that change it: its manager
// lives, notices it, and finishes the task or takes it back. Whoever serves the image
// next has what the guest was answered, flushed or not; nothing is left, and what was
// taken back can be done again.
func TestVDSMServerKilledAtSteps(t *testing.T) {
	testenv.Need(t, "long")
	_, rng := testenv.Seed(t)
	for _, s := range killStories {
		if !s.served {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			d := newDirWorld(t, s)
			all := 2 * (s.steps + 2)
			points := rng.Perm(all)
			if os.Getenv(soakVar) == "" {
				points = points[:4]
			}
			ends := map[string]int{}
			for _, n := range points {
				ends[d.serverDies(s, n)]++
			}
			t.Logf("killed at points %v of %d: %v", points, all, ends)
		})
	}
}

// serverDies lets the story's server be killed at a point, and judges what became of
// its task.
func (d *dirWorld) serverDies(s killStory, n int) (result string) {
	t := d.t
	t.Helper()
	d.restore(s)
	pid, socket := d.server()
	c, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
	require.NoError(t, err)
	require.NoError(t, c.WriteAt(t.Context(), bytes.Repeat([]byte{'x'}, 64<<10), 3*storyStep, 0))
	d.plan(n, pid)
	task := d.begin(s.verb, s.args(d.world))
	end := d.await(task)
	point, err := os.ReadFile(filepath.Join(d.deaths(), "died"))
	require.NoError(t, err, "point %d: the server was not killed: %+v", n, end)
	_ = c.Close()
	what := fmt.Sprintf("killed at %s: %+v", point, end)
	testenv.Eventually(t, startLimit, "the server is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	require.NotContains(t, []string{"", "fail"}, end.Result, what)
	if end.Result != "success" {
		require.NotZero(t, end.Code, what)
	}
	d.do("clearTask", arguments{"taskID": task})
	d.requireStory(s, end.Result == "success", what)
	if end.Result != "success" {
		d.prepare(d.domains[0], d.id("i"))
		d.run(s.verb, s.args(d.world))
		d.requireStory(s, true, what+": done again")
	}
	return end.Result
}

// What a server that was killed had reserved is given back, although a snapshot is made
// before anybody serves the image again, so that its volume is not written to any more.
func TestVDSMServerKilledBelowASnapshot(t *testing.T) {
	testenv.Tool(t, "qemu-io")
	h := newVDSMHost(t)
	w := newWorld(t, h, h.newDir("a"))
	w.volume("i", "a", "", "", nil)
	w.prepare(w.domains[0], w.id("i"))
	pid, socket := w.server()
	c, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
	require.NoError(t, err)
	for n := range int64(4) {
		require.NoError(t, c.WriteAt(t.Context(), bytes.Repeat([]byte{'a'}, 64<<10), n*storyStep, 0))
	}
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	testenv.Eventually(t, startLimit, "the server is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	_ = c.Close()
	file := w.volumes(w.domains[0])[0].Path
	const leaks = 3
	require.Equal(t, leaks, imageState(t, file).ExitCode, "it had reserved something")

	w.run("createVolume", w.create("i", "b", "a", nil))
	w.prepare(w.domains[0], w.id("i"))
	w.teardown(w.domains[0], w.id("i"))
	require.Zero(t, imageState(t, file).ExitCode)
	require.Equal(t, "0/i: a(INTERNAL COW SPARSE 64M: aaaa) b(LEAF COW SPARSE 64M)=aaaa", w.shows())
	w.consistent()
}

// server is what serves image i.
func (w *world) server() (pid int, socket string) {
	w.t.Helper()
	var r struct {
		Info struct {
			Socket string `json:"socket"`
			PID    int    `json:"pid"`
		} `json:"info"`
	}
	require.NoError(w.t, w.ask("prepareImage", w.at(w.domains[0], w.id("i"), ""), &r))
	require.NotZero(w.t, r.Info.PID)
	return r.Info.PID, r.Info.Socket
}

// requireStory requires what the story has before or after it, and what the guest wrote
// meanwhile. Who serves the image again makes that part of it.
func (w *world) requireStory(s killStory, done bool, what string) {
	w.t.Helper()
	w.prepare(w.domains[0], w.id("i"))
	w.teardown(w.domains[0], w.id("i"))
	want, now := withX(s.before), w.shows()
	if done {
		want = withX(s.after)
		if leaf := leafName(s.before); leaf != leafName(s.after) { // it was written before the snapshot
			want = regexp.MustCompile(" "+leaf+`\(INTERNAL[^:]*: [^)]*`).ReplaceAllStringFunc(want, func(v string) string {
				kind, letters, _ := strings.Cut(v, ": ")
				return kind + ": " + xBehind(letters)
			})
		}
	} else {
		want, now = rolledBack(want, now, s.leaves, s.torn)
	}
	require.Equal(w.t, want, now, what)
	w.consistent()
}

// withX is what shows tells of an image when an x was written at the fourth place.
func withX(shows string) string {
	name, letters, _ := strings.Cut(shows, "=")
	return name + "=" + xBehind(letters)
}

func xBehind(letters string) string { return letters + strings.Repeat("\x00", 3-len(letters)) + "x" }

// leafName is the name of the only leaf that shows tells of.
func leafName(shows string) string {
	before, _, _ := strings.Cut(shows, "(LEAF")
	return before[len(before)-1:]
}
