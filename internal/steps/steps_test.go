package steps_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/steps"
)

func TestObserve(t *testing.T) {
	var first, second []string
	stop := steps.Observe(func(s string) { first = append(first, s) })
	steps.At("A1")
	stopSecond := steps.Observe(func(s string) { second = append(second, s) })
	steps.At("A2")
	stop()
	steps.At("A3")
	stopSecond()
	steps.At("A4")
	if !steps.Enabled {
		require.Empty(t, first)
		require.Empty(t, second)
		return
	}
	require.Equal(t, []string{"A1", "A2"}, first)
	require.Equal(t, []string{"A2", "A3"}, second)
}

func TestAtIsFree(t *testing.T) {
	require.Zero(t, testing.AllocsPerRun(100, func() { steps.At("A1") }))
}
