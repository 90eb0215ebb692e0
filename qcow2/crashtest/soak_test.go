package crashtest

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/crashlab"
	"tidemark/internal/testenv"
)

// soakRound is about how many states of a subject are judged before the next one's
// turn.
const soakRound = 2000

// TestSoak goes on for as long as TIDEMARK_SOAK says, round after round over every
// kind of image, and prints what was judged every half a minute. It makes every
// choice that the lab knows, of which it judges a larger sample than an ordinary
// run does, and ends with the round in which something failed.
func TestSoak(t *testing.T) {
	text := os.Getenv("TIDEMARK_SOAK")
	if text == "" {
		t.Skip("goes on for as long as TIDEMARK_SOAK says: make soak")
	}
	limit, err := time.ParseDuration(text)
	require.NoError(t, err)
	seed, rng := testenv.Seed(t)
	c := quick(seed)
	c.Limits, c.PerScript = crashlab.Exhaustive(), 5000
	lab := crashlab.New(c, stateDir(t))
	told := time.Now()
	for end := time.Now().Add(limit); time.Now().Before(end) && !t.Failed(); {
		eachSubject(t, "", func(t *testing.T, s subject) {
			if time.Now().After(end) {
				return
			}
			s.judge(t, lab, rng, soakRound)
			if time.Since(told) > 30*time.Second {
				told = time.Now()
				t.Logf("%v", lab.Totals())
			}
		})
	}
	t.Logf("%v", lab.Totals())
	for _, s := range lab.Steps() {
		t.Log(s)
	}
}
