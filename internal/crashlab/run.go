package crashlab

import (
	"context"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"

	"tidemark/internal/block"
	"tidemark/internal/record"
	"tidemark/internal/simdisk"
	"tidemark/internal/steps"
)

// A Setup is where a script runs.
type Setup struct {
	// Name tells setups apart whose disks may look alike: their engines differ.
	Name    string
	Engine  Engine
	Options simdisk.Options
	// Start is the disk at the start: it holds an image, durably.
	Start simdisk.State
	// Jitter, if not nil, makes operations of the File take random times, so that
	// those of several clients overlap.
	Jitter *rand.Rand
	// BesideIn, if not "", is a directory in which the engine gets one of its own,
	// whose files survive the death of the process.
	BesideIn string
	// Versions are the numbers that what is written is marked with: those behind
	// it. Scripts that run one after another on a disk need different ones.
	Versions uint32
}

func (s Setup) sum() uint64 {
	return maphash.Comparable(allowanceSeed, struct {
		name string
		o    simdisk.Options
	}{s.Name, s.Options})
}

// A Recording is what happened while a script ran.
type Recording struct {
	setup   Setup
	script  []Request
	log     record.Log
	history history
	end     simdisk.State
}

// End is the disk when the script had ended and the image was closed.
func (r *Recording) End() simdisk.State { return r.end }

// stepMark begins the label of a mark that says which step has been done.
const (
	stepMark  = "step "
	evictMark = "the host's cache is dropped"
	failMark  = "a write fails and does nothing"
)

// A runner is a script that runs.
type runner struct {
	ctx   context.Context
	setup Setup
	below *simdisk.Disk
	file  *record.File
	gate  *gate
	holds *holder
	disk  Disk
	// begins: the File begins writes.
	begins bool
	// beside is the directory whose files survive the process, "" for none.
	beside string

	mu      sync.Mutex // guards what follows
	history history

	faultMu sync.Mutex // guards what follows
	faults  []*Fault
}

// Run runs a script. Its error is a Fault if the engine does not even do what was
// asked for without a power cut; then the recording is what there is of it.
func Run(ctx context.Context, setup Setup, script []Request) (*Recording, error) {
	r := &runner{ctx: ctx, setup: setup, below: simdisk.NewDisk(setup.Start, setup.Options)}
	r.begins = slices.ContainsFunc(script, func(q Request) bool { return q.Kind == WriteLater })
	o := record.Options{}
	if setup.BesideIn != "" {
		dir, err := os.MkdirTemp(setup.BesideIn, "beside")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		r.beside = dir
		o.Beside = func() any { return r.saveBeside() }
	}
	r.holds = newHolder(slowly(r.below, setup.Jitter))
	r.file = record.New(r.holds, o)
	if err := r.open(); err != nil {
		return nil, err
	}
	size := r.disk.Info().Size
	r.history = history{size: size / sector, start: make([]byte, size)}
	if err := r.disk.ReadAt(ctx, r.history.start, 0, 0); err != nil {
		return nil, asFault(err, 2, "read the disk at the start")
	}
	stop := steps.Observe(func(step string) { r.file.Mark(stepMark + step) })
	defer stop()
	r.history.acts = make([]*act, 0, len(script))
	for len(script) > r.done() {
		r.runUntilAlone(script)
	}
	err := r.end()
	return &Recording{setup, script, r.file.Log(), r.history, r.below.State()}, err
}

func (r *runner) done() int { return len(r.history.acts) }

// runUntilAlone does the requests from the next one on until one that is done
// alone, each client on a goroutine of its own; or that one.
func (r *runner) runUntilAlone(script []Request) {
	rest := script[r.done():]
	if rest[0].Kind.alone() {
		r.alone(rest[0])
		return
	}
	queues := map[int][]Request{}
	for _, q := range rest {
		if q.Kind.alone() {
			break
		}
		queues[q.Client] = append(queues[q.Client], q)
	}
	r.holds.start(len(queues))
	var wg sync.WaitGroup
	for _, slow := range []bool{true, false} { // those that begin with a slow one first
		for _, queue := range queues {
			if queue[0].Slow != slow {
				continue
			}
			begun := make(chan struct{})
			wg.Go(func() {
				defer r.holds.end()
				for i, q := range queue {
					r.request(q, len(queues) > 1)
					if i == 0 {
						close(begun)
					}
				}
			})
			if slow {
				r.holds.wait(begun)
			}
		}
	}
	wg.Wait()
}

