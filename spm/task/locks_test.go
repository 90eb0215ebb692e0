package task

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

func exclusive(names ...string) (locks []Lock) {
	for _, n := range names {
		locks = append(locks, Lock{n, true})
	}
	return locks
}

func shared(names ...string) (locks []Lock) {
	for _, n := range names {
		locks = append(locks, Lock{n, false})
	}
	return locks
}

func (c *claim) has() bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}

func TestLocks(t *testing.T) {
	var l Locks
	a := l.enter(shared("x"))
	b := l.enter(shared("x", "x"))
	require.True(t, a.has() && b.has(), "shared")
	c := l.enter(exclusive("x"))
	d := l.enter(shared("x"))
	e := l.enter(shared("x"))
	f := l.enter(exclusive("x"))
	require.False(t, c.has() || d.has(), "nobody passes who came before")
	l.leave(a)
	require.False(t, c.has())
	l.leave(b)
	require.True(t, c.has())
	require.False(t, d.has())
	l.leave(c)
	l.leave(c) // twice is once
	require.True(t, d.has() && e.has())
	require.False(t, f.has())
	l.leave(d)
	require.False(t, f.has())
	l.leave(e)
	require.True(t, f.has())
	l.leave(f)
	require.Empty(t, l.queue)
	require.True(t, l.enter(nil).has(), "none at all")
}

// Try takes what nobody has or waits for, and is not taken for somebody who has it.
func TestLocksTry(t *testing.T) {
	var l Locks
	a := l.enter(exclusive("x"))
	_, ok := l.Try(exclusive("y", "x"))
	require.False(t, ok, "taken")
	require.True(t, l.Alone("x"))
	l.leave(a)
	require.Empty(t, l.queue, "nothing is left of who had to go")
	b := l.enter(shared("x"))
	_, ok = l.Try(shared("x"))
	require.False(t, ok, "shared")
	l.leave(b)
	release, ok := l.Try(exclusive("y", "x"))
	require.True(t, ok)
	require.False(t, l.Alone("x"))
	c := l.enter(exclusive("x"))
	require.False(t, c.has())
	_, ok = l.Try(exclusive("x"))
	require.False(t, ok, "for a moment, but taken")
	release()
	release()
	require.True(t, c.has() && l.Alone("x"))
	l.leave(c)
	require.Empty(t, l.queue)
}

// The strongest of several demands for one name counts.
func TestLocksOfOneName(t *testing.T) {
	require.Equal(t, []Lock{{"a", false}, {"b", true}, {"c", true}},
		inOrder([]Lock{{"c", true}, {"b", false}, {"a", false}, {"b", true}, {"b", false}, {"a", false}}))
}

// Who waits in the middle holds what comes before in the order of names, and
// nothing behind.
func TestLocksAreTakenInOrder(t *testing.T) {
	var l Locks
	b := l.enter(exclusive("b"))
	all := l.enter(exclusive("c", "b", "a"))
	require.False(t, l.enter(exclusive("a")).has(), "it is taken")
	c := l.enter(exclusive("c"))
	require.True(t, c.has(), "it is not taken yet")
	l.leave(b)
	require.False(t, all.has())
	l.leave(c)
	require.True(t, all.has())
}

// Who gives up lets those behind him pass, wherever he stood.
func TestLocksGivenUp(t *testing.T) {
	var l Locks
	a := l.enter(shared("x"))
	b := l.enter(exclusive("w", "x", "y"))
	c := l.enter(shared("x"))
	d := l.enter(exclusive("w"))
	require.False(t, b.has() || c.has() || d.has())
	l.leave(b)
	require.True(t, c.has() && d.has())
	for _, k := range []*claim{a, c, d} {
		l.leave(k)
	}
	require.Empty(t, l.queue)
}

func TestAcquireIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Locks
		release, err := l.Acquire(t.Context(), exclusive("x"))
		require.NoError(t, err)
		gone := errors.New("the client has gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		got := make(chan error)
		go func() {
			_, err := l.Acquire(ctx, exclusive("x", "a"))
			got <- err
		}()
		synctest.Wait()
		require.Contains(t, l.queue, "a")
		cancel(gone)
		require.ErrorIs(t, <-got, gone)
		require.NotContains(t, l.queue, "a")
		release()
		release()
		require.Empty(t, l.queue)
	})
}

// Many take many, in all orders; nobody waits for ever, exclusive is exclusive, and
// nothing is left.
func TestLocksAtRandom(t *testing.T) {
	_, rng := testenv.Seed(t)
	var l Locks
	const names, users = 5, 12
	var held [names]atomic.Int64 // shared: 1 each; exclusive: 1000
	var wg sync.WaitGroup
	for range users {
		rng := rand.New(rand.NewPCG(rng.Uint64(), 0))
		wg.Go(func() {
			for range 300 {
				ctx, cancel := context.WithCancel(t.Context())
				if rng.IntN(4) == 0 {
					go cancel()
				}
				var locks []Lock
				for n := range names {
					if rng.IntN(2) == 0 {
						locks = append(locks, Lock{fmt.Sprint(n), rng.IntN(2) == 0})
					}
				}
				rng.Shuffle(len(locks), func(i, j int) { locks[i], locks[j] = locks[j], locks[i] })
				release, err := l.Acquire(ctx, locks)
				if err == nil {
					hold(t, &held, locks, 1)
					hold(t, &held, locks, -1)
					release()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	require.Empty(t, l.queue)
}

func hold(t *testing.T, held *[5]atomic.Int64, locks []Lock, sign int64) {
	for _, k := range locks {
		n := k.Name[0] - '0'
		if k.Exclusive {
			if v := held[n].Add(1000 * sign); v != 500*(sign+1) {
				t.Errorf("%s is exclusive and %d", k.Name, v)
			}
		} else if v := held[n].Add(sign); v >= 1000 {
			t.Errorf("%s is shared and %d", k.Name, v)
		}
	}
}
