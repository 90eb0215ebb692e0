package crashtest

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/crashlab"
	"tidemark/internal/testenv"
)

// found are scripts that a mistake of the engine was found with, by the name of
// their image. Some need luck with what overlaps: they run a few times.
var found = []struct{ row, script string }{
	// A write beside the one that takes its cluster was lost with the process.
	{"512 on a volume", "write 191+1@2; write 189+3"},
	// A reservation believed its sync, beside a flush's that had failed.
	{"32k refcounts 32 on a volume", "kill; fua 479+69@1; write 234+18@1; failsync; write 112+63@1; flush@3; evict; zero 160+1@1"},
	// Settling counted a cluster 0 that a request had got from a reservation since.
	{"4k on a file", "write 491+21@2; unmap 0+8@1; write 503+8; kill; write 245+10@2; kill; unmap 196+7@1; fua 416+4@3; kill; write 185+20@3"},
	// A ring was replayed into the tables before the copied bytes were durable.
	{"on raw on a volume", "write 31+2; kill; flush"},
}

// TestFound runs what has failed once.
func TestFound(t *testing.T) {
	seed, rng := testenv.Seed(t)
	for _, f := range found {
		script, err := crashlab.Parse(f.script)
		require.NoError(t, err)
		eachSubject(t, f.row, func(t *testing.T, s subject) {
			lab := crashlab.New(quick(seed), stateDir(t))
			for range 8 {
				s.setup.Jitter = rand.New(rand.NewPCG(rng.Uint64(), 0))
				s.try(t, lab, script)
			}
		})
	}
}