// begin notes that a request is submitted.
func (r *runner) begin(q Request) *act {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := &act{Request: q, returned: -1}
	switch q.Kind {
	case Write, WriteFUA, WriteLater:
		a.version = version(r.setup.Versions) + version(len(r.history.acts)+1)
	}
	a.submitted = r.file.Mark(q.String())
	r.history.acts = append(r.history.acts, a)
	return a
}

// ack notes that a request has returned.
func (r *runner) ack(a *act, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a.failed = err != nil
	a.returned = r.file.Mark(fmt.Sprintf("%v: %v", a.Request, err))
}

func (r *runner) request(q Request, concurrent bool) {
	a := r.begin(q)
	if q.Slow {
		r.holds.hold(q.Kind, a.version)
	}
	var err error
	off, n := q.First*sector, q.N*sector
	switch q.Kind {
	case Write, WriteFUA, WriteLater:
		p := make([]byte, n)
		stamp(p, q.First, a.version)
		err = r.write(q.Kind, p, off)
	case Zero:
		err = r.disk.WriteZeroes(r.ctx, off, n, 0)
	case ZeroUnmap:
		err = r.disk.WriteZeroes(r.ctx, off, n, block.MayUnmap)
	case Discard:
		err = r.disk.Discard(r.ctx, off, n, 0)
		if err == nil && !concurrent {
			a.seen, err = r.see(q)
		}
	case Flush:
		err = r.disk.Flush(r.ctx)
	}
	r.ack(a, err)
}

func (r *runner) write(k Kind, p []byte, off int64) error {
	switch to := make(told, 1); {
	case k == WriteFUA:
		return r.disk.WriteAt(r.ctx, p, off, block.FUA)
	case k == WriteLater && r.disk.WriteLater(p, off, to) && <-to:
		return nil
	}
	return r.disk.WriteAt(r.ctx, p, off, 0)
}

// told is a block.Later that passes on what it is told, and lets the client go on before
// the one who tells: what he does behind Ended is too late.
type told chan bool

func (c told) Ended(ok bool) {
	c <- ok
	for range 20 {
		runtime.Gosched()
	}
}

// see reads the versions that a range has.
func (r *runner) see(q Request) ([]version, error) {
	p := make([]byte, q.N*sector)
	if err := r.disk.ReadAt(r.ctx, p, q.First*sector, 0); err != nil {
		return nil, err
	}
	seen := make([]version, q.N)
	for i := range seen {
		s := q.First + int64(i)
		v, err := versionOf(p[i*sector:(i+1)*sector], s, r.history.start)
		if err != nil {
			return nil, err
		}
		seen[i] = v
	}
	return seen, nil
}

func (r *runner) fault(f *Fault) {
	r.faultMu.Lock()
	defer r.faultMu.Unlock()
	r.faults = append(r.faults, f)
}

func (r *runner) open() error {
	r.gate = newGate(r.file, func() { r.file.Mark(failMark) })
	var f block.File = r.gate
	if r.begins {
		f = simdisk.Later(f)
	}
	d, err := r.setup.Engine.Open(r.ctx, f, r.beside)
	if err != nil {
		return asFault(err, 1, "open")
	}
	r.disk = d
	return nil
}

// end reads the whole disk, which must hold what was written last, and closes
// it.
func (r *runner) end() error {
	if len(r.faults) > 0 {
		return r.faults[0]
	}
	content := make([]byte, r.disk.Info().Size)
	if err := r.disk.ReadAt(r.ctx, content, 0, 0); err != nil {
		return asFault(err, 2, "read the disk at the end")
	}
	n := len(r.file.Log())
	if err := r.history.allow(n, true).judge(content); err != nil {
		return asFault(err, 2, "without any power cut")
	}
	a := r.begin(Request{Kind: Reopen})
	err := r.disk.Close()
	r.ack(a, err)
	if err != nil && !r.expectsFailure() {
		return asFault(err, 1, "close")
	}
	return nil
}

// expectsFailure reports whether the storage was made to fail and the image not
// opened again past the host's cache since.
func (r *runner) expectsFailure() bool {
	armed := false
	for _, a := range r.history.acts {
		armed = a.Kind.fails() || armed && a.Kind != EvictReopen
	}
	return armed
}
