package testenv

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// SeedVar is the environment variable that sets the seed of random tests.
const SeedVar = "TIDEMARK_SEED"

// Seed returns the seed of a random test and a generator made from it: a new
// one for every run, or the one in TIDEMARK_SEED. It is printed when the test
// fails, with the way to run it again.
func Seed(t testing.TB) (uint64, *rand.Rand) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(SeedVar); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 0, 64); err != nil {
			t.Fatalf("%s: expected an unsigned number, found %q", SeedVar, s)
		}
	}
	t.Logf("seed %d; again with %s=%d go test -run '^%s$'", seed, SeedVar, seed, t.Name())
	return seed, Rand(seed)
}

// Rand returns the generator that Seed makes from seed.
func Rand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }
