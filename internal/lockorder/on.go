//go:build lockcheck

package lockorder

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
)

// Enabled says whether the order is checked: the build tag lockcheck.
const Enabled = true

// A Mutex is a sync.Mutex with a place in an order.
type Mutex struct {
	mu   sync.Mutex
	rank Rank
}

// SetRank gives the mutex its place, before it is used.
func (m *Mutex) SetRank(r Rank) { m.rank = r }

// Lock panics if the goroutine holds a lock of the same or of a higher rank.
func (m *Mutex) Lock() {
	if m.rank != 0 {
		acquire(m.rank, true)
	}
	m.mu.Lock()
}

// TryLock is not checked.
func (m *Mutex) TryLock() bool {
	if !m.mu.TryLock() {
		return false
	}
	if m.rank != 0 {
		acquire(m.rank, false)
	}
	return true
}

// Unlock may be called by the goroutine that locked only.
func (m *Mutex) Unlock() {
	if m.rank != 0 {
		release(m.rank)
	}
	m.mu.Unlock()
}

// Waits panics if the goroutine holds a ranked lock: it is about to wait for
// something that others may need these locks for.
func Waits(what string) {
	id := goroutine()
	mu.Lock()
	defer mu.Unlock()
	if len(held[id]) > 0 {
		panic(fmt.Sprintf("lock order: waiting for %s while rank %d is held", what, held[id][0]))
	}
}

var (
	mu   sync.Mutex
	held = map[uint64][]Rank{} // by goroutine
)

func acquire(r Rank, check bool) {
	id := goroutine()
	mu.Lock()
	defer mu.Unlock()
	if check {
		for _, h := range held[id] {
			if h >= r {
				panic(fmt.Sprintf("lock order: rank %d is acquired while %d is held", r, h))
			}
		}
	}
	held[id] = append(held[id], r)
}

func release(r Rank) {
	id := goroutine()
	mu.Lock()
	defer mu.Unlock()
	i := slices.Index(held[id], r)
	if i < 0 {
		panic(fmt.Sprintf("lock order: rank %d is released by a goroutine that does not hold it", r))
	}
	if held[id] = slices.Delete(held[id], i, i+1); len(held[id]) == 0 {
		delete(held, id)
	}
}

// goroutine is the number of the calling goroutine, as its stack trace has it.
func goroutine() uint64 {
	var b [64]byte
	fields := bytes.Fields(b[:runtime.Stack(b[:], false)])
	n, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if err != nil {
		panic(fmt.Sprintf("lock order: no number in %q", b[:]))
	}
	return n
}
