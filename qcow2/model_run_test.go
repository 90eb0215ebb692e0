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

	"tidemark/internal/block"
	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
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
	// inside are the requests in progress: if the process dies, each byte of theirs
	// is as before or as after.
	inside  []*modelRequest
	growing sync.Mutex
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

func (r *model) open() error {
	o := qcow2.Options{ReserveBytes: r.c.reserve, CacheBytes: 16 << 10, RedoSlots: 128, CommitInterval: time.Duration(r.c.commit) * time.Millisecond}
	if r.c.commit == 0 {
		o.CommitInterval = -1
	}
	if r.c.ring {
		o.RedoDir = r.ringDir()
	}
	im, err := r.m.tryOpen(r.t, restless(r.m.disk), o)
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
func restless(d *simdisk.Disk) block.File {
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
	for _, q := range r.inside {
		if size := im.Info().Size; q.grow > 0 && size == int64(len(r.m.content))+q.grow {
			r.m.content = append(r.m.content, make([]byte, q.grow)...)
		}
		got := make([]byte, len(q.after))
		if err := im.ReadAt(context.Background(), got, q.off, 0); err != nil {
			return err
		}
		old := r.m.content[q.off : q.off+int64(len(got))]
		for i := range got {
			if got[i] != old[i] && got[i] != q.after[i] {
				return fmt.Errorf("byte %d, in progress when the process died, is %d; it was %d, to become %d", q.off+int64(i), got[i], old[i], q.after[i])
			}
		}
		copy(old, got)
	}
	r.inside = nil
	return nil
}

// do does one request, and takes account of it unless the process has died.
func (r *model) do(o modelOp) error {
	q := &modelRequest{off: o.off, after: make([]byte, o.n)}
	r.moment.RLock()
	size, dead := int64(len(r.m.content)), r.died.Load()
	r.moment.RUnlock()
	if dead || o.verb != "grow" && o.off+o.n > size {
		return nil // the case was reduced
	}
	switch o.verb {
	case "write", "now", "fua":
		rng := testenv.Rand(o.data)
		for i := range q.after {
			q.after[i] = byte(rng.Uint32()) | 1
		}
	case "zero", "zerofua", "unmap", "discard":
	case "grow":
		r.growing.Lock()
		defer r.growing.Unlock()
		q = &modelRequest{grow: o.n}
	default:
		return r.look(o)
	}
	r.begin(q)
	err := r.request(o, q)
	r.end(q, err)
	if r.died.Load() {
		return nil
	}
	return err
}

func (r *model) begin(q *modelRequest) {
	r.moment.Lock()
	defer r.moment.Unlock()
	if !r.died.Load() {
		r.inside = append(r.inside, q)
	}
}

func (r *model) end(q *modelRequest, err error) {
	r.moment.Lock()
	defer r.moment.Unlock()
	if r.died.Load() {
		return
	}
	r.inside = slices.DeleteFunc(r.inside, func(other *modelRequest) bool { return other == q })
	if err != nil {
		return
	}
	r.m.content = append(r.m.content, make([]byte, q.grow)...)
	copy(r.m.content[q.off:], q.after)
}

func (r *model) request(o modelOp, q *modelRequest) error {
	ctx := context.Background()
	switch o.verb {
	case "now":
		if err := r.im.WriteAt(ctx, q.after, o.off, block.NoWait); !errors.Is(err, block.ErrWouldBlock) {
			return err
		}
		return r.im.WriteAt(ctx, q.after, o.off, 0)
	case "write":
		return r.im.WriteAt(ctx, q.after, o.off, 0)
	case "fua":
		return r.im.WriteAt(ctx, q.after, o.off, block.FUA)
	case "zero":
		return r.im.WriteZeroes(ctx, o.off, o.n, 0)
	case "zerofua":
		return r.im.WriteZeroes(ctx, o.off, o.n, block.FUA)
	case "unmap":
		return r.im.WriteZeroes(ctx, o.off, o.n, block.MayUnmap)
	case "grow":
		return r.im.Grow(ctx, r.im.Info().Size+o.n)
	}
	if err := r.im.Discard(ctx, o.off, o.n, 0); err != nil {
		return err
	}
	// What was there, or zeroes; from now on it is what is read now.
	got := make([]byte, o.n)
	if err := r.im.ReadAt(ctx, got, o.off, 0); err != nil {
		return err
	}
	old := r.content(o)
	for i := range got {
		if got[i] != old[i] && got[i] != 0 {
			return fmt.Errorf("byte %d reads %d behind a discard; it was %d", o.off+int64(i), got[i], old[i])
		}
	}
	r.moment.Lock()
	defer r.moment.Unlock()
	copy(q.after, got)
	return nil
}

// content is what the client's own bytes hold.
func (r *model) content(o modelOp) []byte {
	r.moment.RLock()
	defer r.moment.RUnlock()
	return slices.Clone(r.m.content[o.off : o.off+o.n])
}

// look does a request that changes nothing.
func (r *model) look(o modelOp) error {
	ctx := context.Background()
	switch o.verb {
	case "flush":
		return r.im.Flush(ctx)
	case "evict":
		r.im.Evict()
		return nil
	case "extents":
		extents, err := r.im.AppendExtents(ctx, nil, o.off, o.n)
		want := r.content(o)
		for _, e := range extents {
			if e.State.Has(block.Zero) && len(want) > 0 && slices.Max(want[e.Off-o.off:e.End()-o.off]) != 0 {
				return fmt.Errorf("%d bytes at %d are said to read zero", e.Len, e.Off)
			}
		}
		return err
	case "read":
		got := make([]byte, o.n)
		if err := r.im.ReadAt(ctx, got, o.off, 0); err != nil {
			return err
		}
		return sameBytes(r.content(o), got, o.off, "read")
	}
	return fmt.Errorf("no such operation")
}
