package swap

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// TestRangeIsHadInTurn: who wants a large range has it when those are through that came
// before, although there is always somebody who has a part of it.
func TestRangeIsHadInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		var r ranges
		var others sync.WaitGroup
		for i := range int64(4) {
			others.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				for ctx.Err() == nil {
					h, err := r.lock(t.Context(), i*4096, 4096)
					if err != nil {
						t.Error(err)
						return
					}
					time.Sleep(4 * time.Millisecond)
					r.unlock(h)
				}
			})
		}
		time.Sleep(time.Second)
		began := time.Now()
		h, err := r.lock(ctx, 0, 1<<20)
		require.NoError(t, err)
		require.LessOrEqual(t, time.Since(began), 4*time.Millisecond)
		r.unlock(h)
		stop()
		others.Wait()
	})
}

// TestRangeIsWaitedForInPatience: who has a range may wait for space, and whoever wants it
// meanwhile waits for no longer than he would for space himself. He is in nobody's way
// afterwards.
func TestRangeIsWaitedForInPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r ranges
		first, err := r.lock(t.Context(), 0, 8192)
		require.NoError(t, err)
		began := time.Now()
		patience, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		gone := errors.New("the client is gone")
		leaves, leave := context.WithCancelCause(t.Context())
		left := make(chan error, 1)
		go func() {
			_, err := r.lock(leaves, 4096, 8192)
			left <- err
		}()
		synctest.Wait()
		leave(gone)
		require.ErrorIs(t, <-left, gone)
		_, err = r.lock(patience, 4096, 8192)
		require.ErrorIs(t, err, block.ErrNoSpace)
		require.Equal(t, 20*time.Second, time.Since(began))
		behind, err := r.lock(t.Context(), 8192, 4096)
		require.NoError(t, err)
		r.unlock(first)
		r.unlock(behind)
		require.Empty(t, r.held)
	})
}
