//go:build linux

package main_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// What works on volumes is killed in the middle: the worker of a copy, a move and a
// merge, and the server of an image that merges its leaf. The manager lives, another
// image is served all the time, the task says what has happened and is taken back,
// nothing is left of it, and it can be done again.
func TestVDSMWorkerKilled(t *testing.T) {
	testenv.Need(t, "long")
	_, rng := testenv.Seed(t)
	for _, s := range workStories {
		own := testenv.Rand(rng.Uint64())
		t.Run(s.name, func(t *testing.T) {
			t.Parallel() // most of it waits for syncs and for processes
			w := newWorkWorld(t, own, s)
			before := w.shows()
			killed := 0
			for _, done := range []int64{0, 10 * mib, 30 * mib} {
				if !w.interrupt(done) {
					break
				}
				killed++
				w.requireBefore(before, done)
			}
			require.Positive(t, killed)
			if !s.served {
				require.Equal(t, 3, killed)
			}
			w.complete(killed == 3)
		})
	}
}

// workData is how much a story's job copies: enough to be caught in the middle.
const workData = 40 * mib

// A workStory is a task, and where its result is.
type workStory struct {
	name, verb string
	args       func(w *world) arguments
	served     bool   // image i, by the process that does the job
	torn       string // which volumes may be illegal when it was taken back
	domain     int    // where the result is
	image      string
	volume     string
}

var workStories = []workStory{
	{
		name: "copy", verb: "copyImage", args: func(w *world) arguments {
			return arguments{"sdUUID": w.domains[0], "spUUID": w.pool, "vmUUID": "", "srcImgUUID": w.id("i"), "srcVolUUID": w.id("b"),
				"dstImgUUID": w.id("j"), "dstVolUUID": w.id("d"), "volType": "LEAF", "dstSdUUID": w.domains[1]}
		},
		domain: 1, image: "j", volume: "d",
	},
	{name: "move", verb: "moveImage", args: (*world).move, domain: 1, image: "i", volume: "b"},
	{
		name: "merge", verb: "mergeSnapshots", args: func(w *world) arguments { return w.merge("a", "b") },
		torn: "a", image: "i", volume: "a",
	},
	{
		name: "merge of a served image", verb: "mergeSnapshots", args: func(w *world) arguments { return w.merge("a", "b") },
		torn: "a", image: "i", volume: "a", served: true,
	},
}

// A workWorld has image i, with volume b on a and data in b, and image k, which is
// served all the time.
type workWorld struct {
	*world
	t       *testing.T
	s       workStory
	content []byte
}

func newWorkWorld(t *testing.T, rng *rand.Rand, s workStory) *workWorld {
	h := newVDSMHost(t)
	w := &workWorld{world: newWorld(t, h, h.newDir("a"), h.newDir("b")), t: t, s: s, content: make([]byte, workData)}
	for i := range w.content {
		w.content[i] = byte(rng.Uint32())
	}
	w.volume("k", "z", "", "", nil)
	w.volume("i", "a", "", "aaaa", nil)
	w.volume("i", "b", "a", "", nil)
	_, socket := w.prepare(w.domains[0], w.id("i"))
	c := w.dial(socket)
	require.NoError(t, c.WriteAt(t.Context(), w.content, 8*mib, 0))
	require.NoError(t, c.Close())
	w.teardown(w.domains[0], w.id("i"))
	return w
}

func (w *workWorld) dial(socket string) *nbd.Client {
	w.t.Helper()
	c, err := nbd.Dial(context.Background(), "unix", socket, nbd.ClientOptions{})
	require.NoError(w.t, err)
	return c
}

// interrupt begins the task, and lets who does its job stop when so many bytes are done:
// the manager answers and knows that the task is running, and image k is served. Then it
// is killed. A server that was too fast is not.
func (w *workWorld) interrupt(done int64) bool {
	t := w.t
	t.Helper()
	goOn := w.load()
	defer goOn.end()
	stop := w.planStop
	if w.s.served {
		stop = w.stopServer
	}
	stopped := stop(done)
	task := w.begin(w.s.verb, w.s.args(w.world))
	pid := stopped(task)
	state, err := w.task(task)
	require.NoError(t, err)
	if w.s.served && state.State == "finished" {
		require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
		w.do("clearTask", arguments{"taskID": task})
		w.teardown(w.domains[0], w.id("i"))
		return false
	}
	require.Equal(t, "running", state.State, "%d bytes: %+v", done, state)
	goOn.some(t)
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	end := w.await(task)
	if w.s.served && end.Result == "success" { // it was stopped when all was decided
		w.do("clearTask", arguments{"taskID": task})
		return false
	}
	require.Equal(t, "cleanSuccess", end.Result, "%+v", end)
	require.NotZero(t, end.Code, "%+v", end)
	require.NotEmpty(t, end.Message)
	goOn.some(t)
	w.do("clearTask", arguments{"taskID": task})
	require.Zero(t, w.worker(), "a worker is left")
	w.prepare(w.domains[0], w.id("i")) // who opens it next gives back what was reserved
	w.teardown(w.domains[0], w.id("i"))
	return true
}

