package qcow2_test

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"sync"
	"testing/synctest"

	"tidemark/internal/faultfile"
)

// An interleaver holds every operation of a file that it wants until it is chosen, so
// that a test sees all orders in which requests that run at once can reach the file.
// It runs in a bubble of testing/synctest: nobody may hold a mutex that others need
// during an operation that it wants.
type interleaver struct {
	want func(faultfile.Op) bool

	mu     sync.Mutex
	waits  []*stop
	ops    []faultfile.Op // of waits
	opened bool           // nothing is held any more
}

func interleave(f *faultfile.File, want func(faultfile.Op) bool) *interleaver {
	i := &interleaver{want: want}
	f.Hook(i.meet, nil)
	return i
}

func (i *interleaver) meet(op faultfile.Op) {
	if i.want(op) {
		i.hold(op)
	}
}

func (i *interleaver) hold(op faultfile.Op) {
	i.mu.Lock()
	if i.opened {
		i.mu.Unlock()
		return
	}
	p := &stop{gone: make(chan struct{})}
	i.waits, i.ops = append(i.waits, p), append(i.ops, op)
	i.mu.Unlock()
	<-p.gone
}

// begin holds the request number n until it is chosen to begin.
func (i *interleaver) begin(n int) { i.hold(faultfile.Op{Off: int64(n)}) }

// run lets operations go one by one, the one that choice says of those that wait, the
// first one where choice has ended. It returns when nothing waits, with how many there
// were to choose from each time.
func (i *interleaver) run(choice []int) (from []int) {
	for {
		synctest.Wait()
		i.mu.Lock()
		n := len(i.waits)
		if n == 0 {
			i.opened = true
			i.mu.Unlock()
			return from
		}
		order := make([]int, n) // of arrival, or whatever else is not the test's
		for k := range order {
			order[k] = k
		}
		slices.SortFunc(order, func(a, b int) int {
			return cmp.Or(cmp.Compare(i.ops[a].Kind, i.ops[b].Kind), cmp.Compare(i.ops[a].Off, i.ops[b].Off))
		})
		k := 0
		if len(from) < len(choice) {
			k = choice[len(from)] % n
		}
		from = append(from, n)
		p := i.waits[order[k]]
		i.waits = slices.Delete(i.waits, order[k], order[k]+1)
		i.ops = slices.Delete(i.ops, order[k], order[k]+1)
		i.mu.Unlock()
		close(p.gone)
	}
}

// allOrders calls run with choices until all have been made, and returns how many
// there were.
func allOrders(run func(choice []int) (from []int)) (n int) {
	var choice []int
	for {
		from := run(choice)
		n++
		for len(choice) < len(from) {
			choice = append(choice, 0)
		}
		choice = choice[:len(from)]
		last := len(choice) - 1
		for last >= 0 && choice[last]+1 >= from[last] {
			last--
		}
		if last < 0 {
			return n
		}
		choice = choice[:last+1]
		choice[last]++
	}
}

// someOrders calls run with n random choices.
func someOrders(rng *rand.Rand, n int, run func(choice []int) (from []int)) {
	for range n {
		choice := make([]int, 64)
		for k := range choice {
			choice[k] = rng.IntN(1 << 20)
		}
		run(choice)
	}
}
