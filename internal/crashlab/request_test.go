package crashlab

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

func TestScriptsAreReadAsWritten(t *testing.T) {
	_, rng := testenv.Seed(t)
	s := Shape{Size: 100, Cluster: 8, Table: 32, Amend: true}
	for range 50 {
		script := s.Random(rng, 30, 3)
		again, err := Parse(Format(script))
		require.NoError(t, err)
		require.Equal(t, script, again)
	}
	for _, bad := range []string{"nothing", "write", "write 3", "write a+b", "resize", "flush@x"} {
		_, err := Parse(bad)
		require.ErrorContains(t, err, bad)
	}
}

// TestRandomScriptsAreInRange: also of a disk that grows in the meantime.
func TestRandomScriptsAreInRange(t *testing.T) {
	_, rng := testenv.Seed(t)
	s := Shape{Size: 100, Cluster: 8, Table: 32, Amend: true}
	seen := map[Kind]bool{}
	for range 200 {
		size := s.Size
		for _, r := range s.Random(rng, 30, 2) {
			seen[r.Kind] = true
			if r.Kind == Resize {
				require.GreaterOrEqual(t, r.N, size)
				size = r.N
			}
			require.GreaterOrEqual(t, r.First, int64(0))
			if r.Kind <= Discard {
				require.Positive(t, r.N)
				require.LessOrEqual(t, r.First+r.N, size)
			}
		}
	}
	for k := Write; k < kindEnd; k++ {
		require.True(t, seen[k], "%v", k)
	}
}

func TestSequencesAreAll(t *testing.T) {
	s := Shape{Size: 100, Cluster: 8, Table: 32}
	single := len(s.Requests())
	require.Greater(t, single, 50)
	count, sequence := s.Sequences(2)
	require.Equal(t, single*single, count)
	seen := map[string]bool{}
	for i := range count {
		script := sequence(i)
		require.Len(t, script, 3)
		seen[Format(script)] = true
	}
	require.GreaterOrEqual(t, len(seen), count-4, "but for two resizes, which only go up")
	require.Len(t, slices.Compact(s.places()), len(s.places()))
}
