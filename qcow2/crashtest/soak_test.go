package crashtest

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/crashlab"
	"tidemark/internal/testenv"
)

// soakRound is how many states of a subject are judged before the next one's turn.
const soakRound = 2000

// TestSoak goes on for as long as TIDEMARK_SOAK says, round after round over every
// kind of image, and prints what was judged.
func TestSoak(t *testing.T) {
	text := os.Getenv("TIDEMARK_SOAK")
	if text == "" {
		t.Skip("goes on for as long as TIDEMARK_SOAK says: make soak")
	}
	limit, err := time.ParseDuration(text)
	require.NoError(t, err)
	seed, rng := testenv.Seed(t)
	lab := crashlab.New(quick(seed), stateDir(t))
	for end := time.Now().Add(limit); time.Now().Before(end) && !t.Failed(); {
		eachSubject(t, func(t *testing.T, s subject) {
			if time.Now().After(end) {
				t.SkipNow()
			}
			s.judge(t, lab, rng, soakRound)
		})
		t.Logf("%v", lab.Totals())
	}
	t.Logf("losses and corruptions: %v", t.Failed())
}
