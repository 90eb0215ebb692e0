package task

import (
	"context"
	"slices"
	"strings"
	"sync"
)

// Locks is a table of named resources. Each is held by one, or shared by several.
// Its zero value is ready to use.
//
// Who needs several takes them in the order of their names, so that nobody waits
// for somebody who waits for him. Each is given first come, first served: who
// wants to share waits behind one who wants it alone and came before, or that one
// would starve.
type Locks struct {
	mu    sync.Mutex // guards everything below, and the claims
	queue map[string][]*wait
}

// A claim is the locks of one task, taken or waited for.
type claim struct {
	locks []Lock // in the order of their names, each once
	taken int    // how many of them it has; it is in the queue of one more
	ready chan struct{}
	gone  bool
	brief bool // of Try
}

// A wait is a claim's place in the queue of a resource. Those who hold it are in
// front.
type wait struct {
	c         *claim
	exclusive bool
	held      bool
}

// Acquire takes all locks, or returns an error because ctx has ended and holds
// none. Release may be called more than once.
func (l *Locks) Acquire(ctx context.Context, locks []Lock) (release func(), err error) {
	c := l.enter(locks)
	select {
	case <-c.ready:
		return func() { l.leave(c) }, nil
	default:
	}
	select {
	case <-c.ready:
		return func() { l.leave(c) }, nil
	case <-ctx.Done():
		l.leave(c)
		return nil, context.Cause(ctx)
	}
}

// Try takes all locks for a moment, unless somebody has one, or waits for it. [Locks.Alone]
// does not count it.
func (l *Locks) Try(locks []Lock) (release func(), ok bool) {
	c := &claim{locks: inOrder(locks), ready: make(chan struct{}), brief: true}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range c.locks {
		if len(l.queue[k.Name]) > 0 {
			return nil, false
		}
	}
	l.startLocked(c)
	return func() { l.leave(c) }, true
}

// Alone reports whether somebody has a resource for himself.
func (l *Locks) Alone(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue[name]
	return len(q) > 0 && q[0].held && q[0].exclusive && !q[0].c.brief
}

// enter begins to take locks: it has its place behind everybody who came before,
// and c.ready is closed when it has them all.
func (l *Locks) enter(locks []Lock) *claim {
	c := &claim{locks: inOrder(locks), ready: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.startLocked(c)
	return c
}

func (l *Locks) startLocked(c *claim) {
	if l.queue == nil {
		l.queue = map[string][]*wait{}
	}
	l.advanceLocked(c)
}

// leave gives back what a claim has, and its place in a queue.
func (l *Locks) leave(c *claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.gone {
		return
	}
	c.gone = true
	for _, k := range c.locks[:min(c.taken+1, len(c.locks))] {
		q := slices.DeleteFunc(l.queue[k.Name], func(w *wait) bool { return w.c == c })
		l.queue[k.Name] = q
		if len(q) == 0 {
			delete(l.queue, k.Name)
		}
		l.grantLocked(k.Name)
	}
}

// advanceLocked takes what a claim can have at once and enters the queue of the
// first that it cannot.
func (l *Locks) advanceLocked(c *claim) {
	for c.taken < len(c.locks) {
		k := c.locks[c.taken]
		w := &wait{c: c, exclusive: k.Exclusive}
		l.queue[k.Name] = append(l.queue[k.Name], w)
		if !grantable(l.queue[k.Name], len(l.queue[k.Name])-1) {
			return
		}
		w.held = true
		c.taken++
	}
	close(c.ready)
}

// grantLocked gives a resource to those who are next.
func (l *Locks) grantLocked(name string) {
	q := slices.Clone(l.queue[name]) // a claim that advances enters other queues
	for i, w := range q {
		if w.held {
			continue
		}
		if !grantable(q, i) {
			return
		}
		w.held = true
		w.c.taken++
		l.advanceLocked(w.c)
	}
}

// grantable reports whether the i-th in a queue may have the resource now: it is
// the first, or shares it with everybody before it.
func grantable(q []*wait, i int) bool {
	if i == 0 {
		return true
	}
	if q[i].exclusive {
		return false
	}
	return !slices.ContainsFunc(q[:i], func(w *wait) bool { return w.exclusive })
}

// inOrder sorts locks by name. Of those with one name it leaves the strongest.
func inOrder(locks []Lock) []Lock {
	out := slices.Clone(locks)
	slices.SortFunc(out, func(a, b Lock) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		switch {
		case a.Exclusive == b.Exclusive:
			return 0
		case a.Exclusive:
			return -1
		}
		return 1
	})
	return slices.CompactFunc(out, func(a, b Lock) bool { return a.Name == b.Name })
}
