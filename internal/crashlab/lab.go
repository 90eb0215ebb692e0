package crashlab

import (
	"context"
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tidemark/internal/record"
	"tidemark/internal/simdisk"
)

// A Config says how much is judged. Every n-th state gets the further looks that
// say so; 0 means none.
type Config struct {
	Limits   Limits
	External int // another program's check
	Onward   int // writing to it, cutting again, mending
	Again    int // cutting the recovery
	// Death: the death of the process is judged too, whose writes the host keeps.
	Death bool
	// PerScript is how many choices of one recording are made at most, about: beyond,
	// a seeded sample of them, of which those are judged that leave a new state; 0
	// means all.
	PerScript int64
	// Most is how many states are judged at most; 0 means that there is no limit.
	Most int64
	Seed uint64
	// Only, if not 0, is the only rule whose failures count.
	Only int
}

// A Lab judges recordings and counts.
type Lab struct {
	config Config
	dir    string // for what is exported
	began  time.Time

	mu       sync.Mutex          // guards what follows
	distinct map[uint64]struct{} // by the hash of the disk
	judged   map[uint64]struct{} // by that and the hash of what was allowed
	total    Totals
	cover    coverage
}

// Totals are a lab's figures.
type Totals struct {
	Recordings, Events, Points int64 // points: moments at which the power was cut
	Built                      int64 // states, the same ones included
	Judged                     int64
	Distinct                   int64 // of them, by the hash of the disk
	Several                    int64 // of the distinct, with two or more operations pending
	Again                      int64 // of the judged, recoveries that were cut
	Onward, External           int64
	Deaths                     int64 // of the judged, after the death of the process
	// Failed counts the failures, by the rule that was broken.
	Failed [7]int64
	Took   time.Duration
}

// maxDistinct bounds the memory for telling states apart; beyond, they are no
// longer counted as distinct.
const maxDistinct = 1 << 24

// New returns a lab that exports states to files in dir.
func New(c Config, dir string) *Lab {
	return &Lab{config: c, dir: dir, began: time.Now(), distinct: map[uint64]struct{}{}, judged: map[uint64]struct{}{}, cover: coverage{}}
}

// Totals returns the figures so far.
func (l *Lab) Totals() Totals {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.total
	t.Took = time.Since(l.began)
	return t
}

func (t Totals) String() string {
	var b strings.Builder
	least := ""
	if t.Distinct >= maxDistinct {
		least = "at least "
	}
	fmt.Fprintf(&b, "%d states judged, %s%d distinct, %d of them with two or more operations pending\n", t.Judged, least, t.Distinct, t.Several)
	fmt.Fprintf(&b, "%d recordings, %d events, %d moments; %d choices made\n", t.Recordings, t.Events, t.Points, t.Built)
	fmt.Fprintf(&b, "%d recoveries cut, %d states used onward, %d checked by the other program, %d deaths of the process\n", t.Again, t.Onward, t.External, t.Deaths)
	fmt.Fprintf(&b, "%.1f s, %.0f states/s; %d losses, %d corruptions", t.Took.Seconds(), float64(t.Judged)/t.Took.Seconds(), t.Losses(), t.Corruptions())
	return b.String()
}

// Losses are the failures that a guest sees: rules 2 to 4.
func (t Totals) Losses() int64 { return t.Failed[2] + t.Failed[3] + t.Failed[4] }

// Corruptions are the failures that an image has: rules 1, 5 and 6.
func (t Totals) Corruptions() int64 { return t.Failed[1] + t.Failed[5] + t.Failed[6] }

// Enough reports whether as many states were judged as there may be.
func (l *Lab) Enough() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.config.Most > 0 && l.total.Judged >= l.config.Most
}

// A job is a state to be judged.
type job struct {
	n     int64 // in the order in which states are found
	state simdisk.State
	allow *allowance
	event int
	died  bool
	picks choice
	depth depth
}

// A Failure is a state that broke a rule, and how to get there.
type Failure struct {
	*Fault
	Script []Request
	Events []string // of the File and the clients, the last ones
	Choice string   // what was there of what was pending
	Died   bool     // the process died, no power was cut

	rec  *Recording
	job  job
	seed uint64
}

func (f *Failure) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v\nscript: %s\n", f.Fault, Format(f.Script))
	for _, e := range f.Events {
		fmt.Fprintf(&b, "\t%s\n", e)
	}
	switch {
	case f.rec == nil:
		b.WriteString("no power cut is needed")
	case f.Died:
		b.WriteString("here the process died, and the host's cache is left")
	default:
		fmt.Fprintf(&b, "here the power was cut; left were: %s", f.Choice)
	}
	return b.String()
}

