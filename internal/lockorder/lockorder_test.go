package lockorder_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/lockorder"
)

func TestOrder(t *testing.T) {
	var outer, inner lockorder.Mutex
	outer.SetRank(1)
	inner.SetRank(2)
	for range 2 { // what was released does not count
		outer.Lock()
		require.True(t, nested(&inner))
		outer.Unlock()
	}
	inner.Lock()
	require.True(t, outer.TryLock(), "cannot deadlock, so it is allowed")
	outer.Unlock()
	inner.Unlock()
	inner.Lock()
	var wg sync.WaitGroup
	wg.Go(func() { // others hold their own
		outer.Lock()
		defer outer.Unlock()
	})
	wg.Wait()
	if lockorder.Enabled {
		require.Panics(t, outer.Lock)
		require.Panics(t, inner.Lock)
		require.Panics(t, func() { lockorder.Waits("space") })
	}
	inner.Unlock()
	lockorder.Waits("space")
}

func nested(m *lockorder.Mutex) bool {
	m.Lock()
	defer m.Unlock()
	return true
}
