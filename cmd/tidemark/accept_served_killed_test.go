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

// What a server that was killed had reserved is given back when a snapshot is made before
// anybody serves the image again, for its volume is not written to any more: also if the
// host was booted meanwhile, so that there is no redo ring. There are so many tables to
// be read for that that who does not wait for it is noticed.
func TestVDSMServerKilledBelowASnapshot(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	for name, reboot := range map[string]bool{"with its ring": false, "booted since": true} {
		t.Run(name, func(t *testing.T) {
			h := newVDSMHost(t)
			w := newWorld(t, h, h.newDir("a"))
			file := w.killOverManyTables(reboot)
			w.run("createVolume", w.create("i", "b", "a", nil))
			requireClean(t, file)
			_, socket := w.prepare(w.domains[0], w.id("i"))
			requireManyTables(t, socket)
			w.teardown(w.domains[0], w.id("i"))
			requireClean(t, file)
			w.consistent()
		})
	}
}

// Whoever gives back what a server had reserved is killed over that: there is no snapshot,
// and it can be made again.
func TestVDSMSnapshotKilledWhileItGivesBack(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	h := newVDSMHost(t)
	w := &workWorld{world: newWorld(t, h, h.newDir("a")), t: t}
	file := w.killOverManyTables(true)
	stopped := w.planStop(manyTables / 2 * tableCovers)
	task := w.begin("createVolume", w.create("i", "b", "a", nil))
	pid := stopped(task)
	state, err := w.task(task)
	require.NoError(t, err)
	require.Equal(t, "running", state.State, "%+v", state)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	end := w.await(task)
	require.Equal(t, "cleanSuccess", end.Result, "%+v", end)
	require.NotZero(t, end.Code, "%+v", end)
	w.do("clearTask", arguments{"taskID": task})
	require.Len(t, w.volumes(w.domains[0]), 1)
	require.Equal(t, exitLeaks, imageState(t, file).ExitCode)
	w.run("createVolume", w.create("i", "b", "a", nil))
	requireClean(t, file)
	w.consistent()
}

// exitLeaks is what qemu-img check says of an image that has leaks and no other fault.
const exitLeaks = 3

// A disk on which something is written every tableCovers bytes has so many L2 tables.
const (
	manyTables  = 256
	tableCovers = 512 * mib
)

// killOverManyTables makes image i with volume a, of which the server is killed when it
// has written and flushed something of each of many tables. It returns the file of a.
func (w *world) killOverManyTables(reboot bool) (file string) {
	w.t.Helper()
	w.run("createVolume", w.create("i", "a", "", arguments{"size": fmt.Sprint(int64(manyTables * tableCovers))}))
	w.prepare(w.domains[0], w.id("i"))
	pid, socket := w.server()
	c, err := nbd.Dial(w.t.Context(), "unix", socket, nbd.ClientOptions{})
	require.NoError(w.t, err)
	for n := range int64(manyTables) {
		require.NoError(w.t, c.WriteAt(w.t.Context(), bytes.Repeat([]byte{'a'}, 512), n*tableCovers, 0))
	}
	require.NoError(w.t, c.Flush(w.t.Context()))
	require.NoError(w.t, syscall.Kill(pid, syscall.SIGKILL))
	testenv.Eventually(w.t, startLimit, "the server is gone", func() bool { return syscall.Kill(pid, 0) != nil })
	_ = c.Close()
	if reboot {
		require.NoError(w.t, os.RemoveAll(filepath.Join(testRunDir(), "redo")))
	}
	file = w.volumes(w.domains[0])[0].Path
	require.Equal(w.t, exitLeaks, imageState(w.t, file).ExitCode, "it had reserved something")
	return file
}

// requireManyTables requires what killOverManyTables has written.
func requireManyTables(t testing.TB, socket string) {
	t.Helper()
	c, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
	require.NoError(t, err)
	got := make([]byte, 512)
	for n := range int64(manyTables) {
		require.NoError(t, c.ReadAt(t.Context(), got, n*tableCovers, 0))
		require.Equal(t, bytes.Repeat([]byte{'a'}, 512), got, "table %d", n)
	}
	require.NoError(t, c.Close())
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