// Try runs a script and judges the recording: nil, or the first failure.
func (l *Lab) Try(ctx context.Context, setup Setup, script []Request) *Failure {
	r, err := Run(ctx, setup, script)
	if err != nil {
		l.failed(asFault(err, 1, ""))
		f := &Failure{Fault: asFault(err, 1, "run"), Script: script}
		if r != nil {
			f.Events = lastEvents(r.log, len(r.log)-1)
		}
		return f
	}
	return l.Judge(ctx, r)
}

// Judge judges what power cuts leave of a recording: nil, or the first failure.
func (l *Lab) Judge(ctx context.Context, r *Recording) *Failure {
	jobs := make(chan job, 64)
	var first atomic.Pointer[Failure]
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() { l.work(ctx, r, jobs, &first) })
	}
	s := l.search(r)
	s.run(func(jb job) bool {
		jobs <- jb
		return first.Load() == nil && !l.Enough()
	})
	close(jobs)
	wg.Wait()
	l.mu.Lock()
	l.total.Recordings++
	l.total.Events += int64(len(r.log))
	l.total.Points += int64(countTrue(s.points))
	l.cover.add(r.log, s.points)
	l.mu.Unlock()
	if f := first.Load(); f != nil {
		l.failed(f.Fault)
		return f
	}
	return nil
}

func (l *Lab) failed(f *Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total.Failed[f.Oracle]++
}

// work judges jobs until there are no more, or one has failed.
func (l *Lab) work(ctx context.Context, r *Recording, jobs <-chan job, first *atomic.Pointer[Failure]) {
	dir, err := os.MkdirTemp(l.dir, "states")
	if err != nil {
		dir = l.dir // one that cannot be written to is an error of the first export
	}
	defer os.RemoveAll(dir)
	j := newJudge(r.setup, dir)
	j.again = func(h uint64) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.countLocked(h, false)
	}
	for jb := range jobs {
		if f := first.Load(); f != nil && f.job.n < jb.n {
			continue
		}
		j.begin(l.config.Seed, uint64(jb.n))
		fault := j.judge(ctx, jb.state, jb.allow, jb.depth)
		if fault == nil || l.config.Only != 0 && fault.Oracle != l.config.Only {
			continue
		}
		f := r.failure(jb, fault, l.config.Seed)
		for old := first.Load(); old == nil || old.job.n > jb.n; old = first.Load() {
			if first.CompareAndSwap(old, f) {
				break
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total.Judged += j.counts.again
	l.total.Again += j.counts.again
	l.total.Onward += j.counts.onward
	l.total.External += j.counts.external
}

// first reports whether a state comes up for the first time with what is allowed,
// in whatever recording.
func (l *Lab) first(state, allowed uint64, several bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.countLocked(state, several)
	key := state ^ bits.RotateLeft64(allowed, 32)
	if _, ok := l.judged[key]; ok {
		return false
	}
	if len(l.judged) < maxDistinct {
		l.judged[key] = struct{}{}
	}
	return true
}

// countLocked counts a state among the distinct ones.
func (l *Lab) countLocked(h uint64, several bool) {
	if _, ok := l.distinct[h]; ok || len(l.distinct) >= maxDistinct {
		return
	}
	l.distinct[h] = struct{}{}
	l.total.Distinct++
	if several {
		l.total.Several++
	}
}

// failure says how jb came about.
func (r *Recording) failure(jb job, fault *Fault, seed uint64) *Failure {
	f := &Failure{Fault: fault, Script: r.script, Died: jb.died, rec: r, job: jb, seed: seed}
	w := r.walk()
	for _, e := range r.log[:jb.event+1] {
		w.step(e)
	}
	if !jb.died {
		f.Choice = jb.picks.describe(w.model.Pending())
	}
	f.Events = lastEvents(r.log, jb.event)
	return f
}

// lastEvents describes the events up to one, as far as people want to read them.
func lastEvents(log record.Log, to int) (list []string) {
	const most = 60
	for n := max(0, to+1-most); n <= to; n++ {
		list = append(list, describeEvent(log, n))
	}
	return list
}

// describeEvent describes event n of a log, for people.
func describeEvent(log record.Log, n int) string {
	e := log[n]
	switch {
	case e.Kind == record.Mark:
		return fmt.Sprintf("%d: %s", n, e.Label)
	case e.Done && e.Err != nil:
		return fmt.Sprintf("%d: %v #%d failed: %v", n, e.Kind, e.ID, e.Err)
	case e.Done:
		return fmt.Sprintf("%d: %v #%d done", n, e.Kind, e.ID)
	case e.Kind == record.Sync:
		return fmt.Sprintf("%d: sync #%d", n, e.ID)
	}
	return fmt.Sprintf("%d: %v #%d of %d bytes at %d", n, e.Kind, e.ID, e.Len, e.Off)
}
