package mutant

// Table lists every mutant there is, by package and in the order of the steps
// that it breaks.
func Table() []Mutant {
	return []Mutant{}
}
