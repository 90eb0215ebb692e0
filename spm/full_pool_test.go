package spm

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// fullPool runs a test in a bubble, over a pool that "big" has used up but for a
// chunk of "a" and "b" each.
func fullPool(t *testing.T, test func(t *testing.T, m *Manager)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m, err := openManager(dir, testOptions())
		require.NoError(t, err)
		_, err = m.CreateVolume(t.Context(), VolumeCreateRequest{Name: "big", Size: 2*gib - 2*chunkSize, Format: FormatRaw})
		require.NoError(t, err)
		create(t, m, "a", 10*gib)
		create(t, m, "b", 10*gib)
		require.Zero(t, pool(t, m).Free)
		test(t, m)
		requireSum(t, m)
		require.NoError(t, m.Close())
	})
}

// extendLater extends in a goroutine and returns where its error arrives.
func extendLater(ctx context.Context, m *Manager, name string, need int64, wait time.Duration) chan error {
	done := make(chan error, 1)
	r := extendRequest(name, need, need)
	r.WaitMS = wait.Milliseconds()
	go func() {
		_, err := m.ExtendVolume(ctx, r)
		done <- err
	}()
	synctest.Wait()
	return done
}

func held(t *testing.T, done chan error) {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-done:
		t.Fatalf("the request has been answered (%v), expected it to be held", err)
	default:
	}
}

func TestFullPoolHoldsAndResumes(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		began := time.Now()
		done := extendLater(t.Context(), m, "a", 200*mib, time.Hour)
		time.Sleep(time.Minute)
		held(t, done)
		waiting := pool(t, m).Waiting
		require.Len(t, waiting, 1)
		require.Equal(t, "a", waiting[0].Name)
		require.EqualValues(t, 200*mib-chunkSize, waiting[0].Bytes)
		require.Equal(t, began.UTC(), waiting[0].Since)
		require.EqualValues(t, chunkSize, extend(t, m, "a", chunkSize, gib), "headroom is not granted, and not waited for")
		removed := time.Now()
		remove(t, m, "big")
		require.NoError(t, <-done)
		require.LessOrEqual(t, time.Since(removed), time.Second)
		require.Empty(t, pool(t, m).Waiting)
	})
}

// Who waits alone gets its headroom with its need.
func TestFullPoolHeadroomOfTheOnlyOne(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		r := extendRequest("a", 200*mib, 300*mib)
		r.WaitMS = time.Hour.Milliseconds()
		done := make(chan int64, 1)
		go func() {
			reply, err := m.ExtendVolume(t.Context(), r)
			require.NoError(t, err)
			done <- reply.Size
		}()
		synctest.Wait()
		require.Len(t, pool(t, m).Waiting, 1)
		remove(t, m, "big")
		require.EqualValues(t, 300*mib, <-done)
	})
}

// Whose turn it is gets its need and no headroom while another one waits; and a task,
// which does not wait, passes nobody who does.
func TestFullPoolOthersWait(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		r := extendRequest("a", 200*mib, 300*mib)
		r.WaitMS = time.Hour.Milliseconds()
		a := make(chan int64, 1)
		go func() {
			reply, err := m.ExtendVolume(t.Context(), r)
			require.NoError(t, err)
			a <- reply.Size
		}()
		synctest.Wait()
		b := extendLater(t.Context(), m, "b", gib, time.Hour)
		require.NoError(t, m.RaiseCapacity(t.Context(), 2*gib+300*mib))
		require.EqualValues(t, 200*mib, <-a)
		held(t, b)

		v := volumeOf(t, m, "a")
		require.EqualValues(t, 228*mib, pool(t, m).Free)
		grant := func() error {
			return m.grantAtLeast(t.Context(), uuid.MustParse(v.ImageUUID), uuid.MustParse(v.VolumeUUID), 250*mib, false)
		}
		requireCode(t, CodePoolFull, grant())
		require.NoError(t, m.RaiseCapacity(t.Context(), 4*gib))
		require.NoError(t, <-b)
		require.NoError(t, grant())
	})
}

// A client whose long poll has ended comes back at once: its place is kept, and
// who came later does not pass it.
func TestFullPoolHandleKeepsItsPlace(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		began := time.Now()
		h, err := m.Volume(t.Context(), VolumeRef{Volume: "a"})
		require.NoError(t, err)
		done := make(chan error, 1)
		go func() {
			_, err := h.Extend(t.Context(), gib, gib)
			done <- err
		}()
		synctest.Wait()
		b := extendLater(t.Context(), m, "b", 200*mib, time.Hour)
		time.Sleep(10*extendPoll + time.Millisecond)
		waiting := pool(t, m).Waiting
		require.Len(t, waiting, 2)
		require.Equal(t, "a", waiting[0].Name)
		require.Equal(t, began.UTC(), waiting[0].Since)
		remove(t, m, "big")
		require.NoError(t, <-done)
		require.NoError(t, <-b)
	})
}

