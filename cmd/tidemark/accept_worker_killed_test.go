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
		t.Run(s.name, func(t *testing.T) {
			w := newWorkWorld(t, rng, s)
			before := w.shows()
			for _, written := range []int64{0, 2 * mib, 20 * mib} {
				w.interrupt(written)
				w.requireBefore(before, written)
			}
			w.complete()
		})
	}
}

// workData is how much a story's job copies: enough to be caught in the middle.
const workData = 40 * mib

// A workStory is a task, and the volume that its job writes to.
type workStory struct {
	name, verb string
	args       func(w *world) arguments
	to         func(w *world) (domain int, volume string)
	served     bool   // image i, by the process that does the job
	leaves     string // what may be different when it was taken back
	after      string // of which QEMU reads the content
}

var workStories = []workStory{
	{
		name: "copy", verb: "copyImage", args: func(w *world) arguments {
			return arguments{"sdUUID": w.domains[0], "spUUID": w.pool, "vmUUID": "", "srcImgUUID": w.id("i"), "srcVolUUID": w.id("b"),
				"dstImgUUID": w.id("j"), "dstVolUUID": w.id("d"), "volType": "LEAF", "dstSdUUID": w.domains[1]}
		},
		to: func(w *world) (int, string) { return 1, w.id("d") }, after: "d",
	},
	{name: "move", verb: "moveImage", args: (*world).move, to: func(w *world) (int, string) { return 1, w.id("b") }, after: "b"},
	{
		name: "merge", verb: "mergeSnapshots", args: func(w *world) arguments { return w.merge("a", "b") },
		to: func(w *world) (int, string) { return 0, w.id("a") }, leaves: "!", after: "a",
	},
	{
		name: "merge of a served image", verb: "mergeSnapshots", args: func(w *world) arguments { return w.merge("a", "b") },
		to: func(w *world) (int, string) { return 0, w.id("a") }, leaves: "!", after: "a", served: true,
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

// interrupt begins the task, and stops who does its job when the volume has grown by so
// many bytes: the manager answers and knows that the task is running, and image k is
// served. Then it is killed.
func (w *workWorld) interrupt(written int64) {
	t := w.t
	t.Helper()
	goOn := w.load()
	defer goOn.end()
	worker := 0
	if w.s.served {
		w.prepare(w.domains[0], w.id("i"))
		worker, _ = w.server()
	}
	was := w.allocated()
	task := w.begin(w.s.verb, w.s.args(w.world))
	testenv.Eventually(t, startLimit, "the job is in the middle", func() bool {
		for w.allocated()-was < written {
			if end, err := w.task(task); err != nil || end.State == "finished" {
				return true
			}
		}
		if !w.s.served {
			worker = w.worker()
		}
		return worker != 0
	})
	require.NotZero(t, worker, "the job was over before it was stopped")
	require.NoError(t, syscall.Kill(worker, syscall.SIGSTOP))
	state, err := w.task(task)
	require.NoError(t, err)
	require.Equal(t, "running", state.State, "%d bytes: %+v", written, state)
	goOn.some(t)
	require.NoError(t, syscall.Kill(worker, syscall.SIGKILL))
	end := w.await(task)
	require.Equal(t, "cleanSuccess", end.Result, "%+v", end)
	require.NotZero(t, end.Code, "%+v", end)
	require.NotEmpty(t, end.Message)
	goOn.some(t)
	w.do("clearTask", arguments{"taskID": task})
	require.Zero(t, w.worker(), "a worker is left")
	w.prepare(w.domains[0], w.id("i")) // who opens it next gives back what was reserved
	w.teardown(w.domains[0], w.id("i"))
}

// allocated is what the file system has for the volume that the job writes to.
func (w *workWorld) allocated() int64 {
	domain, volume := w.s.to(w.world)
	all, err := filepath.Glob(filepath.Join(w.places[domain].where(), w.domains[domain], "images", "*", volume))
	require.NoError(w.t, err)
	var n int64
	for _, path := range all {
		var st syscall.Stat_t
		if syscall.Stat(path, &st) == nil {
			n += st.Blocks * 512
		}
	}
	return n
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
func (w *workWorld) requireBefore(before string, written int64) {
	w.t.Helper()
	now := w.shows()
	if w.s.leaves != "" {
		before, now = strings.ReplaceAll(before, w.s.leaves, ""), strings.ReplaceAll(now, w.s.leaves, "")
	}
	require.Equal(w.t, before, now, "killed after %d bytes", written)
	w.consistent()
}

// complete lets the task be done at last, and compares the content.
func (w *workWorld) complete() {
	w.t.Helper()
	w.run(w.s.verb, w.s.args(w.world))
	w.shows() // every image is clean
	w.consistent()
	domain, _ := w.s.to(w.world)
	image := "i"
	if w.s.after == "d" {
		image = "j"
	}
	var r struct {
		Info struct {
			Socket string `json:"socket"`
		} `json:"info"`
	}
	require.NoError(w.t, w.ask("prepareImage", w.at(w.domains[domain], w.id(image), w.id(w.s.after)), &r))
	c := w.dial(r.Info.Socket)
	got := make([]byte, workData)
	require.NoError(w.t, c.ReadAt(w.t.Context(), got, 8*mib, 0))
	require.True(w.t, bytes.Equal(w.content, got))
	require.NoError(w.t, c.Close())
	w.teardown(w.domains[domain], w.id(image))
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
