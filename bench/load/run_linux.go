package load

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Result is what a Job came to.
type Result struct {
	Ops     int64
	Asked   time.Duration // until the last reply
	Closed  time.Duration // until a FLUSH and the end of all connections as well
	Latency Histogram     // of requests; with FlushEach of a write and its flush
	Windows []Histogram   // the same by the time of the reply, if the Job has a Window
	// Written says which places were written.
	Written Places
}

// Places is a set of places.
type Places []uint64

// NewPlaces is an empty set of the first n places.
func NewPlaces(n int64) Places { return make(Places, (n+63)/64) }

// Add puts place i into the set.
func (p Places) Add(i int64) { p[i/64] |= 1 << (i % 64) }

// Has reports whether place i is in the set.
func (p Places) Has(i int64) bool { return p[i/64]>>(i%64)&1 != 0 }
func (p Places) merge(other Places) {
	for i, w := range other {
		p[i] |= w
	}
}

// Run does a Job with the export named name at the unix socket path.
func Run(path, name string, j Job) (*Result, error) {
	j = j.withDefaults()
	if err := j.check(); err != nil {
		return nil, err
	}
	return j.run(func() (line, error) {
		c, err := dial(path, name)
		if err != nil {
			return nil, err
		}
		return newNBDLine(c, j), nil
	})
}

// RunFile does a Job that writes to a file or a block device, past the page cache.
// A connection is a descriptor of its own; with one request in flight each is a call of
// pwrite, with more they are Linux' asynchronous ones. FLUSH is fdatasync.
func RunFile(path string, j Job) (*Result, error) { return runFile(path, unix.O_DIRECT, j) }

// RunCached does a Job that writes to a file through the page cache: a loop of pwrite for
// each connection, with one request in flight whatever the Job says.
func RunCached(path string, j Job) (*Result, error) {
	j.Depth = 1
	return runFile(path, 0, j)
}

func runFile(path string, flags int, j Job) (*Result, error) {
	j = j.withDefaults()
	if err := j.check(); err != nil {
		return nil, err
	}
	if j.Op != Write {
		return nil, fmt.Errorf("operation %d on the file %s: expected writes", j.Op, path)
	}
	// Its calls keep the processor that Go has given them, and so there must be enough.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), j.Conns+2)))
	return j.run(func() (line, error) { return openFile(path, flags, j) })
}

// run does a Job over lines that open makes.
func (j Job) run(open func() (line, error)) (*Result, error) {
	workers := make([]*worker, 0, j.Conns)
	for i := range j.Conns {
		l, err := open()
		if err != nil {
			for _, w := range workers {
				err = errors.Join(err, w.line.close())
			}
			return nil, err
		}
		workers = append(workers, newWorker(l, j, i))
	}
	began := time.Now()
	var wg sync.WaitGroup
	for _, w := range workers {
		wg.Go(func() { w.err = w.run(began) })
	}
	wg.Wait()
	r := &Result{Asked: time.Since(began), Written: NewPlaces(j.places())}
	var errs []error
	if j.Op == Write && workers[0].err == nil {
		errs = append(errs, workers[0].line.flush())
	}
	for _, w := range workers {
		errs = append(errs, w.err, w.line.close())
		r.Ops += w.ops
		r.Latency.Merge(&w.latency)
		for i := range w.windows {
			if i == len(r.Windows) {
				r.Windows = append(r.Windows, Histogram{})
			}
			r.Windows[i].Merge(&w.windows[i])
		}
		r.Written.merge(w.written)
	}
	r.Closed = time.Since(began)
	return r, errors.Join(errs...)
}

// A line takes requests to a server, and knows what is in flight by cookies below the
// Job's depth.
type line interface {
	// add puts a request into the next batch.
	add(cookie uint64, off int64)
	send() error
	// receive waits for at least one reply, and appends the cookies of all that have come.
	receive(free []uint64) ([]uint64, error)
	// flush is called when nothing is in flight.
	flush() error
	close() error
}

// A worker drives one line.
type worker struct {
	line    line
	job     Job
	walk    *walk
	sent    []time.Time // by cookie
	free    []uint64    // cookies
	ops     int64
	latency Histogram
	windows []Histogram
	began   time.Time
	written Places
	err     error
}

func newWorker(l line, j Job, i int) *worker {
	w := &worker{line: l, job: j, walk: j.walkOf(i), written: NewPlaces(j.places()), sent: make([]time.Time, j.Depth)}
	for k := range j.Depth {
		w.free = append(w.free, uint64(k))
	}
	return w
}

// run asks until the time is over, at least once, and waits for the last reply.
func (w *worker) run(began time.Time) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w.began = began
	end, more := began.Add(w.job.Duration), true
	for first := true; ; first = false {
		now := time.Now()
		if more = more && (first || now.Before(end)); more {
			var err error
			if more, err = w.send(now); err != nil {
				return err
			}
		}
		if len(w.free) == w.job.Depth {
			return nil
		}
		var err error
		if w.free, err = w.line.receive(w.free); err != nil {
			return err
		}
		if w.job.FlushEach {
			if err := w.line.flush(); err != nil {
				return err
			}
		}
		w.count(time.Now())
	}
}

// send uses every free slot.
func (w *worker) send(now time.Time) (more bool, err error) {
	for len(w.free) > 0 {
		place, ok := w.walk.at()
		if !ok {
			break
		}
		cookie := w.free[len(w.free)-1]
		w.free = w.free[:len(w.free)-1]
		w.sent[cookie] = now
		w.line.add(cookie, w.job.From+place*w.job.Stride)
		if w.job.Op == Write {
			w.written.Add(place)
		}
		more = true
	}
	return more, w.line.send()
}

// count notes the requests whose replies have come.
func (w *worker) count(now time.Time) {
	for _, cookie := range w.free {
		if t := w.sent[cookie]; !t.IsZero() {
			w.latency.Add(now.Sub(t), 1)
			if w.job.Window > 0 {
				w.window(now).Add(now.Sub(t), 1)
			}
			w.sent[cookie] = time.Time{}
			w.ops++
		}
	}
}

// window is the Histogram of the part of the time that now is in.
func (w *worker) window(now time.Time) *Histogram {
	i := int(now.Sub(w.began) / w.job.Window)
	for i >= len(w.windows) {
		w.windows = append(w.windows, Histogram{})
	}
	return &w.windows[i]
}
