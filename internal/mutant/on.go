//go:build mutants

package mutant

import (
	"fmt"
	"os"
	"sync/atomic"
)

// Enabled says whether there are mutants in this build: the build tag mutants.
const Enabled = true

var (
	chosen  = choose()
	reached atomic.Int64
)

// choose refuses a name that is not listed: it would be a mutant that nothing
// kills, because nothing is broken.
func choose() string {
	name := os.Getenv(Var)
	if _, ok := Find(name); name != "" && !ok {
		panic(fmt.Sprintf("%s: expected a name of mutant.Table, found %q", Var, name))
	}
	return name
}

// On reports whether the mutant of that name is chosen.
func On(name string) bool {
	if name != chosen {
		return false
	}
	reached.Add(1)
	return true
}

// Reached is how often the chosen mutant was asked for.
func Reached() int64 { return reached.Load() }
