package task_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm/task"
)

// Clients start, stop and revert tasks that want each other's locks, and process
// after process is killed somewhere. What holds a lock for itself is alone with it
// from its first step to its last, also over deaths; in the end every task that a
// client was told of has ended, in one way or the other.
func TestManyTasksManyDeaths(t *testing.T) {
	_, rng := testenv.Seed(t)
	goroutines := runtime.NumGoroutine()
	store, w := new(task.MemoryStore), newWorld()
	o := &owners{of: map[string]string{}}
	told := map[uuid.UUID]job{}
	const lives = 30
	for n := range lives {
		killAt := 1 + rng.IntN(300)
		if n == lives-1 {
			killAt = 0
		}
		l := live(t, w, store, killAt, task.Options{Workers: 3, Max: 10000})
		l.owners = o
		l.recover()
		var mu sync.Mutex // guards told
		var wg sync.WaitGroup
		for c := range 4 {
			rng := rand.New(rand.NewPCG(rng.Uint64(), 0))
			wg.Go(func() {
				for k := range 6 {
					j := randomJob(rng, fmt.Sprintf("%d.%d.%d.", n, c, k))
					id, err := l.e.Start(t.Context(), "job", j, task.StartOptions{})
					if err != nil {
						return
					}
					mu.Lock()
					told[id] = j
					mu.Unlock()
					disturb(t.Context(), rng, l.e, id)
				}
			})
		}
		wg.Wait()
		l.settle()
		l.end()
	}
	l := live(t, w, store, 0, task.Options{})
	l.owners = o
	require.Empty(t, l.recover())
	require.Len(t, l.e.All(), len(told))
	ends := map[task.State]int{}
	left := w.get()
	for id, j := range told {
		i, err := l.e.Info(id)
		require.NoError(t, err)
		mine := newWorld()
		for k, v := range left {
			if strings.HasPrefix(k, j.Name) {
				mine.is[k] = v
				delete(left, k)
			}
		}
		requireOutcome(t, mine, j, i, "%+v", j)
		ends[i.State]++
	}
	require.Empty(t, left, "of tasks that nobody was told of")
	t.Logf("%d tasks: %v", len(told), ends)
	require.Positive(t, ends[task.Finished])
	require.Positive(t, ends[task.Failed])
	l.end()
	requireNoMoreGoroutines(t, goroutines)
}

func randomJob(rng *rand.Rand, name string) job {
	j := job{Name: name, Steps: 1 + rng.IntN(4), Fail: -1}
	j.Commit = rng.IntN(j.Steps + 1)
	if rng.IntN(3) == 0 {
		j.Fail = rng.IntN(j.Steps)
	}
	j.Hopeless = j.Fail >= j.Commit && rng.IntN(2) == 0
	j.Revertible = j.Commit == j.Steps && rng.IntN(2) == 0
	for n := range 4 {
		if rng.IntN(2) == 0 {
			j.Locks = append(j.Locks, task.Lock{Name: fmt.Sprint(n), Exclusive: rng.IntN(2) == 0})
		}
	}
	return j
}

// disturb does something to a task, or lets it be.
func disturb(ctx context.Context, rng *rand.Rand, e *task.Engine, id uuid.UUID) {
	switch rng.IntN(5) {
	case 0:
		e.Stop(ctx, id)
	case 1:
		e.Wait(ctx, id)
		e.Revert(ctx, id)
	case 2:
		e.Wait(ctx, id)
	}
}

// owners know who is at work with what is locked.
type owners struct {
	mu sync.Mutex
	of map[string]string // an exclusive lock, and whose it is; a shared one has more
}

var errNotAlone = errors.New("not alone")

// enter notes that a job is at work, until leave.
func (o *owners) enter(j job) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, k := range j.Locks {
		for what, who := range o.of {
			name, mode, _ := strings.Cut(what, " ")
			if name == k.Name && who != j.Name && (k.Exclusive || strings.HasPrefix(mode, "alone")) {
				return fmt.Errorf("%w: %s wants %+v, %s has %s", errNotAlone, j.Name, k, who, what)
			}
		}
	}
	for _, k := range j.Locks {
		o.of[lockOf(k, j)] = j.Name
	}
	return nil
}

func (o *owners) leave(j job) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, k := range j.Locks {
		delete(o.of, lockOf(k, j))
	}
}

func lockOf(k task.Lock, j job) string {
	mode := "shared"
	if k.Exclusive {
		mode = "alone"
	}
	return k.Name + " " + mode + " " + j.Name
}

// requireNoMoreGoroutines waits until those that a test has begun are gone.
func requireNoMoreGoroutines(t *testing.T, before int) {
	t.Helper()
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 }, time.Minute, 5*time.Millisecond) // one is Eventually's
}
