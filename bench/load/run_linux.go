package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
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

func newPlaces(n int64) Places { return make(Places, (n+63)/64) }
func (p Places) add(i int64)   { p[i/64] |= 1 << (i % 64) }

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
	workers := make([]*worker, j.Conns)
	for i := range workers {
		c, err := dial(path, name)
		if err != nil {
			return nil, err
		}
		workers[i] = newWorker(c, j, i)
	}
	began := time.Now()
	var wg sync.WaitGroup
	for _, w := range workers {
		wg.Go(func() { w.err = w.run(began) })
	}
	wg.Wait()
	r := &Result{Asked: time.Since(began), Written: newPlaces(j.places())}
	var errs []error
	if j.Op == Write && workers[0].err == nil {
		errs = append(errs, workers[0].flush())
	}
	for _, w := range workers {
		errs = append(errs, w.err, w.c.close())
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

// A worker drives one connection.
type worker struct {
	c       *conn
	job     Job
	walk    *walk
	out     []byte // requests to send: a slot of headerLen + Block for each in flight
	in      []byte
	have    int         // bytes of in that are not looked at yet
	sent    []time.Time // by cookie
	free    []uint64    // cookies
	ops     int64
	latency Histogram
	windows []Histogram
	began   time.Time
	written Places
	err     error
}

func newWorker(c *conn, j Job, i int) *worker {
	w := &worker{c: c, job: j, walk: j.walkOf(i), written: newPlaces(j.places())}
	slot := headerLen
	if j.Op == Write {
		slot += j.Block
	}
	w.out = make([]byte, slot*j.Depth)
	reply := replyLen
	if j.Op == Read {
		reply += j.Block
	}
	w.in = make([]byte, reply*j.Depth)
	w.sent = make([]time.Time, j.Depth)
	for k := range j.Depth {
		w.free = append(w.free, uint64(k))
	}
	return w
}

// run asks until the time is over, and waits for the last reply.
func (w *worker) run(began time.Time) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w.began = began
	end, more := began.Add(w.job.Duration), true
	for {
		now := time.Now()
		if more = more && now.Before(end); more {
			var err error
			if more, err = w.send(now); err != nil {
				return err
			}
		}
		if len(w.free) == w.job.Depth {
			return nil
		}
		if err := w.receive(); err != nil {
			return err
		}
		if w.job.FlushEach {
			if err := w.flush(); err != nil {
				return err
			}
		}
		w.count(time.Now())
	}
}

var commandOf = [...]uint16{Write: cmdWrite, Read: cmdRead, Trim: cmdTrim}

// send uses every free slot, with one system call.
func (w *worker) send(now time.Time) (more bool, err error) {
	n := 0
	for len(w.free) > 0 {
		place, ok := w.walk.at()
		if !ok {
			break
		}
		cookie := w.free[len(w.free)-1]
		w.free = w.free[:len(w.free)-1]
		w.sent[cookie] = now
		off := w.job.From + place*w.job.Stride
		if w.job.Op != Write {
			putRequest(w.out[n:], commandOf[w.job.Op], cookie, off, w.job.Block)
			n += headerLen
			continue
		}
		putRequest(w.out[n:], cmdWrite, cookie, off, w.job.Block)
		stamp(w.out[n+headerLen:][:w.job.Block], off, w.job.Seed)
		w.written.add(place)
		n += headerLen + w.job.Block
	}
	return n > 0, w.c.write(w.out[:n])
}

// receive waits for at least one reply and takes all that have come.
func (w *worker) receive() error {
	size := replyLen
	if w.job.Op == Read {
		size += w.job.Block
	}
	for w.have < size {
		n, err := w.c.readSome(w.in[w.have:])
		if err != nil {
			return err
		}
		w.have += n
	}
	at := 0
	for ; at+size <= w.have; at += size {
		cookie, err := w.reply(w.in[at:])
		if err != nil {
			return err
		}
		w.free = append(w.free, cookie)
	}
	w.have = copy(w.in, w.in[at:w.have])
	return nil
}

// reply checks the head of a simple reply.
func (w *worker) reply(b []byte) (uint64, error) {
	cookie := binary.BigEndian.Uint64(b[8:])
	switch {
	case binary.BigEndian.Uint32(b) != magicSimple:
		return 0, fmt.Errorf("expected a simple reply, found % x", b[:replyLen])
	case binary.BigEndian.Uint32(b[4:]) != 0:
		return 0, fmt.Errorf("request failed with error %d", binary.BigEndian.Uint32(b[4:]))
	case cookie >= uint64(w.job.Depth):
		return 0, fmt.Errorf("reply to request %d, of %d", cookie, w.job.Depth)
	}
	return cookie, nil
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

// flush asks for a FLUSH and waits for it; nothing else is in flight.
func (w *worker) flush() error {
	b := make([]byte, headerLen)
	putRequest(b, cmdFlush, 0, 0, 0)
	if err := w.c.write(b); err != nil {
		return err
	}
	if err := w.c.readFull(b[:replyLen]); err != nil {
		return err
	}
	_, err := w.reply(b)
	return err
}

// stamp marks a block: where it belongs, and which run wrote it.
func stamp(b []byte, off int64, seed uint64) {
	binary.LittleEndian.PutUint64(b, uint64(off)|1) // not zero
	binary.LittleEndian.PutUint64(b[8:], seed)
}

// Verify reads the sectors at offs and gives each to check.
func Verify(path, name string, offs []int64, check func(off int64, sector []byte) error) error {
	c, err := dial(path, name)
	if err != nil {
		return err
	}
	h, sector := make([]byte, headerLen), make([]byte, sectorSize)
	for _, off := range offs {
		putRequest(h, cmdRead, 0, off, len(sector))
		if err := errors.Join(c.write(h), c.readFull(h[:replyLen])); err != nil {
			return err
		}
		if failed := binary.BigEndian.Uint32(h[4:]); failed != 0 {
			return fmt.Errorf("read at %d failed with error %d", off, failed)
		}
		if err := c.readFull(sector); err != nil {
			return err
		}
		if err := check(off, sector); err != nil {
			return fmt.Errorf("at %d: %w", off, err)
		}
	}
	return c.close()
}

const sectorSize = 512

// Sample is where up to most of the blocks begin that a Job has written, spread over
// all of them.
func (r *Result) Sample(j Job, most int) (offs []int64) {
	j = j.withDefaults()
	var written []int64
	for i := range j.places() {
		if r.Written.Has(i) {
			written = append(written, j.From+i*j.Stride)
		}
	}
	step := max(len(written)/most, 1)
	for i := int(j.Seed % uint64(step)); i < len(written); i += step {
		offs = append(offs, written[i])
	}
	return offs
}

// CheckStamp requires that a block of a Job's with that seed begins with sector.
func CheckStamp(seed uint64) func(off int64, sector []byte) error {
	return func(off int64, sector []byte) error {
		want := make([]byte, 16)
		if stamp(want, off, seed); !bytes.Equal(want, sector[:16]) {
			return fmt.Errorf("expected % x, found % x", want, sector[:16])
		}
		return nil
	}
}