// planStop lets the next worker stop when it is so far, and returns who waits for it.
func (w *workWorld) planStop(done int64) func(task string) int {
	w.t.Helper()
	file := filepath.Join(w.deaths(), "stop")
	require.NoError(w.t, os.WriteFile(file+".new", []byte(fmt.Sprint(done)), 0o600))
	require.NoError(w.t, os.Rename(file+".new", file))
	return func(string) (pid int) {
		w.t.Helper()
		testenv.Eventually(w.t, startLimit, "the worker stops", func() bool {
			text, err := os.ReadFile(filepath.Join(w.deaths(), "stopped"))
			if err != nil {
				return false
			}
			_, err = fmt.Sscan(string(text), &pid)
			return err == nil && w.worker() == pid
		})
		require.NoError(w.t, os.Remove(filepath.Join(w.deaths(), "stopped")))
		return pid
	}
}

// stopServer stops the server of image i when the volume below its leaf has grown by so
// much.
func (w *workWorld) stopServer(done int64) func(task string) int {
	w.t.Helper()
	w.prepare(w.domains[0], w.id("i"))
	pid, _ := w.server()
	was := w.allocated()
	return func(task string) int {
		w.t.Helper()
		for w.allocated()-was < min(done, 1)+done/2 {
			if end, err := w.task(task); err != nil || end.State == "finished" {
				break
			}
		}
		require.NoError(w.t, syscall.Kill(pid, syscall.SIGSTOP))
		return pid
	}
}

// allocated is what the file system has for volume a.
func (w *workWorld) allocated() int64 {
	var st syscall.Stat_t
	require.NoError(w.t, syscall.Stat(filepath.Join(w.places[0].where(), w.domains[0], "images", w.id("i"), w.id("a")), &st))
	return st.Blocks * 512
}

// worker is the manager's child that does a job, 0 if there is none.
func (w *workWorld) worker() int {
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(w.t, err)
	for _, path := range all {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var pid, parent int
		var state string
		_, rest, _ := strings.Cut(string(stat), ") ")
		_, _ = fmt.Sscan(string(stat), &pid)
		if _, err := fmt.Sscan(rest, &state, &parent); err != nil || parent != w.proc.Cmd.Process.Pid || state == "Z" {
			continue
		}
		if args, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline")); err == nil && bytes.Contains(args, []byte("\x00worker\x00")) {
			return pid
		}
	}
	return 0
}

// requireBefore requires that nothing has come of the task.
func (w *workWorld) requireBefore(before string, done int64) {
	w.t.Helper()
	now := w.shows()
	before, now = rolledBack(before, now, "", w.s.torn)
	require.Equal(w.t, before, now, "killed after %d bytes", done)
	w.consistent()
}

// complete lets the task be done at last, unless it is, and compares the content.
func (w *workWorld) complete(run bool) {
	w.t.Helper()
	if run {
		w.run(w.s.verb, w.s.args(w.world))
	}
	w.shows() // every image is clean
	w.consistent()
	var r struct {
		Info struct {
			Socket string `json:"socket"`
		} `json:"info"`
	}
	require.NoError(w.t, w.ask("prepareImage", w.at(w.domains[w.s.domain], w.id(w.s.image), w.id(w.s.volume)), &r))
	c := w.dial(r.Info.Socket)
	got := make([]byte, workData)
	require.NoError(w.t, c.ReadAt(w.t.Context(), got, 8*mib, 0))
	require.True(w.t, bytes.Equal(w.content, got))
	require.NoError(w.t, c.Close())
	w.teardown(w.domains[w.s.domain], w.id(w.s.image))
}

// A workLoad uses image k.
type workLoad struct {
	done atomic.Int64 // rounds
	stop atomic.Bool
	wg   sync.WaitGroup
	end  func()
}

// load writes, flushes and reads, until it is ended; then the image is torn down.
func (w *workWorld) load() *workLoad {
	w.t.Helper()
	_, socket := w.prepare(w.domains[0], w.id("k"))
	c := w.dial(socket)
	l := &workLoad{}
	l.wg.Go(func() {
		for n := byte(1); !l.stop.Load(); n++ {
			p, got := bytes.Repeat([]byte{n}, 4096), make([]byte, 4096)
			off := 32*mib + int64(n)*64<<10
			err := c.WriteAt(context.Background(), p, off, 0)
			if err == nil {
				err = c.Flush(context.Background())
			}
			if err == nil {
				err = c.ReadAt(context.Background(), got, off, 0)
			}
			if err != nil || !bytes.Equal(p, got) {
				w.t.Errorf("image k: %v", err)
				return
			}
			l.done.Add(1)
			time.Sleep(time.Millisecond) // a load, and not all there is
		}
	})
	l.end = func() {
		l.stop.Store(true)
		l.wg.Wait()
		_ = c.Close()
		w.teardown(w.domains[0], w.id("k"))
	}
	return l
}

// some waits until it has done some more.
func (l *workLoad) some(t testing.TB) {
	t.Helper()
	begun := l.done.Load()
	testenv.Eventually(t, startLimit, "image k is served", func() bool { return l.done.Load() > begun+3 || t.Failed() })
}
