package load

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// An Op is what a Job's requests do.
type Op int

// The operations.
const (
	Write Op = iota
	Read
	Trim
)

// A Job says what to ask of a server.
type Job struct {
	Op     Op
	Block  int   // bytes of a request, a multiple of 512
	From   int64 // where on the disk the part begins that is used, a multiple of 512
	Set    int64 // bytes of that part
	Stride int64 // where requests may begin: multiples of this; 0 means Block
	// Sequential: one after the other, from the begin of the part; otherwise at random. A
	// random Job with Once asks no place twice, and ends when it has had all.
	Sequential, Once bool
	Depth            int // requests in flight on a connection
	Conns            int
	FlushEach        bool // a FLUSH after every write, one at a time: Depth must be 1
	Duration         time.Duration
	Seed             uint64
	// Window makes a Histogram for every such part of the time as well; 0: it does not.
	Window time.Duration
}

func (j Job) withDefaults() Job {
	j.Depth, j.Conns = max(j.Depth, 1), max(j.Conns, 1)
	if j.Stride == 0 {
		j.Stride = int64(j.Block)
	}
	return j
}

func (j Job) check() error {
	switch {
	case j.Block < 512 || j.Block%512 != 0:
		return fmt.Errorf("blocks of %d bytes: expected a multiple of 512", j.Block)
	case j.Set < j.Stride*int64(j.Conns):
		return fmt.Errorf("a set of %d bytes: expected at least a place for each connection", j.Set)
	case j.FlushEach && j.Depth != 1:
		return fmt.Errorf("a flush after every write with %d in flight: expected 1", j.Depth)
	}
	return nil
}

// places is how many places a request may begin at.
func (j Job) places() int64 { return j.Set / j.Stride }

// A walk yields the places of one connection's requests: its own part of the set, if
// they must not meet.
type walk struct {
	first, n int64
	next     int64
	step     int64 // 0: at random
	once     bool
	rng      *rand.Rand
}

// walkOf is the walk of connection i.
func (j Job) walkOf(i int) *walk {
	n := j.places() / int64(j.Conns)
	w := &walk{first: int64(i) * n, n: n, once: j.Once, rng: rand.New(rand.NewPCG(j.Seed, uint64(i)))}
	switch {
	case j.Sequential:
		w.step = 1
	case j.Once:
		w.step = coprime(n)
	default: // anywhere
		w.first, w.n = 0, j.places()
	}
	return w
}

// coprime is a number near the golden section of n that has no divisor with it, so
// that its multiples visit every place once, far from each other.
func coprime(n int64) int64 {
	for s := n*5/8 | 1; ; s += 2 {
		if gcd(s, n) == 1 {
			return s
		}
	}
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// at is the next place; false: there are no more.
func (w *walk) at() (int64, bool) {
	if w.step == 0 {
		return w.rng.Int64N(w.n), true
	}
	if w.next >= w.n && w.once {
		return 0, false
	}
	p := w.first + w.next*w.step%w.n
	w.next++
	return p, true
}
