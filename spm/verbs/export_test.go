package verbs

import (
	"flag"
	"slices"

	"tidemark/spm"
)

// Update says that golden files are written.
var Update = flag.Bool("update", false, "write testdata/replies.txt, and the reference docs/api.md")

// Numbers are all that the reference names for a verb.
func (v *Verb) Numbers() []int {
	numbers := v.more()
	for _, c := range slices.Concat(v.Codes, everywhere) {
		numbers = append(numbers, v.failure(&spm.Error{Code: c}).Number)
	}
	return numbers
}
