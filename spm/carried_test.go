package spm

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// A file system that volumes write to, and others: what is said without a look at the
// files never is more than what a look finds.
func TestCarriedIsNeverMore(t *testing.T) {
	_, rng := testenv.Seed(t)
	began := time.Unix(1, 0)
	for range 2000 {
		all, used := map[uuid.UUID]*volume{}, map[uuid.UUID]int64{}
		grow := func(v *volume) { v.size += rng.Int64N(100) }
		for range 1 + rng.IntN(5) {
			v := &volume{id: uuid.New()}
			grow(v)
			used[v.id] = rng.Int64N(v.size + 1)
			all[v.id] = v
		}
		free := 500 + rng.Int64N(1000)
		use := func(v *volume) int64 { return used[v.id] }
		c := look(began, free, all, use)
		for id, v := range all {
			switch rng.IntN(5) {
			case 0:
				grow(v)
			case 1: // it writes
				n := rng.Int64N(v.size - used[id] + 1)
				used[id] += n
				free -= n
			case 2:
				delete(all, id)
				free += used[id]
			case 3:
				v := &volume{id: uuid.New()}
				grow(v)
				all[v.id] = v
			}
		}
		now := began.Add(time.Duration(rng.Int64N(int64(carriedFor))))
		left, ok := c.now(now, free, all)
		if !ok {
			continue
		}
		require.LessOrEqual(t, left, free-look(now, free, all, use).owed)
	}
}

func TestCarriedIsLookedAtAgain(t *testing.T) {
	began := time.Unix(1, 0)
	v := &volume{id: uuid.New(), size: 100}
	all := map[uuid.UUID]*volume{v.id: v}
	c := look(began, 300, all, func(*volume) int64 { return 0 })
	left, ok := c.now(began, 280, all)
	require.True(t, ok)
	require.EqualValues(t, 180, left, "others have taken 20")
	_, ok = c.now(began.Add(carriedFor), 300, all)
	require.False(t, ok, "it is old")
	_, ok = c.now(began.Add(-1), 300, all)
	require.False(t, ok, "the clock was set back")
	_, ok = c.now(began, 301, all)
	require.False(t, ok, "somebody has given space back")
	_, ok = c.now(began, 199, all)
	require.False(t, ok, "little is left")
	v.size = 201
	_, ok = c.now(began, 300, all)
	require.False(t, ok, "much was promised since")
	_, ok = new(carried).now(began, 300, all)
	require.False(t, ok, "nobody has looked")
}
