package crashtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/crashlab"
	"tidemark/internal/mutant"
	"tidemark/internal/testenv"
)

// labVar is how long the lab looks for the mistake of a mutant.
const labVar = "TIDEMARK_MUTANT_LAB"

// TestMutantLab is what TestMutants runs in the binary that has the mutants: it
// judges what killed the mutant before, and if that does not, a little of every kind
// of image, round after round, until a rule is broken. Without a mutant it judges
// what kills any of them.
func TestMutantLab(t *testing.T) {
	limit, err := time.ParseDuration(os.Getenv(labVar))
	if err != nil {
		t.Skip("TestMutants runs it")
	}
	seed, rng := testenv.Seed(t)
	c := quick(seed)
	c.PerScript, c.Onward, c.Again, c.External = 250, 3, 12, 0
	lab := crashlab.New(c, stateDir(t))
	end := time.Now().Add(limit)
	f, by := tryKillers(t, lab, rng, os.Getenv(mutant.Var), end)
	if f == nil && os.Getenv(mutant.Var) != "" {
		f, by = tryAtRandom(t, lab, rng, end)
	}
	n := lab.Totals()
	switch {
	case f != nil:
		fmt.Printf("MUTANT KILLED by rule %d after %d states, %.1f s, %s\n", f.Oracle, n.Judged, n.Took.Seconds(), by)
		t.Logf("%v", f)
		return
	case mutant.Reached() == 0:
		fmt.Println("MUTANT NEVER REACHED")
	}
	t.Logf("%v", n)
}

// tryKillers judges what is known to kill a mutant, for a while, and returns the
// failure. Without a mutant that is everything, twice.
func tryKillers(t *testing.T, lab *crashlab.Lab, rng *rand.Rand, name string, end time.Time) (f *crashlab.Failure, by string) {
	list := killers[name]
	if name == "" {
		for _, m := range mutant.Table() {
			list = append(list, killers[m.Name]...)
		}
	}
	for round := 0; f == nil && len(list) > 0 && (name == "" && round < 2 || name != "" && round < 60 && time.Now().Before(end)); round++ {
		for _, k := range list {
			script, err := crashlab.Parse(k.script)
			require.NoError(t, err)
			eachSubject(t, k.row, func(t *testing.T, s subject) {
				if f != nil {
					return
				}
				s.setup.Engine.External = nil
				if round%2 == 1 {
					s.setup.Jitter = rand.New(rand.NewPCG(rng.Uint64(), 0))
				}
				f = lab.Try(t.Context(), s.setup, script)
			})
		}
	}
	return f, listedScript
}

// tryAtRandom judges random scripts on every kind of image, and returns the first
// failure, reduced.
func tryAtRandom(t *testing.T, lab *crashlab.Lab, rng *rand.Rand, end time.Time) (f *crashlab.Failure, by string) {
	var subjects []subject
	beside := stateDir(t) // those of the subtests go with them
	eachSubject(t, "", func(t *testing.T, s subject) {
		if s.only == nil {
			s.setup.Engine.External = nil
			if s.ring {
				s.setup.BesideIn = beside
			}
			subjects = append(subjects, s)
		}
	})
	for time.Now().Before(end) {
		s := subjects[rng.IntN(len(subjects))]
		if f := s.once(t, lab, rng); f != nil {
			c := crashlab.Config{Limits: crashlab.Limits{All: 10, Random: 40}, Onward: 4, Again: 20, Death: true, PerScript: 2000}
			f = crashlab.Reduce(t.Context(), s.setup, c, stateDir(t), f, 60)
			return f, fmt.Sprintf("a random script on a %s: %s", s.setup.Name, crashlab.Format(f.Script))
		}
	}
	return nil, ""
}

// once judges one script of any sort.
func (s subject) once(t *testing.T, lab *crashlab.Lab, rng *rand.Rand) *crashlab.Failure {
	clients := 1
	s.setup.Jitter = nil
	if rng.IntN(3) == 0 {
		clients = 2 + rng.IntN(3)
		s.setup.Jitter = rand.New(rand.NewPCG(rng.Uint64(), 0))
	}
	pairs, pair := s.shape.Sequences(2)
	script := pair(rng.IntN(pairs))
	if clients > 1 || rng.IntN(3) > 0 {
		script = s.shape.Random(rng, 4+rng.IntN(16), clients)
	}
	return lab.Try(t.Context(), s.setup, script)
}
