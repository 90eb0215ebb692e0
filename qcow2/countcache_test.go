package qcow2

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCountsStayFew: what is dirty, or being written, stays; it is too much from a
// number on, and leaves when it has been written.
func TestCountsStayFew(t *testing.T) {
	const size, room = 512, 100
	c := newCountCache(room * size)
	put := func(n int64, dirty bool) {
		s := &countSlice{data: make([]byte, size)}
		c.put(n, s)
		if dirty {
			c.markDirty(s)
		}
	}
	for n := range int64(2 * room) {
		put(n, false)
		require.LessOrEqual(t, len(c.m), room)
		require.NotNil(t, c.get(n))
	}
	for n := range int64(2 * room) {
		put(1000+n, true)
		require.Equal(t, n >= room, c.over(), "%d are dirty", n+1)
	}
	_, finish := c.stage()
	put(2000, false)
	require.Len(t, c.m, 2*room+1, "what is being written stays")
	finish(errors.New("failed"))
	require.Len(t, c.dirty, 2*room, "and is dirty if that failed")
	require.GreaterOrEqual(t, len(c.m), 2*room)
	_, finish = c.stage()
	finish(nil)
	require.False(t, c.over())
	require.Len(t, c.m, room)
}
