package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A reserve is a size, or none, which is not the same as the default.
func TestReserveFlag(t *testing.T) {
	var r reserveFlag
	require.Empty(t, r.String(), "the default")
	require.NoError(t, r.Set("512M"))
	require.EqualValues(t, 512<<20, r)
	require.NoError(t, r.Set("none"))
	require.Negative(t, int64(r))
	require.Equal(t, "none", r.String())
	require.Error(t, r.Set("0"))
	require.Error(t, r.Set("-1"))
	require.Error(t, r.Set("nothing"))
}
