package main

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Volumes cross together: none is answered before all have asked. What the round took is
// until the last one was answered, and not the sum; of several rounds it is the longest's.
func TestCrossAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c crossing
		for _, slowest := range []time.Duration{2, 5, 3} {
			volumes := []time.Duration{time.Second, slowest * time.Second, time.Second}
			var asked atomic.Int32
			all := make(chan struct{})
			require.NoError(t, crossOnce(&c, volumes, func(takes time.Duration) error {
				if asked.Add(1) == int32(len(volumes)) {
					close(all)
				}
				select {
				case <-all:
				case <-time.After(time.Minute):
					return errors.New("the others have not asked")
				}
				time.Sleep(takes)
				return nil
			}))
		}
		is := c.cell(onLVM, 3)
		require.Equal(t, cell{Pool: onLVM, Op: opExtend, At: 3, N: 9, P50: 1000, P99: 5000, Max: 5000, All: 5000}, is)
		require.Error(t, crossOnce(&c, []int{1, 2}, func(i int) error {
			if i == 2 {
				return errors.New("refused")
			}
			return nil
		}))
	})
}