func TestFullPoolIsServedInOrder(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		a := extendLater(t.Context(), m, "a", gib, time.Hour)
		b := extendLater(t.Context(), m, "b", 129*mib, time.Hour)
		require.NoError(t, m.RaiseCapacity(t.Context(), 2*gib+2*mib))
		held(t, a)
		held(t, b) // it would fit, but it is not its turn
		_, err := m.CreateVolume(t.Context(), VolumeCreateRequest{Name: "c", Size: mib})
		requireCode(t, CodePoolFull, err)
		require.NoError(t, m.RaiseCapacity(t.Context(), 3*gib))
		require.NoError(t, <-a)
		require.NoError(t, <-b)
	})
}

func TestFullPoolWaitHasAnEnd(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		began := time.Now()
		_, err := m.ExtendVolume(t.Context(), extendRequest("a", gib, gib))
		requireCode(t, CodePoolFull, err)
		require.Zero(t, time.Since(began))
		require.Empty(t, pool(t, m).Waiting, "who does not wait has no place")

		err = <-extendLater(t.Context(), m, "a", gib, 3*time.Second)
		requireCode(t, CodePoolFull, err)
		require.Equal(t, 3*time.Second, time.Since(began))
		require.Len(t, pool(t, m).Waiting, 1, "the place is kept for a moment")
		b := extendLater(t.Context(), m, "b", 200*mib, time.Hour)
		a := extendLater(t.Context(), m, "a", gib, time.Hour)
		waiting := pool(t, m).Waiting
		require.Equal(t, "a", waiting[0].Name, "and is still the first")
		require.Equal(t, began.UTC(), waiting[0].Since)
		remove(t, m, "big")
		require.NoError(t, <-a)
		require.NoError(t, <-b)
	})
}

func TestFullPoolPlaceEnds(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		requireCode(t, CodePoolFull, <-extendLater(t.Context(), m, "a", gib, time.Second))
		time.Sleep(time.Second)
		synctest.Wait()
		require.Empty(t, pool(t, m).Waiting)
	})
}

func TestFullPoolClientHangsUp(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		ctx, cancel := context.WithCancel(t.Context())
		a := extendLater(ctx, m, "a", gib, time.Hour)
		b := extendLater(t.Context(), m, "b", 129*mib, time.Hour)
		require.NoError(t, m.RaiseCapacity(t.Context(), 2*gib+mib))
		held(t, b)
		hungUp := time.Now()
		cancel()
		require.ErrorIs(t, <-a, context.Canceled)
		require.NoError(t, <-b)
		require.Zero(t, time.Since(hungUp), "the next one has its turn at once")
		require.Empty(t, pool(t, m).Waiting)
	})
}

func TestFullPoolVolumeRemovedWhileItWaits(t *testing.T) {
	fullPool(t, func(t *testing.T, m *Manager) {
		a := extendLater(t.Context(), m, "a", gib, time.Hour)
		remove(t, m, "a")
		requireCode(t, CodeNotFound, <-a)
		require.Empty(t, pool(t, m).Waiting)
	})
}

func TestFullPoolCloseAnswers(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m, err := openManager(dir, testOptions())
		require.NoError(t, err)
		create(t, m, "a", 10*gib)
		a := extendLater(t.Context(), m, "a", 3*gib, time.Hour)
		require.NoError(t, m.Close())
		requireCode(t, CodeStopping, <-a)
		_, err = m.GetPoolInfo(t.Context(), PoolInfoRequest{})
		requireCode(t, CodeStopping, err)
	})
}

func TestFullHostIsReadAgain(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		host := int64(chunkSize)
		o := testOptions()
		o.HostFree = func(string) (int64, error) {
			mu.Lock()
			defer mu.Unlock()
			return host, nil
		}
		m, err := openManager(dir, o)
		require.NoError(t, err)
		create(t, m, "a", 10*gib)
		a := extendLater(t.Context(), m, "a", gib, time.Hour)
		time.Sleep(time.Minute)
		held(t, a)
		mu.Lock()
		host = 10 * gib
		mu.Unlock()
		began := time.Now()
		require.NoError(t, <-a)
		require.LessOrEqual(t, time.Since(began), 500*time.Millisecond)
		require.NoError(t, m.Close())
	})
}
