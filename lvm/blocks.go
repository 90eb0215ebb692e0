package lvm

import (
	"slices"
	"sync"
)

// blockLocks keep writers of whole blocks and those that read, modify and write
// a block out of each other's way. A shared range excludes exclusive ones that
// it overlaps; shared ranges do not exclude each other. Readers take none: they
// see a block before or after it is written, and its other bytes do not change.
type blockLocks struct {
	mu        sync.Mutex
	left      sync.Cond // a range was given back
	held      []blockRange
	exclusive int // of those that are held
	waiting   int
}

type blockRange struct {
	from, to  int64
	exclusive bool
}

func newBlockLocks() *blockLocks {
	l := &blockLocks{}
	l.left.L = &l.mu
	return l
}

// lock waits until no other holder is in the way.
func (l *blockLocks) lock(from, to int64, exclusive bool) blockRange {
	r := blockRange{from, to, exclusive}
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.blockedLocked(r) {
		l.waiting++
		l.left.Wait()
		l.waiting--
	}
	l.held = append(l.held, r)
	if exclusive {
		l.exclusive++
	}
	return r
}

// tryLock takes a shared range unless another holder is in the way.
func (l *blockLocks) tryLock(from, to int64) (blockRange, bool) {
	r := blockRange{from, to, false}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.blockedLocked(r) {
		return r, false
	}
	l.held = append(l.held, r)
	return r, true
}

// drain waits until nothing is held. Nobody who comes from now on may stay.
func (l *blockLocks) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.held) > 0 {
		l.waiting++
		l.left.Wait()
		l.waiting--
	}
}

func (l *blockLocks) blockedLocked(r blockRange) bool {
	if !r.exclusive && l.exclusive == 0 {
		return false // as nearly always
	}
	for _, h := range l.held {
		if h.from < r.to && r.from < h.to && (h.exclusive || r.exclusive) {
			return true
		}
	}
	return false
}

// unlock gives a range back. Which of several equal ones it is does not matter.
func (l *blockLocks) unlock(r blockRange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i, last := slices.Index(l.held, r), len(l.held)-1
	l.held[i] = l.held[last]
	l.held = l.held[:last]
	if r.exclusive {
		l.exclusive--
	}
	if l.waiting > 0 {
		l.left.Broadcast()
	}
}
