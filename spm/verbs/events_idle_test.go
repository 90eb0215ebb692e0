package verbs

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/spm"
	"tidemark/spm/storagetest"
)

// A stream without events gives a sign of life, and one whose client has gone, or
// whose storage has, ends.
func TestIdleStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &storagetest.Fake{}
		h := eventsHandler{f}
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		events, err := h.next(ctx, 0)
		require.NoError(t, err)
		require.Empty(t, events)
		require.Equal(t, eventsIdle, time.Since(began))

		time.AfterFunc(time.Second, func() { f.Tell(spm.Event{Kind: spm.EventTask}) })
		events, err = h.next(ctx, 0)
		require.NoError(t, err)
		require.Len(t, events, 1)

		time.AfterFunc(time.Second, cancel)
		_, err = h.next(ctx, 1)
		require.ErrorIs(t, err, context.Canceled)

		_, err = eventsHandler{gone{}}.next(t.Context(), 0)
		require.ErrorContains(t, err, "stopping")
	})
}

// gone is storage that is going away.
type gone struct{ spm.Storage }

func (gone) WatchStorage(context.Context, int64) ([]spm.Event, error) {
	return nil, &spm.Error{Code: spm.CodeStopping, Message: "stopping"}
}
