package spm

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Who watches is told when a wait begins and when it is over, and the volume says
// that it waits.
func TestEventsOfAWait(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		none, err := m.WatchPool(t.Context(), PoolWatchRequest{})
		require.NoError(t, err)
		require.Len(t, none.Events, 1)
		require.Equal(t, EventTight, none.Events[0].Kind, "the pool is full")
		require.True(t, none.Tight)
		began := time.Now()
		replies := make(chan PoolWatchReply, 1)
		watch := func(after int64) {
			r, err := m.WatchPool(t.Context(), PoolWatchRequest{After: after, WaitMS: time.Hour.Milliseconds()})
			require.NoError(t, err)
			replies <- r
		}
		go watch(none.Last)
		done := extendLater(t.Context(), m, "a", 200*mib, time.Hour)
		first := <-replies
		require.Equal(t, []Event{{
			Number: 2, Time: began.UTC(), Kind: EventWaits, Name: "a", VolumeUUID: volumeOf(t, m, "a").VolumeUUID,
			Bytes: 200*mib - chunkSize, Since: began.UTC(), DomainUUID: m.ident.domain.String(),
		}}, first.Events)
		require.EqualValues(t, 200*mib-chunkSize, volumeOf(t, m, "a").Waiting.Bytes)
		require.Nil(t, volumeOf(t, m, "b").Waiting)

		go watch(first.Last)
		time.Sleep(time.Minute)
		remove(t, m, "big")
		require.NoError(t, <-done)
		second := <-replies
		require.NotEmpty(t, second.Events)
		require.Equal(t, EventWaitsNoMore, second.Events[0].Kind)
		require.True(t, second.Events[0].Granted)
		require.Equal(t, began.UTC(), second.Events[0].Since)
		require.Nil(t, volumeOf(t, m, "a").Waiting)
		all, err := m.WatchPool(t.Context(), PoolWatchRequest{After: 99})
		require.NoError(t, err)
		require.Equal(t, []string{EventTight, EventWaits, EventWaitsNoMore, EventTightNoMore}, kinds(all.Events),
			"a number of a manager before this one: everything")
		require.False(t, all.Tight)
	})
}

func kinds(all []Event) (out []string) {
	for _, e := range all {
		out = append(out, e.Kind)
	}
	return out
}

// Only so many are remembered, and a wait for events has an end.
func TestEventsAreBounded(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		for range waitsKept + 10 {
			m.mu.Lock()
			m.noteLocked(Event{Kind: EventWaits})
			m.mu.Unlock()
		}
		r, err := m.WatchPool(t.Context(), PoolWatchRequest{})
		require.NoError(t, err)
		require.Len(t, r.Events, waitsKept)
		require.EqualValues(t, 12, r.Events[0].Number)
		began := time.Now()
		r, err = m.WatchPool(t.Context(), PoolWatchRequest{After: r.Last, WaitMS: 5000})
		require.NoError(t, err)
		require.Empty(t, r.Events)
		require.Equal(t, 5*time.Second, time.Since(began))
	})
}
