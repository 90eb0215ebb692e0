package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// A model runs a case on an image, and on an array of bytes beside it.
type model struct {
	t     *testing.T
	c     modelCase
	m     *made
	im    *qcow2.Image
	dir   string // holds a directory for the ring of each process
	lives int    // processes so far

	// moment is held shared while account is taken of a request, exclusively while
	// the process dies.
	moment sync.RWMutex
	ended  atomic.Int64 // requests of this phase
	died   atomic.Bool
	// inside are the requests in progress, and with faults those that failed: if the
	// process dies, each byte of theirs is as before or as after.
	inside  []*modelRequest
	growing sync.Mutex
	faulty  bool
}

type modelRequest struct {
	off   int64
	after []byte
	grow  int64
}

// run runs the case, and returns what was wrong.
func (c modelCase) run(t *testing.T, m *made, dir string) error {
	r := &model{t: t, c: c, m: m, dir: dir}
	if err := r.open(); err != nil {
		return err
	}
	ops := c.ops
	for len(ops) > 0 {
		n := slices.IndexFunc(ops, modelOp.endsPhase)
		end := modelOp{verb: "reopen"}
		phase := ops
		if n >= 0 {
			phase, end, ops = ops[:n], ops[n], ops[n+1:]
		} else {
			ops = nil
		}
		if err := r.phase(phase, end); err != nil {
			return err
		}
	}
	return r.finish()
}

func (r *model) ringDir() string { return filepath.Join(r.dir, fmt.Sprint(r.lives)) }

func (r *model) options() qcow2.Options {
	o := qcow2.Options{ReserveBytes: r.c.reserve, CacheBytes: 16 << 10, RedoSlots: 128, CommitInterval: time.Duration(r.c.commit) * time.Millisecond}
	if r.c.commit == 0 {
		o.CommitInterval = -1
	}
	if r.c.ring {
		o.RedoDir = r.ringDir()
	}
	return o
}

func (r *model) open() error {
	o := r.options()
	im, err := r.m.tryOpen(r.t, beginning(restless(r.m.disk), r.c.later), o)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	r.im = im
	return r.compare("opened")
}

// finish closes the image and looks at it as a whole.
func (r *model) finish() error {
	<-r.im.Settled()
	if err := r.im.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	res, err := qcow2.Check(context.Background(), r.m.disk, qcow2.CheckOptions{})
	if err != nil {
		return err
	}
	if res.Corruptions+res.CheckErrors > 0 || r.lives == 0 && res.Leaks > 0 {
		return fmt.Errorf("check: %d corruptions, %d leaks: %q", res.Corruptions, res.Leaks, res.Problems)
	}
	r.m.judgeSnapshots(r.t, r.m.disk, "in the end")
	return nil
}

// restless is a file whose operations let others go first now and then, before and
// after, so that requests meet in the middle of each other.
func restless(d *simdisk.Disk) *faultfile.File {
	f := faultfile.New(d, faultfile.Fault{})
	pause := func() {
		for n := rand.IntN(16); n > 8; n-- {
			runtime.Gosched()
		}
	}
	f.Hook(func(faultfile.Op) { pause() }, func(faultfile.Op, error) { pause() })
	return f
}

// compare reads the whole disk.
func (r *model) compare(when string) error {
	if size := r.im.Info().Size; size != int64(len(r.m.content)) {
		return fmt.Errorf("%s: the disk has %d bytes, expected %d", when, size, len(r.m.content))
	}
	got := make([]byte, len(r.m.content))
	if err := r.im.ReadAt(context.Background(), got, 0, 0); err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	return sameBytes(r.m.content, got, 0, when)
}

func sameBytes(want, got []byte, off int64, when string) error {
	for i := range want {
		if want[i] != got[i] {
			return fmt.Errorf("%s: byte %d (sector %d) is %d instead of %d", when, off+int64(i), (off+int64(i))/sector, got[i], want[i])
		}
	}
	return nil
}

// phase lets the clients do their requests at once, and ends.
func (r *model) phase(ops []modelOp, end modelOp) error {
	clients := map[int][]modelOp{}
	for _, o := range ops {
		clients[o.client] = append(clients[o.client], o)
	}
	r.ended.Store(0)
	r.died.Store(false)
	var left *simdisk.Disk
	errs := make(chan error, len(clients)+1)
	var wg sync.WaitGroup
	for _, mine := range clients {
		wg.Go(func() {
			for _, o := range mine {
				if err := r.do(o); err != nil {
					errs <- fmt.Errorf("%v: %w", o, err)
					return
				}
				if n := r.ended.Add(1); end.verb == "kill" && n == end.off {
					left = r.kill()
				}
				if r.died.Load() {
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	var err error
	for e := range errs {
		err = errors.Join(err, e)
	}
	if end.verb == "kill" && left == nil && err == nil {
		left = r.kill()
	}
	cerr := r.im.Close()
	if err != nil {
		return err
	}
	if cerr != nil {
		return fmt.Errorf("close: %w", cerr)
	}
	if left != nil {
		r.m.disk = left
		r.lives++
		if err := r.settleInside(); err != nil {
			return err
		}
	}
	return r.open()
}

// kill is the death of the process: what is left are the file and the ring, of one
// moment. The image goes on, over what nobody looks at again.
func (r *model) kill() *simdisk.Disk {
	r.moment.Lock()
	defer r.moment.Unlock()
	r.died.Store(true)
	for {
		before := readRing(r.ringDir())
		left := r.m.disk.Crash(simdisk.KeepAll)
		if !sameFiles(before, readRing(r.ringDir())) {
			continue // something went on in the background
		}
		next := filepath.Join(r.dir, fmt.Sprint(r.lives+1))
		_ = os.MkdirAll(next, 0o700)
		for name, b := range before {
			_ = os.WriteFile(filepath.Join(next, name), b, 0o600)
		}
		return left
	}
}

// settleInside takes over what the requests have left that were in progress when the
// process died.
func (r *model) settleInside() error {
	im, err := r.m.tryOpen(r.t, r.m.disk.Crash(simdisk.KeepAll), qcow2.Options{RedoDir: copyDir(r.t, r.ringDir())})
	if err != nil {
		return fmt.Errorf("open after the process died: %w", err)
	}
	defer im.Close() //nolint:errcheck // a copy, only read
	return r.adopt(im)
}

// adopt takes over what the requests inside have left in an image: each of their bytes
// is as before, or as one of them wanted it.
func (r *model) adopt(im *qcow2.Image) error {
	for _, q := range r.inside {
		if size := im.Info().Size; q.grow > 0 && size == int64(len(r.m.content))+q.grow {
			r.m.content = append(r.m.content, make([]byte, q.grow)...)
		}
	}
	got := make([]byte, len(r.m.content))
	if err := im.ReadAt(context.Background(), got, 0, 0); err != nil {
		return err
	}
	for i, b := range got {
		if !r.allows(int64(i), b) {
			return fmt.Errorf("byte %d (sector %d) is %d; it was %d, and no request wanted that", i, i/sector, b, r.m.content[i])
		}
	}
	copy(r.m.content, got)
	r.inside = nil
	return nil
}

// allows reports whether byte i may be b.
func (r *model) allows(i int64, b byte) bool {
	return r.m.content[i] == b || slices.ContainsFunc(r.inside, func(q *modelRequest) bool {
		return i >= q.off && i < q.off+int64(len(q.after)) && q.after[i-q.off] == b
	})
}
