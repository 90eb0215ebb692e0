// Package mutant plants mistakes, to see whether the tests find them.
//
// A mutant is a mistake of one line, behind a name:
//
//	if !mutant.On("commit-no-sync") {
//		err = file.Sync()
//	}
//
// In a normal build On is the constant false, inlined, and the compiler removes
// the mistake. With the build tag mutants it is true for the one name that the
// environment variable TIDEMARK_MUTANT holds. A mutant compiles, passes every
// test that cuts no power, and breaks a rule that only shows after a crash; the
// crash lab must find it, by its oracle and not by a panic or a hang. A mutant
// that survives is a hole in the lab.
//
// [Table] lists them all. A name that is planted and not listed, or the other
// way round, fails this package's test.
package mutant

// Var is the environment variable that chooses the mutant.
const Var = "TIDEMARK_MUTANT"

// A Mutant is a mistake that can be switched on.
type Mutant struct {
	Name   string
	Breaks string // what it does instead of the right thing
	Rule   string // the rule or the invariant that forbids it
}

// Find returns the mutant of a name.
func Find(name string) (Mutant, bool) {
	for _, m := range Table() {
		if m.Name == name {
			return m, true
		}
	}
	return Mutant{}, false
}
